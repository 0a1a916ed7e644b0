"""One of each message that processes of different versions read from each other, besides the request plane's frames.

Each has its values set to something, so that a recorded one shows every field of its version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from dynamo.protocols.addressing import InstanceId, WorkerKey
from dynamo.protocols.discovery import InstanceRecord
from dynamo.protocols.engine import EngineCapabilities
from dynamo.protocols.kv_events import AllBlocksCleared, HashesRemoved, HashesStored, KvEventBatch, KvSnapshotRequest
from dynamo.protocols.llm import (
    DisaggregationMode,
    GuidedDecoding,
    LLMEngineOutput,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    TokenLogprob,
    Usage,
    pack_token_ids,
)
from dynamo.protocols.load import EngineLoad, WorkerLoad
from dynamo.protocols.model_card import Artifact, ArtifactRequest, ModelDeploymentCard
from dynamo.router.replica_sync import OpenRequest, ReplicaMessage
from dynamo.runtime.request_plane.nats_transport import CLAIM, CLOSE, DATA, DIAL, REFUSE

__all__ = ["CHANNEL", "FORMATS", "SAMPLES", "SEALED", "Recorded", "sealed_name"]


class Recorded(msgspec.Struct, frozen=True):
    """One message as a version sent it."""

    name: str
    """Of its struct; of a message of NATS, its kind."""
    form: str
    """``json``, ``msgpack``, or ``nats``: sealed as the request plane over NATS does."""
    data: str
    """Its bytes in hex."""
    reads: Any
    """What is in it, with bytes in base64."""


class Format(NamedTuple):
    """How messages become bytes."""

    encode: Callable[[Any], bytes]
    decode: Callable[..., Any]


FORMATS = {
    "json": Format(msgspec.json.encode, msgspec.json.decode),
    "msgpack": Format(msgspec.msgpack.encode, msgspec.msgpack.decode),
}

WORKER = WorkerKey(InstanceId(0x1234), 1)
HASHES = bytes(range(16))
CARD = ModelDeploymentCard(
    model="m",
    aliases=["alias"],
    types=["chat", "embedding"],
    input="text",
    mode=DisaggregationMode.DECODE,
    context_length_tokens=4096,
    block_size_tokens=32,
    max_batched_tokens=2048,
    total_kv_blocks=1000,
    dp_size=2,
    dtype="bfloat16",
    backend="echo",
    capabilities=EngineCapabilities(kv_events=True, load=True, lora=True, guided=["json"], logprobs=True, resume=True),
    tool_call_parser="hermes",
    reasoning_parser="qwen3",
    lora_base="base",
    loras=["adapter"],
    artifacts={"tokenizer.json": Artifact("ab" * 32, 12345)},
)

#: Message and the form that it travels in.
SAMPLES: list[tuple[msgspec.Struct, str]] = [
    # Discovery, and the card in it.
    (CARD, "json"),
    (
        InstanceRecord(
            "ns",
            "backend",
            "generate",
            WORKER.instance_id,
            {"tcp": "10.0.0.1:4000", "nats": "dyn.ns.instance.00000000001234", "zmq": "tcp://10.0.0.1:4001"},
            CARD,
            {"zone": "a"},
        ),
        "json",
    ),
    # Event plane.
    (
        KvEventBatch(
            WORKER.instance_id,
            WORKER.dp_rank,
            1_700_000_000_000_000_000,
            41,
            32,
            [HashesStored(HASHES, 2**63 + 1, "host"), HashesRemoved(HASHES[:8], "disk"), AllBlocksCleared()],
            "m",
        ),
        "msgpack",
    ),
    (
        WorkerLoad(WORKER.instance_id, "m", [EngineLoad(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)]),
        "msgpack",
    ),
    (
        ReplicaMessage(0x77, 5, [OpenRequest(9, WORKER.instance_id, 1, 100, 4)], [8], [7], True, [0x78]),
        "msgpack",
    ),
    # Payloads of the request plane.
    (KvSnapshotRequest(1, 1_700_000_000_000_000_000, 41), "msgpack"),
    (
        KvEventBatch(
            WORKER.instance_id, 1, 1_700_000_000_000_000_000, 42, 32, [HashesStored(HASHES)], "m", snapshot=True
        ),
        "msgpack",
    ),
    (ArtifactRequest("ab" * 32), "msgpack"),
    (
        PreprocessedRequest(
            "request",
            "m",
            pack_token_ids([11, 12, 13]),
            SamplingOptions(0.5, 0.9, 40, 0.1, 0.2, 0.3, 1.1, 7, {5: -1.0}, 2, 1),
            StopConditions(16, 2, [3], True),
            1,
            1,
            "adapter",
            "salt",
            5,
            {"remote": 1},
            GuidedDecoding("json", "{}"),
            4_102_444_800.0,
            {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
            True,
        ),
        "msgpack",
    ),
    (
        LLMEngineOutput(
            [11, 12],
            [TokenLogprob(11, -0.5, [(11, -0.5)]), TokenLogprob(12, -0.25)],
            [None, TokenLogprob(3, -1.5)],
            "stop",
            12,
            Usage(3, 2, 1),
            {"remote": 1},
            9,
            HASHES,
        ),
        "msgpack",
    ),
]

#: Name of the channel that the messages of NATS belong to; their keys follow from it.
CHANNEL = "recorded"
#: Kind, number and data of what the asking side sends, and what the serving side answers.
SEALED: list[tuple[int, int, bytes]] = [
    (DIAL, 0, b""),
    (DATA, 1, b"bytes of a connection"),
    (CLOSE, 2, b""),
    (REFUSE, 0, b"wrong plane secret"),
    (CLAIM, 0, msgspec.msgpack.encode({"instance_id": WORKER.instance_id, "dp_rank": WORKER.dp_rank})),
]


def sealed_name(kind: int) -> str:
    """For people."""
    return f"nats message of kind {kind}"
