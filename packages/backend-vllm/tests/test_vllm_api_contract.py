"""The contract with vLLM's Python interface is what the adapter uses, and vLLM has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from dynamo.protocols.llm import PreprocessedRequest, pack_token_ids
from dynamo.testing.api_contract import adapter_uses, check_contract, load_contract
from dynamo.testing.api_contract.command import package_folder
from dynamo.testing.api_contract.contract import CONTRACT_FILE
from dynamo.vllm.installation import SUPPORTED_MINOR
from dynamo.vllm.sampling import sampling_arguments

FOLDER = package_folder("dynamo.vllm")


def test_the_contract_is_what_the_source_uses():
    contract = load_contract(FOLDER / CONTRACT_FILE)
    found = adapter_uses(FOLDER, "vllm")
    assert (contract.uses, contract.environment) == (found.uses, found.environment), (
        "make it anew: dynamo conformance api dynamo.vllm --write"
    )
    assert contract.version.startswith(f"{SUPPORTED_MINOR}.")


def test_arguments_that_come_out_of_dictionaries_are_in_the_contract():
    by_hand = {use.path: set(use.keywords) for use in load_contract(FOLDER / CONTRACT_FILE).by_hand}
    arguments = sampling_arguments(PreprocessedRequest("r", "m", pack_token_ids([1])))
    assert arguments.keys() | {"structured_outputs"} == by_hand["vllm.sampling_params:SamplingParams"]


def installed_vllm() -> Path:
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip('vLLM is not installed; nox -s "engine(vllm)" has it')
    return Path(next(iter(found.submodule_search_locations))).parent


def test_the_installed_vllm_has_all_of_it():
    report = check_contract(load_contract(FOLDER / CONTRACT_FILE), installed_vllm(), "dynamo.vllm")
    report.raise_for_failures()
    assert len(report.named("ok")) > 100


def test_a_keyword_that_vllm_does_not_have_is_found():
    contract = load_contract(FOLDER / CONTRACT_FILE)
    path = "vllm.sampling_params:SamplingParams"
    broken = [msgspec.structs.replace(use, keywords=("best_of_all",)) for use in contract.by_hand if use.path == path]
    contract.by_hand = broken
    report = check_contract(contract, installed_vllm(), "dynamo.vllm")
    assert report.named("failed") == [f"{path}(best_of_all=)"]
