"""Who holds which prefix on the device, and how much further with what was offloaded to host memory and disk.

A prefix may go on in another tier, so there is one prefix index of the device's blocks, one of device and host
together, and one of all three. The wider ones exist only once a worker has published a block of a lower tier.
"""

from __future__ import annotations

from typing import NamedTuple

from dynamo.router.core.prefix_index import PrefixIndex

__all__ = ["TIERS", "TieredIndex", "TierMatch"]

#: Media of KV events, fastest first.
TIERS = ("device", "host", "disk")


class TierMatch(NamedTuple):
    """Blocks of a prefix per worker: on the device, with the host's, and with all; each at least the one before."""

    device: dict[int, int]
    host: dict[int, int]
    disk: dict[int, int]


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

    def use_tiers(self, worker: int) -> bool:
        """`worker` has lower tiers; whether that was known. If not, all that it holds must be stored again."""
        if worker in self._tiers:
            return True
        self.clear(worker)
        self._tiers[worker] = (set(), set(), set())
        if self._wider is None:
            self._wider = (PrefixIndex(self._max_blocks), PrefixIndex(self._max_blocks))
            self._widen()
        return False

    def store(self, worker: int, hashes: list[int], parent: int | None = None, tier: int = 0) -> None:
        """As `PrefixIndex.store`. Tiers below the device need :meth:`use_tiers` before."""
        if tier == 0:
            self.device.store(worker, hashes, parent)
        tiers = self._tiers.get(worker)
        if tiers is not None:
            tiers[tier].update(hashes)
        if self._wider is not None:
            for index in self._wider[max(0, tier - 1) :]:
                index.store(worker, hashes, parent)

    def remove(self, worker: int, hashes: list[int], tier: int = 0) -> int:
        """As `PrefixIndex.remove`; blocks that another tier holds stay there."""
        tiers = self._tiers.get(worker)
        unknown = self.device.remove(worker, hashes) if tier == 0 else 0
        if tiers is not None:
            tiers[tier].difference_update(hashes)
        if self._wider is not None:
            for level in range(max(1, tier), len(TIERS)):
                held = tiers[: level + 1] if tiers is not None else ()
                self._wider[level - 1].remove(worker, [h for h in hashes if not any(h in tier for tier in held)])
        return unknown

    def clear(self, worker: int) -> None:
        """`worker` holds nothing; it keeps its tiers."""
        self.device.clear(worker)
        for index in self._wider or ():
            index.clear(worker)
        for held in self._tiers.get(worker, ()):
            held.clear()

    def forget(self, worker: int) -> None:
        """`worker` is gone."""
        self.clear(worker)
        self._tiers.pop(worker, None)

    def match(self, hashes: list[int]) -> TierMatch:
        """See `PrefixIndex.match`, for each tier and those above it."""
        device = self.device.match(hashes)
        if self._wider is None:
            return TierMatch(device, device, device)
        return TierMatch(device, self._wider[0].match(hashes), self._wider[1].match(hashes))

    def _widen(self) -> None:
        """Fill the wider indexes with what the device's has, once."""
        for worker, hashes, parent in self.device.content():
            for index in self._wider or ():
                index.store(worker, hashes, parent)
