"""Our names for KV blocks: one function for frontends, routers and workers (DESIGN 4.2).

A prompt is cut into blocks of `block_size` tokens; what is left over has no hash. Each full block gets

* a *block hash* of its tokens alone, a multilinear hash modulo 2**64 with a finalizer, and
* a *sequence hash* of all blocks up to and including it. With ``state[i] = seed + sum(block[j] * P**j, j <= i)``, the
  sequence hash is a bijective mix of ``state[i]``: prefix sums over arrays in place of a chain of n dependent steps.

``seed`` is made of everything else that the blocks' contents depend on: LoRA adapter, cache salt, multimodal inputs.

The functions are not cryptographic. Who can choose prompts can make two of them collide; the effect is a worker chosen
for a prefix that it does not hold, never a wrong answer, since engines compare their own hashes.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "HashState",
    "Uint64Array",
    "block_hashes",
    "extend",
    "following_hashes",
    "seed_of",
    "sequence_hashes",
    "state_at",
]

Uint64Array: TypeAlias = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_P = 0x9E3779B97F4A7C15
# Of the two finalizers. Made once: making such a number takes about as long as applying it to 64 blocks.
_SHIFT_29, _SHIFT_31, _SHIFT_32 = np.uint64(29), np.uint64(31), np.uint64(32)
_BLOCK_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR = 0x94D049BB133111EB
_SEQUENCE_FACTOR = np.uint64(_FACTOR)
_INVERSE_FACTOR = pow(_FACTOR, -1, 1 << 64)
#: A chain of so many blocks takes Python's own numbers as long as it takes arrays, whose every operation has a price.
_FEW_BLOCKS = 12


class HashState(NamedTuple):
    """Where a sequence of blocks stands, so that more blocks can follow without the earlier ones."""

    value: int
    """``state`` of the last block; the seed when there is none."""
    blocks: int
    """How many blocks came before."""


def seed_of(lora: str | None = None, cache_salt: str | None = None, multimodal: Sequence[str] = ()) -> int:
    """The seed of sequences with this adapter, salt and multimodal hashes; 0 when there is none of them."""
    if not lora and not cache_salt and not multimodal:
        return 0
    digest = hashlib.blake2b(digest_size=8)
    for part in (lora or "", cache_salt or "", *multimodal):
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def block_hashes(token_ids: npt.NDArray[np.uint32], block_size: int) -> Uint64Array:
    """Hash of each full block, shape ``[len(token_ids) // block_size]``.

    Raises:
        ValueError: `block_size` is not positive.
    """
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be positive")
    count = len(token_ids) // block_size
    blocks = token_ids[: count * block_size].reshape(count, block_size).astype(np.uint64)
    coefficients = _coefficients(block_size)
    # The sum of (token + 1) * coefficient: + 1 makes token 0 count, so that blocks of zeros differ by their length.
    # A matrix product makes no temporary array of the prompt's size.
    mixed: Uint64Array = blocks @ coefficients
    mixed += _offset(block_size)
    mixed ^= mixed >> _SHIFT_29
    mixed *= _BLOCK_FACTOR
    mixed ^= mixed >> _SHIFT_32
    return mixed


def sequence_hashes(token_ids: npt.NDArray[np.uint32], block_size: int, seed: int = 0) -> Uint64Array:
    """Hash of each prefix that ends with a full block, shape ``[len(token_ids) // block_size]``.

    Raises:
        ValueError: `block_size` is not positive.
    """
    hashes, _ = extend(HashState(seed, 0), block_hashes(token_ids, block_size))
    return hashes


def extend(state: HashState, blocks: Uint64Array) -> tuple[Uint64Array, Uint64Array]:
    """Sequence hashes of `blocks` that follow `state`, and the value of the state after each of them."""
    count = len(blocks)
    if not count:
        return blocks, blocks
    powers = _powers(_round_up(state.blocks + count))[state.blocks : state.blocks + count]
    values: Uint64Array = np.add.accumulate(blocks * powers)
    values += np.uint64(state.value & _MASK)
    hashes = values ^ (values >> _SHIFT_31)
    hashes *= _SEQUENCE_FACTOR
    hashes ^= hashes >> _SHIFT_29
    return hashes, values


def following_hashes(state: HashState, blocks: Uint64Array) -> list[int]:
    """The sequence hashes that :func:`extend` gives, as numbers; half of its time for a few blocks."""
    count = len(blocks)
    if count > _FEW_BLOCKS:
        longer: list[int] = extend(state, blocks)[0].tolist()
        return longer
    powers = _powers(_round_up(state.blocks + count))[state.blocks : state.blocks + count].tolist()
    value, hashes = state.value, []
    for block, power in zip(blocks.tolist(), powers, strict=True):
        value = (value + block * power) & _MASK
        mixed = (value ^ value >> 31) * _FACTOR & _MASK
        hashes.append(mixed ^ mixed >> 29)
    return hashes


def state_at(sequence_hash: int, blocks: int) -> HashState:
    """The state after `blocks` blocks whose last sequence hash this is: the mix of :func:`extend`, backwards."""
    mixed = (sequence_hash ^ sequence_hash >> 29 ^ sequence_hash >> 58) * _INVERSE_FACTOR & _MASK
    return HashState(mixed ^ mixed >> 31 ^ mixed >> 62, blocks)


@functools.lru_cache(maxsize=64)
def _coefficients(block_size: int) -> Uint64Array:
    """Odd numbers below 2**64, the same on every machine."""
    data = hashlib.shake_128(b"dynamo block hash").digest(8 * block_size)
    return np.frombuffer(data, dtype="<u8").astype(np.uint64) | np.uint64(1)


@functools.lru_cache(maxsize=64)
def _offset(block_size: int) -> np.uint64:
    """The sum of the coefficients."""
    return np.uint64(_coefficients(block_size).sum(dtype=np.uint64))


@functools.lru_cache(maxsize=32)
def _powers(count: int) -> Uint64Array:
    """P**0 ... P**(count - 1) modulo 2**64."""
    powers = np.full(count, np.uint64(_P), dtype=np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _round_up(count: int) -> int:
    """The next power of two, so that few tables serve all lengths."""
    return 1 << max(10, (count - 1).bit_length())
