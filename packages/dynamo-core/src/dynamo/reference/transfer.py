"""KV blocks as bytes: exported by one engine, imported into the prefix cache of another that serves the same model.

A frame is one block: magic, header length (4 bytes little-endian), msgpack header, float32 data, BLAKE2b digest of all
that. Frames of a prefix come in order; each names its parent. Nothing is imported from a frame that does not fit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence

import msgspec
import numpy as np

from dynamo.errors import KvTransferError
from dynamo.reference.block_pool import BlockPool, CachedBlock, CacheScope, block_hash
from dynamo.reference.kv_cache import KvCache

__all__ = ["KvBlockHeader", "export_blocks", "import_blocks"]

MAGIC = b"DKV1"
_DIGEST_BYTES = 16


class KvBlockHeader(msgspec.Struct, frozen=True):
    """What a block is and what it fits."""

    fingerprint: str
    """Of the model's weights."""
    dtype: str
    shape: tuple[int, ...]
    """``[layers, 2, block_size, kv_heads, head_dim]``"""
    name: bytes
    parent: bytes | None
    token_ids: list[int]
    lora: str | None = None
    lora_fingerprint: str | None = None
    cache_salt: str | None = None

    @property
    def scope(self) -> CacheScope:
        """The part of the prefix cache that the block belongs to."""
        return CacheScope(self.lora, self.lora_fingerprint, self.cache_salt)


def export_blocks(
    pool: BlockPool, cache: KvCache, fingerprint: str, token_ids: Sequence[int], scope: CacheScope
) -> list[bytes]:
    """Frames of the longest cached prefix of `token_ids`, full blocks only."""
    tokens = np.asarray(token_ids, np.int32)
    names: list[bytes] = []
    for start in range(0, len(tokens) - pool.block_size + 1, pool.block_size):
        parent = names[-1] if names else scope.root()
        names.append(block_hash(parent, tokens[start : start + pool.block_size]))
    blocks = pool.match(names)
    frames = []
    for index, block in enumerate(blocks):
        header = KvBlockHeader(
            fingerprint=fingerprint,
            dtype="float32",
            shape=cache.block_shape,
            name=names[index],
            parent=names[index - 1] if index else None,
            token_ids=tokens[index * pool.block_size : (index + 1) * pool.block_size].tolist(),
            lora=scope.lora,
            lora_fingerprint=scope.lora_fingerprint,
            cache_salt=scope.cache_salt,
        )
        frames.append(_encode(header, cache.read_block(block).astype("<f4").tobytes()))
    pool.release(blocks)
    return frames


def import_blocks(
    pool: BlockPool, cache: KvCache, fingerprint: str, frames: Sequence[bytes], adapters: Collection[CacheScope]
) -> int:
    """Enter `frames` into the prefix cache; how many of them are cached then (fewer when no block is free).

    `adapters` are the scopes, without salts, that this engine serves.

    Raises:
        KvTransferError: prefix caching is off, or a frame is corrupt, of another model, adapter or layout, or not the
            next one of a sequence. No block is imported then.
    """
    if not pool.enable_prefix_caching:
        raise KvTransferError("this engine cannot import KV blocks: prefix caching is off")
    decoded = [_decode(frame) for frame in frames]
    parent = None
    for header, data in decoded:
        _check(header, data, fingerprint, cache, adapters)
        if header.parent != parent:
            raise KvTransferError("KV blocks are out of order: a block does not follow the one before it")
        parent = header.name
    held: list[int] = []  # kept referenced until the end, so that no block evicts its own prefix
    for header, data in decoded:
        block = _enter(pool, cache, header, data)
        if block is None:
            break
        held.append(block)
    pool.release(held)
    return len(held)


def _enter(pool: BlockPool, cache: KvCache, header: KvBlockHeader, data: bytes) -> int | None:
    """Reference the block, from the cache or newly filled; None when no block is free."""
    cached = pool.match([header.name])
    if cached:
        return cached[0]
    allocated = pool.allocate(1)
    if allocated is None:
        return None
    cache.write_block(allocated[0], np.frombuffer(data, "<f4").reshape(header.shape))
    token_ids = np.array(header.token_ids, np.int32)
    return pool.publish(allocated[0], CachedBlock(header.name, header.parent, token_ids, header.scope))


def _check(
    header: KvBlockHeader, data: bytes, fingerprint: str, cache: KvCache, adapters: Collection[CacheScope]
) -> None:
    if header.fingerprint != fingerprint:
        raise KvTransferError(
            "a KV block belongs to a model with other weights", details={"theirs": header.fingerprint}
        )
    if header.dtype != "float32" or tuple(header.shape) != cache.block_shape:
        raise KvTransferError(
            f"a KV block is {header.dtype} {list(header.shape)}; this engine needs float32 {list(cache.block_shape)}",
            hint="serve with the same --block-size",
        )
    if header.scope._replace(cache_salt=None) not in adapters:
        raise KvTransferError(f"a KV block belongs to LoRA {header.lora!r}, which this engine has not loaded alike")
    if len(data) != 4 * math.prod(header.shape) or len(header.token_ids) != cache.block_size:
        raise KvTransferError("a KV block is not as large as its header says")
    if not all(0 <= token < 2**31 for token in header.token_ids):
        raise KvTransferError("a KV block has token ids beyond 31 bits")
    token_ids = np.array(header.token_ids, np.int32)
    if header.name != block_hash(header.parent or header.scope.root(), token_ids):
        raise KvTransferError("a KV block's name does not follow from its tokens")
    if not np.isfinite(np.frombuffer(data, "<f4")).all():
        raise KvTransferError("a KV block holds NaN or infinite values")


def _encode(header: KvBlockHeader, data: bytes) -> bytes:
    packed = msgspec.msgpack.encode(header)
    frame = MAGIC + len(packed).to_bytes(4, "little") + packed + data
    return frame + _digest(frame)


def _decode(frame: bytes) -> tuple[KvBlockHeader, bytes]:
    body, digest = frame[:-_DIGEST_BYTES], frame[-_DIGEST_BYTES:]
    if body[:4] != MAGIC or _digest(body) != digest:
        raise KvTransferError("a KV block frame is corrupt: its checksum does not match")
    start = 8 + int.from_bytes(body[4:8], "little")
    try:
        return msgspec.msgpack.decode(body[8:start], type=KvBlockHeader), body[start:]
    except msgspec.MsgspecError as error:
        raise KvTransferError(f"a KV block frame has no valid header: {error}") from error


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
