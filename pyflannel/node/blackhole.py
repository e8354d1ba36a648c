"""`--ip-blackhole-route`: packets for pods of this node that are not there end here.

Without it, where no bridge owns the subnet, they would leave by the default route or go round. The
route is only added where the main table has none for exactly our subnet: a bridge that owns the
subnet has its connected route there, and that one must win.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.kernel.base import RTN_BLACKHOLE, Netlink, Route, Set
from pyflannel.logs import get_logger

log = get_logger(__name__)


async def keep_blackhole(netlink: Netlink, own: Callable[[], SubnetKey], period_s: float) -> None:
    """Looks every `period_s`, the first time after one period, as upstream. Runs for ever."""
    failing = ""
    while True:
        await asyncio.sleep(period_s)
        try:
            for family in Family:
                await ensure_blackhole(netlink, own(), family)
        except KernelError as error:
            if str(error) != failing:
                log.warning("blackhole route not in place, retrying", error=error)
            failing = str(error)
        else:
            failing = ""


async def ensure_blackhole(netlink: Netlink, own: SubnetKey, family: Family) -> bool:
    """Adds the route if there is none for our subnet; `True` if it did.

    Raises:
        KernelError: the kernel refused.
    """
    subnet = own.subnet(family)
    if subnet is None:
        return False
    if any(route.dst == subnet for route in await netlink.routes(family)):
        return False
    route = Route(dst=subnet, type=RTN_BLACKHOLE)
    for error in (await netlink.apply([Set(route)])).values():
        raise error
    log.info("blackhole route added", subnet=subnet)
    return True
