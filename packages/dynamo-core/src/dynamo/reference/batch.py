"""Lays the chunks of one step out as the rows of a `Batch`."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import numpy.typing as npt

from dynamo.reference.attention import DecodeGroup, PrefillSpan
from dynamo.reference.lora import LoraAdapter
from dynamo.reference.model import Batch
from dynamo.reference.scheduler import Chunk

__all__ = ["build_batch"]

Indices = npt.NDArray[np.intp]


def build_batch(chunks: Items[Chunk], block_size: int) -> Batch:
    """Rows in the order of `chunks`.

    Wanted are the last row of chunks that reach their sequence's end, and every row of sequences that need their whole
    prompt.
    """
    total = sum(chunk.count for chunk in chunks)
    token_ids, positions, blocks = (np.empty(total, np.intp) for _ in range(3))
    prefills: list[PrefillSpan] = []
    decodes: dict[int, list[int]] = {}
    output_rows: list[int] = []
    adapters: dict[str, tuple[LoraAdapter, list[int]]] = {}
    row = 0
    starts = []
    for index, chunk in enumerate(chunks):
        sequence, count = chunk.sequence, chunk.count
        start, stop = sequence.computed, sequence.computed + count
        starts.append(row)
        token_ids[row : row + count] = sequence.tokens(start, stop)
        if count == 1:
            positions[row] = start
            blocks[row] = sequence.blocks[start // block_size]
            decodes.setdefault((sequence.block_count - 1).bit_length(), []).append(index)
        else:
            span = np.arange(start, stop)
            positions[row : row + count] = span
            blocks[row : row + count] = sequence.blocks[span // block_size]
            prefills.append(PrefillSpan(row, row + count, sequence.blocks.copy(), stop))
        if sequence.needs_whole_prompt:
            output_rows.extend(range(row, row + count))
        elif stop == sequence.length:
            output_rows.append(row + count - 1)
        if sequence.adapter is not None:
            adapters.setdefault(sequence.adapter.name, (sequence.adapter, []))[1].extend(range(row, row + count))
        row += count
    return Batch(
        token_ids=token_ids,
        positions=positions,
        slots=blocks * block_size + positions % block_size,
        decodes=[_decode_group(chunks, starts, members) for members in decodes.values()],
        prefills=prefills,
        output_rows=np.array(output_rows, np.intp),
        adapters=[(np.array(rows, np.intp), adapter) for adapter, rows in adapters.values()],
    )


def _decode_group(chunks: Items[Chunk], starts: Items[int], members: Items[int]) -> DecodeGroup:
    """Members have block counts within a factor of two of each other, which bounds the padding."""
    sequences = [chunks[index].sequence for index in members]
    tables = np.zeros((len(members), max(sequence.block_count for sequence in sequences)), np.intp)
    for table, sequence in zip(tables, sequences, strict=True):
        table[: sequence.block_count] = sequence.blocks
    return DecodeGroup(
        rows=np.array([starts[index] for index in members], np.intp),
        tables=tables,
        lengths=np.array([sequence.computed + 1 for sequence in sequences], np.intp),
    )
