"""`--ip-blackhole-route`: packets for pods of this node that are not there end here.

Without it, where no bridge owns the subnet, they would leave by the default route or go round. The
route is only added where the main table has none for exactly our subnet: a bridge that owns the
subnet has its connected route there, and that one must win. Where the bridge comes later (docker is
restarted, say) ours goes again, because in IPv4 the older of the two is in force. (Upstream leaves
it, and no pod of the node is reached any more.)
"""

from __future__ import annotations

from collections.abc import Callable

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.kernel.base import RTN_BLACKHOLE, Delete, Netlink, Operation, Route, Set
from pyflannel.logs import get_logger
from pyflannel.node.trouble import Trouble

log = get_logger(__name__)


class BlackholeKeeper:
    """Keeps the route of our present subnet."""

    def __init__(self, netlink: Netlink, own: Callable[[], SubnetKey], clock: Clock) -> None:
        self._netlink = netlink
        self._own = own
        self._clock = clock
        self.trouble = Trouble(clock)
        """Why the route is not in place."""

    async def run(self, period_s: float) -> None:
        """Looks every `period_s` until cancelled, the first time after one period, as upstream.

        When our subnet has become another one, the route for the former goes.
        """
        former = self._own()
        while True:
            await self._clock.sleep(period_s)
            try:
                if former != self._own():
                    await _remove(self._netlink, former)
                    former = self._own()
                for family in Family:
                    await ensure_blackhole(self._netlink, self._own(), family)
            except KernelError as error:
                if self.trouble.set(str(error)):
                    log.warning("blackhole route not in place, retrying", error=error)
            else:
                self.trouble.set("")


async def _remove(netlink: Netlink, former: SubnetKey) -> None:
    subnets = [subnet for subnet in (former.v4, former.v6) if subnet is not None]
    holes = [Delete(Route(dst=subnet, type=RTN_BLACKHOLE)) for subnet in subnets]
    for error in (await netlink.apply(holes)).values():
        raise error


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
