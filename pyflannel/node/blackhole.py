"""`--ip-blackhole-route`: packets for pods of this node that are not there end here.

Without it, where no bridge owns the subnet, they would leave by the default route or go round. The
route is only added where the main table has none for exactly our subnet: a bridge that owns the
subnet has its connected route there, and that one must win. Where the bridge comes later (docker is
restarted, say) ours goes again, because in IPv4 the older of the two is in force. (Upstream leaves
it, and no pod of the node is reached any more.)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.kernel.base import RTN_BLACKHOLE, Delete, Netlink, Operation, Route, Set
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
    """Adds the route if there is none for our subnet, removes it beside another one.

    Returns:
        Whether it did either.

    Raises:
        KernelError: the kernel refused.
    """
    subnet = own.subnet(family)
    if subnet is None:
        return False
    ours = Route(dst=subnet, type=RTN_BLACKHOLE)
    there = [route for route in await netlink.routes(family) if route.dst == subnet]
    operation: Operation
    if not there:
        operation, event = Set(ours), "blackhole route added"
    elif ours in there and len(there) > 1:
        operation, event = Delete(ours), "blackhole route removed, a link has the subnet"
    else:
        return False
    for error in (await netlink.apply([operation])).values():
        raise error
    log.info(event, subnet=subnet)
    return True
