"""Who holds which prefix on the device, and how much further with what was offloaded to host memory and disk.

A prefix may go on in another tier, so there is one prefix index of the device's blocks, one of device and host
together, and one of all three. The wider ones exist only once a worker has published a block of a lower tier.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dynamo.router.core.prefix_index import PrefixIndex

__all__ = ["NO_MATCH", "TIERS", "TierMatch", "TieredIndex"]

#: Media of KV events, fastest first.
TIERS = ("device", "host", "disk")


class TierMatch(NamedTuple):
    """Blocks of a prefix per worker: on the device, with the host's, and with all; each at least the one before."""

    device: dict[int, int]
    host: dict[int, int]
    disk: dict[int, int]


_NOTHING: dict[int, int] = {}
#: Nobody holds anything.
NO_MATCH = TierMatch(_NOTHING, _NOTHING, _NOTHING)


class TieredIndex:
    """Blocks of one model and block size, by tier. `tier` is a place in `TIERS`."""

    def __init__(self, max_blocks: int | None = None) -> None:
        self._max_blocks = max_blocks
        self.device = PrefixIndex(max_blocks)
        self._wider: tuple[PrefixIndex, PrefixIndex] | None = None
        self._tiers: dict[int, tuple[set[int], set[int], set[int]]] = {}

    def __len__(self) -> int:
        """Distinct blocks, in whatever tier."""
        return len(self._wider[1]) if self._wider is not None else len(self.device)

    @property
    def conflicts(self) -> int:
        """See `PrefixIndex.conflicts`."""
        return self.device.conflicts

    def store(self, worker: int, hashes: list[int], parent: int | None = None, tier: int = 0) -> None:
        """As `PrefixIndex.store`."""
        if tier:
            self._use_tiers(worker)
        else:
            self.device.store(worker, hashes, parent)
        if self._wider is None:
            return
        if worker in self._tiers:
            self._tiers[worker][tier].update(hashes)
        for index in self._wider[max(0, tier - 1) :]:
            index.store(worker, hashes, parent)

    def remove(self, worker: int, hashes: list[int], tier: int = 0) -> int:
        """As `PrefixIndex.remove`; blocks that another tier holds stay there."""
        if tier and worker not in self._tiers:
            return len(hashes)
        unknown = 0 if tier else self.device.remove(worker, hashes)
        if self._wider is None:
            return unknown
        tiers = self._tiers.get(worker, ())
        if tiers:
            tiers[tier].difference_update(hashes)
        for level in range(max(1, tier), len(TIERS)):
            gone = [h for h in hashes if not any(h in held for held in tiers[: level + 1])]
            self._wider[level - 1].remove(worker, gone)
        return unknown

    def clear(self, worker: int) -> None:
        """`worker` holds nothing."""
        self.device.clear(worker)
        for index in self._wider or ():
            index.clear(worker)
        self._tiers.pop(worker, None)

    def match(self, hashes: Sequence[int]) -> TierMatch:
        """See `PrefixIndex.match`, for each tier and those above it."""
        device = self.device.match(hashes)
        if self._wider is None:
            return TierMatch(device, device, device)
        return TierMatch(device, self._wider[0].match(hashes), self._wider[1].match(hashes))

    def _use_tiers(self, worker: int) -> None:
        """`worker` has lower tiers: from now on it is known which tier holds what. Slow, and once per worker."""
        if worker in self._tiers:
            return
        if self._wider is None:
            self._wider = (PrefixIndex(self._max_blocks), PrefixIndex(self._max_blocks))
            for holder, hashes, parent in self.device.content():
                for index in self._wider:
                    index.store(holder, hashes, parent)
        own = (hashes for holder, hashes, _ in self.device.content() if holder == worker)
        self._tiers[worker] = (set(itertools.chain.from_iterable(own)), set(), set())
