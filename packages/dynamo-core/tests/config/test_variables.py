"""Misspelt environment variables are named with what was meant; those of other programs are left alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from dynamo.config.variables import misspelt_variables, warned_of


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("DYN_HTTP_PROT", "DYN_HTTP_PORT"),
        ("DYN_ROUTER_MOD", "DYN_ROUTER_MODE"),
        ("DYN_NAMESAPCE", "DYN_NAMESPACE"),
        ("DYN_NAME_SPACE", "DYN_NAMESPACE"),
        ("DYN_TLS_CERT", "DYN_TLS_CERT_PATH"),
        ("DYN_LGO", "DYN_LOG"),
        ("DYNAMO_NAMESPACES", "DYNAMO_NAMESPACE"),
    ],
)
def test_a_misspelt_variable_is_named_with_what_was_meant(name, meant):
    assert misspelt_variables({"PATH": "/bin", name: "x"}) == [
        f"{name} is set, but nothing reads it; is {meant} meant?"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "DYN_HTTP_PORT",
        "DYN_API_KEY",
        "DYN_DEBUG",
        "DYN_VLLM_DISAGGREGATION_MODE",
        "DYN_RL_COMPONENT",
        "DYN_KVBM_CPU_CACHE_GB",
        "DYN_FOO",
        "HTTP_PROT",
    ],
)
def test_known_variables_and_those_of_other_programs_are_left_alone(name):
    assert misspelt_variables({name: "x"}) == []


def test_what_a_parent_has_said_its_children_do_not_repeat():
    environment = {"DYN_HTTP_PROT": "1", "DYN_NAMESPACE": "x"}
    assert warned_of({"DYN_NAMESPACE": "x"}) == {}
    child = {**environment, **warned_of(environment), "DYN_ROUTER_MOD": "kv"}
    assert misspelt_variables(child) == ["DYN_ROUTER_MOD is set, but nothing reads it; is DYN_ROUTER_MODE meant?"]
    assert misspelt_variables({**child, **warned_of(child)}) == []


@pytest.mark.parametrize("program", ["dynamo.frontend", "dynamo.echo", "dynamo.router", "dynamo.frontend.select"])
def test_every_program_says_so_when_it_starts(program, tmp_path):
    # It ends at once: no process can listen on an address of the documentation's network.
    environment = {**os.environ, "DYN_NAMESAPCE": "mine", "DYN_STATE_DIR": str(tmp_path), "DYN_SYSTEM_PORT": "0"}
    environment |= {"DYN_SYSTEM_HOST": "192.0.2.1", "DYN_SELECT_HTTP_HOST": "192.0.2.1"}
    environment |= {"DYN_ROUTER_ENDPOINT": "dynamo.backend.generate"}
    done = subprocess.run(
        [sys.executable, "-m", program], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "WARNING" in done.stderr
    assert "DYN_NAMESAPCE is set, but nothing reads it; is DYN_NAMESPACE meant?" in done.stderr


def test_a_setting_that_is_missing_may_be_misspelt(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.router"],
        env={**os.environ, "DYN_ROUTER_ENDPIONT": "dynamo.backend.generate", "DYN_STATE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == os.EX_CONFIG
    assert "DYN_ROUTER_ENDPIONT is set, but nothing reads it; is DYN_ROUTER_ENDPOINT meant?" in done.stderr


def test_the_dynamo_command_says_so():
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.cli", "plugins"],
        env={**os.environ, "DYN_ROUTER_MOD": "kv"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "Warning: DYN_ROUTER_MOD is set, but nothing reads it; is DYN_ROUTER_MODE meant?\n"
