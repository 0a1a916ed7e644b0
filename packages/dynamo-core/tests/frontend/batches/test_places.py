"""Places for requests: bounded, given to owners in turn, and never lost with whoever gives up waiting."""

from __future__ import annotations

import asyncio

from dynamo.frontend.batches.places import FairPlaces


class Crowd:
    """Requests that keep their places until a test lets them go."""

    def __init__(self, places):
        self._places = places
        self.order = []
        self.done = {}

    async def request(self, owner, name):
        async with self._places.of(owner):
            self.order.append(name)
            await self.done.setdefault(name, asyncio.Event()).wait()

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)


async def test_owners_take_turns_whatever_they_wait_with():
    crowd = Crowd(FairPlaces(1))
    names = [("ann", f"ann{n}") for n in range(4)] + [("bob", "bob0"), ("cid", "cid0"), ("bob", "bob1")]
    tasks = [asyncio.create_task(crowd.request(*name)) for name in names]
    await crowd.settle()
    for number in range(len(names)):
        assert len(crowd.order) == number + 1
        crowd.done[crowd.order[-1]].set()
        await crowd.settle()
    await asyncio.gather(*tasks)
    assert crowd.order == ["ann0", "ann1", "bob0", "cid0", "ann2", "bob1", "ann3"]


async def test_who_gives_up_takes_no_place():
    crowd = Crowd(FairPlaces(1))
    first, second, third = (asyncio.create_task(crowd.request(owner, owner)) for owner in ("ann", "bob", "cid"))
    await crowd.settle()
    second.cancel()
    await crowd.settle()
    crowd.done["ann"].set()
    await crowd.settle()
    assert crowd.order == ["ann", "cid"]
    crowd.done["cid"].set()
    await asyncio.gather(first, third)
    again = asyncio.create_task(crowd.request("dan", "dan"))
    await crowd.settle()
    # The turn comes together with the cancellation: it is passed on.
    waiting = asyncio.create_task(crowd.request("eve", "eve"))
    await crowd.settle()
    crowd.done["dan"].set()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(again, waiting, return_exceptions=True)
    last = asyncio.create_task(crowd.request("fay", "fay"))
    await crowd.settle()
    assert crowd.order[-1] == "fay"
    crowd.done["fay"].set()
    await last
