"""The KV router against upstream's compiled one, called from Python, and how it grows.

The peer is `ai-dynamo-runtime` 1.6.1 in an environment of its own (`nox` makes it and names its interpreter in
DYNAMO_BENCH_PEER); without it those rows have no reference, and a line says so. Values are CPU time of one thread. Each
side gets what its API takes: the peer a list of ids, JSON events and block hashes; we packed ids and sequence hashes.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import psutil

from benchmarks.harness.measure import Sample
from benchmarks.harness.rows import Options, Row
from benchmarks.peers.router_scenario import BLOCK_SIZE, conversations, events, prompt
from dynamo.plugins import plugins
from dynamo.protocols.addressing import InstanceId
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.hashing import sequence_hashes
from dynamo.protocols.kv_events import HashesStored, KvEventBatch
from dynamo.protocols.llm import pack_token_ids, unpack_token_ids
from dynamo.protocols.model_card import ModelDeploymentCard
from dynamo.protocols.routing import PromptHashes, RouteRequest
from dynamo.router.candidates import CandidateTable
from dynamo.router.core.prefix_index import PrefixIndex
from dynamo.router.policy import policy_for_mode
from dynamo.router.settings import RouterSettings
from dynamo.runtime.garbage import collect_seldom

__all__ = ["run"]

PEER = "ai-dynamo-runtime 1.6.1"
_ROOT = Path(__file__).parents[1]
_PEER_PROGRAM = "benchmarks.peers.router_peer"
_MICROSECONDS = 1e6


class _Peer:
    """The peer's process; None everywhere when there is no environment with it."""

    def __init__(self) -> None:
        python = os.environ.get("DYNAMO_BENCH_PEER", "")
        self._process: subprocess.Popen[str] | None = None
        if not python:
            print(f"  {PEER} is left out: DYNAMO_BENCH_PEER names no interpreter with it", file=sys.stderr)
            return
        self._process = subprocess.Popen(
            [python, "-m", _PEER_PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        if self._answer() != "ready":
            print(f"  {PEER} is left out: it cannot be imported by {python}", file=sys.stderr)
            self._process = None

    def measure(self, kind: str, size: int, times: int) -> float | None:
        """CPU seconds per unit, as `_MEASURES` do it for us."""
        if self._process is None:
            return None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"kind": kind, "size": size, "times": times}) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def run(options: Options) -> Iterator[Row]:
    """Rows against the peer, then growth; all on one core.

    The peer's index is a thread of its own. On one core each hand-over to it costs about 7 us; where the two may run on
    different cores of an idle machine it costs 35 us, which says more about the machine than about the index.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peer = _Peer()
    collect_seldom()  # as every process with a router does
    rounds, times = (3, 5) if options.quick else (11, 20)
    try:
        for blocks in (64, 256, 1024):
            yield _row(
                f"hash {blocks} blocks", _hashing(blocks, times * 10), peer, ("hash", blocks, times), rounds, 2.0
            )
        for name, holders in (("stored event of 16 blocks, all new", 1), ("the same, known of other workers", 8)):
            yield _row(name, _storing(holders, times), peer, ("store", holders, times), rounds, 4.0)
        yield _row(
            "stored event of 16 blocks, from the wire", _storing_from_wire(), peer, ("store", 1, times), rounds, None
        )
        index, times = _filled(), times * 4
        for blocks in (64, 256, 1024):
            yield _row(
                f"match {blocks} blocks", _matching(index, blocks, times), peer, ("match", blocks, times), rounds, 4.0
            )
    finally:
        peer.close()
    for workers, bar in ((8, 50.0), (64, 100.0)):
        yield from _selection(workers, bar, rounds, times * 12)
    for blocks in (100_000,) if options.quick else (100_000, 1_000_000, 10_000_000):
        for workers in (8, 64, 512):
            yield from _growth(blocks, workers)


def _row(
    name: str,
    ours: Callable[[], float],
    peer: _Peer,
    asked: tuple[str, int, int],
    rounds: int,
    bar: float | None,
) -> Row:
    """Both in turn; the first round is not counted."""
    here, there = [], []
    for number in range(rounds + 1):
        gc.collect()
        mine, its = ours(), peer.measure(*asked)
        if number:
            here.append(mine * _MICROSECONDS)
            there += [] if its is None else [its * _MICROSECONDS]
    sample = Sample.of(here)
    return Row(
        name=name,
        value=sample.median,
        low=sample.low,
        high=sample.high,
        unit="us",
        better="lower",
        reference=PEER if there else "",
        reference_value=Sample.of(there).median if there else None,
        bar=bar if there else None,
    )


def _hashing(blocks: int, times: int) -> Callable[[], float]:
    packed = pack_token_ids(prompt(blocks))

    def work() -> float:
        start = time.process_time()
        for _ in range(times):
            sequence_hashes(unpack_token_ids(packed), BLOCK_SIZE).tolist()
        return (time.process_time() - start) / times

    return work


def _storing(holders: int, times: int) -> Callable[[], float]:
    made = list(events(conversations(), holders))

    def work() -> float:
        spent = 0.0
        for _ in range(times):
            index = PrefixIndex()
            start = time.process_time()
            for worker, hashes, parent in made:
                index.store(worker, hashes, parent)
            spent += time.process_time() - start
        return spent / (times * len(made))

    return work


def _storing_from_wire() -> Callable[[], float]:
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(KvEventBatch).decode
    made = [
        (worker, encode(KvEventBatch(worker, 0, 1, 0, 64, [HashesStored(_packed(hashes), parent)], "m")))
        for worker, hashes, parent in events(conversations(), 1)
    ]

    def work() -> float:
        index = PrefixIndex()
        start = time.process_time()
        for worker, payload in made:
            for event in decode(payload).events:
                assert isinstance(event, HashesStored)
                index.store(worker, np.frombuffer(event.hashes, "<u8").tolist(), event.parent)
        return (time.process_time() - start) / len(made)

    return work


def _packed(hashes: list[int]) -> bytes:
    return np.asarray(hashes, "<u8").tobytes()


def _filled() -> PrefixIndex:
    index = PrefixIndex()
    for worker, hashes, parent in events(conversations(), 8):
        index.store(worker, hashes, parent)
    return index


def _matching(index: PrefixIndex, blocks: int, times: int) -> Callable[[], float]:
    queries = [chain[:blocks] for chain in conversations()]

    def work() -> float:
        start = time.process_time()
        for _ in range(times):
            for query in queries:
                index.match(query)
        return (time.process_time() - start) / (times * len(queries))

    return work


def _selection(workers: int, bar: float, rounds: int, times: int) -> Iterator[Row]:
    """A whole decision for a prompt of 100 blocks whose hashes are made, and one with its booking and release.

    Every worker has part of the prompt cached and four requests in work.
    """
    settings = RouterSettings(router_mode="kv", router_use_kv_events=False)
    table = CandidateTable(policy_for_mode("kv", plugins(), settings), settings)
    for number in range(workers):
        card = ModelDeploymentCard("m", block_size_tokens=BLOCK_SIZE)
        table.put(InstanceRecord("ns", "worker", "generate", InstanceId(number), card=card))
    tokens = prompt(100)
    asked = _route_request(tokens)
    rng = random.Random(5)
    now = 0.0
    for _ in range(workers * 4):
        shared = rng.randrange(101) * BLOCK_SIZE
        table.route(_route_request(tokens[:shared] + [rng.randrange(1000) for _ in range(6400 - shared)]), now)

    def decide() -> None:
        table.select(asked, now)

    def live() -> None:
        route = table.route(asked, now)
        route.answered()
        route.end()

    for name, work, limit in (("selection", decide, bar), ("selection, booking, release", live, None)):
        values = []
        for _ in range(rounds * 5):  # each is short, and without a peer to share the noise with
            gc.collect()
            start = time.process_time()
            for _ in range(times):
                work()
            values.append((time.process_time() - start) / times * _MICROSECONDS)
        sample = Sample.of(values)
        yield Row(
            name=f"{name}, {workers} workers, 100 blocks",
            value=sample.median,
            low=sample.low,
            high=sample.high,
            unit="us",
            better="lower",
            reference="most on the 2-core reference machine" if limit else "",
            reference_value=limit,
            bar=1.0 if limit else None,
        )


def _route_request(tokens: list[int]) -> RouteRequest:
    hashes = PromptHashes(pack_token_ids(tokens))
    hashes.of(BLOCK_SIZE)
    return RouteRequest("r", "m", prompt_tokens=len(tokens), prompt=hashes)


def _growth(blocks: int, workers: int) -> Iterator[Row]:
    """Memory and match time, in a process of its own so that nothing else is counted."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        each_bytes, seconds = process.submit(_grown, blocks, workers).result()
    what = f"{blocks:.0e} blocks, {workers} workers".replace("e+0", "e")
    yield Row(name=f"memory at {what}", value=each_bytes, unit="B/block", better="lower")
    yield Row(name=f"match 256 blocks at {what}", value=seconds * _MICROSECONDS, unit="us", better="lower")


def _grown(blocks: int, workers: int) -> tuple[float, float]:
    """Resident bytes per distinct block, and seconds per match.

    Each prompt of 256 blocks is held by up to 9 workers, to 64, 128 or 256 blocks; 200 of the prompts are matched.
    """
    rng = random.Random(4)
    prompts: list[list[int]] = []
    index = PrefixIndex()
    before = psutil.Process().memory_info().rss
    for number in range(blocks // 256):
        chain = [rng.getrandbits(63) for _ in range(256)]
        for worker in rng.sample(range(workers), 8):
            index.store(worker, chain[: rng.choice((64, 128, 256))])
        index.store(number % workers, chain)
        if number % (blocks // 256 // 200) == 0:
            prompts.append(chain)
    used = psutil.Process().memory_info().rss - before
    gc.collect()
    gc.freeze()
    start = time.process_time()
    for _ in range(20):
        for chain in prompts:
            index.match(chain)
    return used / len(index), (time.process_time() - start) / (20 * len(prompts))
