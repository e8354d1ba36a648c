"""The blackhole route of our own subnet, on a kernel in memory."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from ipaddress import IPv4Network

from pyflannel.core.ip import Family
from pyflannel.kernel.base import RTN_BLACKHOLE, Route, Set
from pyflannel.node.blackhole import BlackholeKeeper
from pyflannel.testing.fakeclock import FakeClock
from tests.support.overlay import Machine, key


async def test_when_our_subnet_changes_the_route_of_the_former_goes():
    """And no route that another program has set for another subnet."""
    netlink = Machine().netlink
    theirs = Route(dst=IPv4Network("10.5.9.0/24"), type=RTN_BLACKHOLE)
    netlink.meddle(Set(theirs))
    own = key(1)
    task = asyncio.create_task(BlackholeKeeper(netlink, lambda: own, FakeClock()).run(0.0))

    async def holes() -> set[str]:
        for _ in range(20):
            await asyncio.sleep(0)
        routes = await netlink.routes(Family.V4)
        return {str(r.dst) for r in routes if r.type == RTN_BLACKHOLE}

    assert await holes() == {"10.5.1.0/24", "10.5.9.0/24"}
    own = key(2)
    assert await holes() == {"10.5.2.0/24", "10.5.9.0/24"}
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
