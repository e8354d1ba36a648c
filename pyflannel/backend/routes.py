"""Routes to peers, and how to tell ours from others': pure, shared by host-gw, ipip and vxlan.

flannel marks its routes with nothing: protocol `boot`, main table, no metric, what a plain
`ip route add` makes. (A mark of our own would be simple, and an upstream node that takes over, or
one that we take over from, would see foreign routes.) On a device that is ours everything is ours.
Elsewhere it takes all of this to be called *stray*, which means left over from an earlier run, of
this backend or of another one, and to be deleted:

* unicast, protocol `boot`, no metric, no source address, nothing else that flannel never sets, a
  single next hop with a gateway;
* through the external interface, where the backend itself has such routes, or (udp, with one route
  for the whole network) would be overruled by them; or, through any link, exactly as vxlan writes
  it, on-link via the first address of its destination: left by a device of another VNI, or by vxlan
  where the backend is another one now;
* a destination that is a subnet as flannel leases them (length SubnetLen, between SubnetMin and
  SubnetMax), not our own, and without a lease.

An operator's own static route that fulfils all of this claims an address range that flannel may
lease to a node at any time; other static routes into the network are left alone, whatever they are.
Strays are looked for once, after a start: a route that appears later was put there by a program or
a person that is at work now.
"""

from __future__ import annotations

import errno

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family, IPAddress, IPNetwork, SubnetKey, family_of
from pyflannel.kernel.base import (
    RT_SCOPE_UNIVERSE,
    RTN_UNICAST,
    RTPROT_BOOT,
    KernelObject,
    Link,
    Route,
)
from pyflannel.kernel.ownership import is_protected


def peer_route(subnet: IPNetwork, gateway: IPAddress, oif: int, *, onlink: bool = False) -> Route:
    """The route to a peer's subnet, as upstream writes it."""
    return Route(dst=subnet, gateway=gateway, oif=oif, onlink=onlink)


def networks(config: NetworkConfig, *families: Family) -> tuple[IPNetwork, ...]:
    """The cluster networks of some families, by default of all that are enabled."""
    found = (config.network_of(family) for family in families or config.families)
    return tuple(network for network in found if network is not None)


def inside(dst: IPNetwork, config: NetworkConfig, own: SubnetKey | None) -> bool:
    """Whether a destination is (part of) other nodes' subnets: in the network, not in our own.

    Routes inside our own subnet belong to the containers of this node.
    """
    family = family_of(dst)
    network = config.network_of(family)
    if network is None or not _contains(network, dst):
        return False
    subnet = own.subnet(family) if own is not None else None
    return subnet is None or not _contains(subnet, dst)


def is_device_route(
    route: Route, config: NetworkConfig, own: SubnetKey | None, device: Link | None
) -> bool:
    """Whether a route leaves through our own device and is no other program's, nor the kernel's."""
    return (
        device is not None
        and route.oif == device.index
        and not is_protected(route)
        and inside(route.dst, config, own)
    )


def is_stray(
    route: Route,
    config: NetworkConfig,
    own: SubnetKey | None,
    underlay: Link | None,
    *,
    direct: bool = True,
) -> bool:
    """Whether a route was left by an earlier run; see above.

    Args:
        direct: whether those through the external interface count.
    """
    if underlay is None or not inside(route.dst, config, own):
        return False
    length, low, high = _allotted(config, own, family_of(route.dst))
    return (
        route.type == RTN_UNICAST
        and route.protocol == RTPROT_BOOT
        and route.scope == RT_SCOPE_UNIVERSE
        and route.metric == 0
        and route.src is None
        and not route.altered
        and route.gateway is not None
        and ((direct and route.oif == underlay.index) or _is_to_vtep(route))
        and route.dst.prefixlen == length
        and low <= int(route.dst.network_address) <= high
    )


def _allotted(config: NetworkConfig, own: SubnetKey | None, family: Family) -> tuple[int, int, int]:
    """The prefix length of nodes' subnets, the first and the last of them.

    Where the store gives subnets by itself, they are as long as ours and anywhere in the network:
    Kubernetes has one `--node-cidr-mask-size` a family.
    """
    length, low, high = (
        (config.subnet_len, int(config.subnet_min), int(config.subnet_max))
        if family is Family.V4
        else (config.ipv6_subnet_len, int(config.ipv6_subnet_min), int(config.ipv6_subnet_max))
    )
    network, subnet = config.network_of(family), own.subnet(family) if own is not None else None
    if length or network is None or subnet is None:
        return length, low, high
    return subnet.prefixlen, int(network.network_address), int(network.broadcast_address)


def _is_to_vtep(route: Route) -> bool:
    return route.onlink and route.gateway == route.dst.network_address


def direct_link(path: Route | None) -> int | None:
    """The link that an underlay address is on; `None` if it is behind a gateway, or our own."""
    if path is None or path.gateway is not None or path.type != RTN_UNICAST:
        return None
    return path.oif


def explain(error: KernelError, thing: KernelObject) -> KernelError:
    """The error with the likely cause, where the kernel's own words do not give it."""
    if error.errno == errno.EACCES and isinstance(thing, Route) and thing.dst.version == 6:
        # Without CAP_NET_ADMIN it would be EPERM.
        hint = "IPv6 is disabled on the interface: set its sysctl net.ipv6.conf.*.disable_ipv6 to 0"
        return KernelError(error.operation, error.subject, error.errno, hint)
    off_link = error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    if not off_link or not isinstance(thing, Route) or thing.gateway is None or thing.onlink:
        return error
    hint = f"{thing.gateway} is not on a directly connected network, so it cannot be a next hop"
    return KernelError(error.operation, error.subject, error.errno, hint)


def _contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """`inner.subnet_of(outer)` for networks of one family, without its type gymnastics."""
    return outer.prefixlen <= inner.prefixlen and int(inner.network_address) & int(
        outer.netmask
    ) == int(outer.network_address)
