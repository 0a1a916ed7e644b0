"""Tiny models, and engine cores on them."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions, StopConditions, pack_token_ids
from dynamo.reference.blas import set_blas_threads
from dynamo.reference.core import EngineCore
from dynamo.reference.loading import LoadedModel, load_model
from dynamo.reference.settings import parse_flags

GOLDEN = Path(__file__).parent / "golden"


def _load_tiny_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_models", GOLDEN / "tiny_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_models() -> ModuleType:
    """The generator of tiny models (golden/tiny_models.py)."""
    set_blas_threads(1)
    return _load_tiny_models()


@pytest.fixture(scope="session")
def model_directory(tiny_models, tmp_path_factory) -> Callable[[str], Path]:
    """Directory of a case, written once."""
    written: dict[str, Path] = {}

    def directory(case: str) -> Path:
        if case not in written:
            written[case] = tiny_models.write_model(tmp_path_factory.mktemp(case), case)
        return written[case]

    return directory


@pytest.fixture(scope="session")
def lora_directory(tiny_models, tmp_path_factory) -> Path:
    """The adapter that fits the case ``llama``."""
    return tiny_models.write_lora(tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def load_case(model_directory) -> Callable[..., LoadedModel]:
    """Load a case with engine flags."""

    def load(case: str, *flags: str) -> LoadedModel:
        return load_model(model_directory(case), parse_flags(flags))

    return load


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """Golden arrays of a case."""

    def arrays(case: str) -> dict[str, np.ndarray]:
        with np.load(GOLDEN / f"{case}.npz") as file:
            return dict(file)

    return arrays


@pytest.fixture
def make_request() -> Callable[..., PreprocessedRequest]:
    """A greedy request by default; keywords go to SamplingOptions, StopConditions or the request, by name."""
    counter = itertools.count()

    def make(prompt, **options) -> PreprocessedRequest:
        sampling = {name: options.pop(name) for name in SamplingOptions.__struct_fields__ if name in options}
        stop = {name: options.pop(name) for name in StopConditions.__struct_fields__ if name in options}
        return PreprocessedRequest(
            request_id=options.pop("request_id", f"r{next(counter)}"),
            model="tiny",
            token_ids=pack_token_ids(prompt),
            sampling=SamplingOptions(**{"temperature": 0.0, **sampling}),
            stop=StopConditions(**stop),
            **options,
        )

    return make


@pytest.fixture
def run_core() -> Callable[..., dict]:
    """Step a core until it is idle; stream key to the stream's items."""

    def run(core: EngineCore, *, now: float = 0.0) -> dict:
        streams: dict = {}
        for _ in range(100_000):
            for key, item in core.take_result().items:
                streams.setdefault(key, []).append(item)
            if not core.has_work:
                return streams
            core.step(now)
        raise AssertionError("the engine core makes no progress")

    return run
