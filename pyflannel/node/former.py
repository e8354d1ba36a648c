"""Takes away what a run with another network, or another subnet, has left.

`subnet.env` names the former ones until it is written anew, so this runs before that.
`kernel/ownership.py` recognises what that run made: routes through our devices and to its peers,
the addresses and neighbours on our devices, the blackhole route of its own subnet. None of it is
wanted, so there is no need to wait for the leases, as there is for leftovers inside the present
network, which the backends sweep. (Rules: `traffic/`.)

A device that the present backend has no use for stays, as with upstream; `pyflannel cleanup` takes
it away.
"""

from __future__ import annotations

from collections.abc import Collection

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.kernel.base import RTN_BLACKHOLE, Delete, KernelObject, Netlink
from pyflannel.kernel.ownership import is_address_of, is_left_by, is_neighbour_of
from pyflannel.logs import get_logger

log = get_logger(__name__)


async def remove_former(
    netlink: Netlink, former: SubnetEnv, config: NetworkConfig, own: SubnetKey, kinds: Kinds
) -> None:
    """Deletes what belongs to a network that is no longer in use; failures are logged, not raised.

    Args:
        netlink: the kernel.
        former: `subnet.env` as the run before left it.
        config: the network now.
        own: the subnet now.
        kinds: tell which devices are a backend's.
    """
    gone = [
        family
        for family in Family
        if _network(former, family) is not None
        and (
            _network(former, family) != _present(config, family)
            or _subnet(former, family) != own.subnet(family)
        )
    ]
    if not gone:
        return
    try:
        links = await netlink.links()
        ours = {link.index for link in links if kinds.is_device(link.name, link.kind)}
        found = [
            thing
            for family in gone
            for thing in await _find(netlink, former, family, _present(config, family), own, ours)
        ]
        failures = await netlink.apply([Delete(thing) for thing in found]) if found else {}
    except KernelError as error:
        log.warning("what the former network left cannot be listed", reason=str(error))
        return
    for failure in failures.values():
        log.warning("left by the former network, not removed", reason=str(failure))
    if len(found) > len(failures):
        networks = ", ".join(str(_network(former, family)) for family in gone)
        log.info("removed what an earlier run left", network=networks, count=len(found))


async def _find(
    netlink: Netlink,
    former: SubnetEnv,
    family: Family,
    present: IPNetwork | None,
    own: SubnetKey,
    ours: Collection[int],
) -> list[KernelObject]:
    network = _network(former, family)

    def outside(start: IPAddress) -> bool:
        # The two may overlap: what lies in the present one is the backend's to keep or to sweep.
        return present is None or start not in present

    found: list[KernelObject] = [
        route
        for route in await netlink.routes(family)
        if is_left_by(route, former, ours)
        and (
            outside(route.dst.network_address)
            or (route.type == RTN_BLACKHOLE and route.dst != own.subnet(family))
        )
    ]
    for index in ours:
        found += [
            neighbour
            for neighbour in await netlink.neighbours(index, family)
            if is_neighbour_of(neighbour, network) and outside(neighbour.ip)
        ]
    found += [
        address
        for address in await netlink.addresses()
        if is_address_of(address, network, ours) and outside(address.interface.ip)
    ]
    return found


def _network(former: SubnetEnv, family: Family) -> IPNetwork | None:
    return former.network if family is Family.V4 else former.ipv6_network


def _subnet(former: SubnetEnv, family: Family) -> IPNetwork | None:
    return former.subnet if family is Family.V4 else former.ipv6_subnet


def _present(config: NetworkConfig, family: Family) -> IPNetwork | None:
    return config.network_of(family) if family in config.families else None
