"""How often a process looks for garbage in cycles. Frontends, routers and workers call it once, when all is loaded.

Python looks after every 700 objects that were made and not yet freed, and a few streams hold that many; every so often
it looks through all that there is, modules and tables included. In a frontend that was 8 % of a request's CPU and
pauses of tens of milliseconds, for next to nothing: what a request makes is freed by counting references. A worker has
its engine's modules on top: 600,000 objects with vLLM.
"""

from __future__ import annotations

import gc

__all__ = ["collect_seldom"]

#: About 100 requests in work.
_NEW_OBJECTS = 10_000


def collect_seldom() -> None:
    """Never look again through what there is now, and less often through what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
