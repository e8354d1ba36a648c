"""Peers whose subnet would take something away from this node, on a kernel in memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest

from pyflannel.backend.base import PartlyApplied
from pyflannel.backend.engine import Engine
from pyflannel.backend.hostgw import HostGwPlan
from pyflannel.backend.kinds import KINDS
from pyflannel.backend.plan import Device
from pyflannel.backend.udp import UdpPlan
from pyflannel.backend.vxlan import VxlanPlan
from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.core.lease import Lease, LeaseAdded
from pyflannel.kernel.base import (
    RTPROT_KERNEL,
    Address,
    Delete,
    LinkSpec,
    Neighbour,
    Route,
    Set,
)
from pyflannel.logs import KeyValueFormatter
from tests.support.overlay import ME, NETWORK, Machine, config, key, lease

BIRD = 12
UDP, VXLAN, HOST_GW = "udp", "vxlan", "host-gw"


class Node:
    """A machine with an engine, and what others have on it."""

    def __init__(
        self, backend: str = HOST_GW, *, ipv6: bool = False, store: tuple[IPAddress, ...] = ()
    ) -> None:
        self.backend = backend
        self.machine = Machine(kinds=("vxlan", "dummy"))
        self.netlink = self.machine.netlink
        self.store = set(store)
        self.external = self.machine.external(ipv6=ipv6)
        self.conf = config({"Type": backend}, ipv6=ipv6)
        self.own = key(ME, ipv6=ipv6)
        plan = self.vxlan() if backend == VXLAN else self.udp() if backend == UDP else self.gw()
        self.engine = Engine(
            self.netlink,
            plan,
            write_sysctl=lambda _name, _value: True,
            store_addresses=lambda: self.store,
            is_own_device=KINDS.is_device,
        )
        self.engine.synced()

    def vxlan(self) -> VxlanPlan:
        return VxlanPlan(
            config=self.conf,
            settings=VxlanSettings(),
            external=self.external,
            macs=dict.fromkeys(self.conf.families, "0e:00:00:00:00:01"),
            own=self.own,
        )

    def gw(self) -> HostGwPlan:
        return HostGwPlan(config=self.conf, external=self.external, own=self.own)

    def udp(self) -> UdpPlan:
        subnet = self.own.v4
        assert subnet is not None
        # A device that netlink can make stands in for the TUN.
        device = Device(name="flannel0", create=LinkSpec(name="flannel0", kind="dummy"))
        return UdpPlan("eth0", self.conf, self.own, NETWORK, subnet, device)

    def link(self, name: str, *addresses: str, kind: str = "") -> int:
        link = self.netlink.add_link(name, kind=kind)
        for text in addresses:
            interface = IPv6Interface(text) if ":" in text else IPv4Interface(text)
            self.netlink.meddle(Set(Address(index=link.index, interface=interface)))
        return link.index

    def peer(self, subnet: str, number: int = 2, *, ipv6: bool = False) -> Lease:
        made = lease(number, self.backend, ipv6=ipv6)
        return replace(made, key=SubnetKey(IPv4Network(subnet), made.key.v6))

    def add(self, *leases: Lease) -> None:
        self.engine.update([LeaseAdded(one) for one in leases])

    async def routes(self, family: Family = Family.V4) -> list[str]:
        """Destinations of routes inside the network which are not the kernel's."""
        found = await self.netlink.routes(family)
        return sorted(str(r.dst) for r in found if r.protocol != RTPROT_KERNEL and _is_inside(r))

    @property
    def ignored(self) -> dict[str, str]:
        ignored = self.engine.report().ignored
        assert isinstance(ignored, dict)
        return ignored


def _is_inside(route: Route) -> bool:
    dst = route.dst
    return dst.version == 6 or (isinstance(dst, IPv4Network) and dst.subnet_of(NETWORK))


def said(caplog, event: str) -> list[str]:
    """Log lines of an event, with their fields."""
    formatter = KeyValueFormatter()
    return [formatter.format(r) for r in caplog.records if r.getMessage().startswith(event)]


@pytest.mark.parametrize("backend", [HOST_GW, VXLAN])
@pytest.mark.parametrize(
    ("address", "subnet", "word"),
    [
        ("10.5.40.7/24", "10.5.40.0/24", "10.5.40.7/24 of lan0"),
        ("10.5.40.7/26", "10.5.40.0/24", "10.5.40.7/26 of lan0"),
        ("10.5.40.7/32", "10.5.40.0/24", "10.5.40.7/32 of lan0"),
        ("10.5.40.7/16", "10.5.40.0/24", "10.5.40.7/16 of lan0"),
    ],
)
async def test_a_peer_in_the_way_is_left_out_and_named_and_the_others_are_carried(
    backend, address, subnet, word
):
    node = Node(backend)
    node.link("lan0", address)
    before = await node.machine.state()
    node.add(node.peer(subnet), lease(3, backend))
    await node.engine.apply(full=True)
    assert await node.routes() == ["10.5.3.0/24"]
    assert before <= await node.machine.state(), "nothing of others is gone"
    assert subnet in node.ignored[subnet]
    assert word in node.ignored[subnet]
    neighbours = {o.ip for o in await node.machine.state() if isinstance(o, Neighbour)}
    assert IPv4Address("10.5.40.0") not in neighbours


@pytest.mark.parametrize(("kind", "left_out"), [("vxlan", False), ("bridge", True)])
async def test_a_device_that_another_backend_has_left_is_in_no_ones_way(kind, left_out):
    """After a change of VNI or backend it is still there, with an address in the network."""
    node = Node()
    node.link("flannel.9", "10.5.40.0/32", kind=kind)
    node.add(node.peer("10.5.40.0/24"))
    await node.engine.apply(full=True)
    assert ("10.5.40.0/24" in node.ignored) is left_out


@pytest.mark.parametrize("subnet", ["10.5.1.128/25", "10.5.0.0/22"])
async def test_a_lease_that_overlaps_our_own_subnet_is_left_out(subnet):
    node = Node()
    node.add(node.peer(subnet))
    await node.engine.apply(full=True)
    assert await node.routes() == []
    assert "this node's own subnet 10.5.1.0/24" in node.ignored[subnet]


async def test_the_store_and_next_hops_are_kept_reachable():
    node = Node(store=(IPv4Address("10.5.50.9"),))
    eth0 = node.machine.eth0.index
    gateway = Route(dst=IPv4Network("192.0.2.254/32"), oif=eth0, scope=253)
    via = Route(dst=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("10.5.60.1"), oif=eth0,
                onlink=True)  # fmt: skip
    node.netlink.meddle(Set(gateway), Set(via))
    node.add(node.peer("10.5.50.0/24"), node.peer("10.5.60.0/24", 3), lease(4, HOST_GW))
    await node.engine.apply(full=True)
    assert await node.routes() == ["10.5.4.0/24"]
    assert "the store's address 10.5.50.9" in node.ignored["10.5.50.0/24"]
    assert "next hop 10.5.60.1" in node.ignored["10.5.60.0/24"]


async def test_inside_a_wider_prefix_a_peer_is_carried_with_a_warning_that_comes_once(caplog):
    node = Node()
    node.link("lan0", "10.1.2.3/8")
    node.add(lease(2, HOST_GW), node.peer("10.5.7.0/24", 3))
    await node.engine.apply(full=True)
    await node.engine.apply(full=True)
    assert await node.routes() == ["10.5.2.0/24", "10.5.7.0/24"]
    assert not node.ignored
    assert node.engine.report().overlaps
    assert len(said(caplog, "peer carried")) == 2
    (line,) = said(caplog, "the network overlaps")
    assert "10.1.2.3/8 of lan0" in line


async def test_the_bridge_of_our_containers_and_our_own_device_are_in_no_ones_way(caplog):
    node = Node(VXLAN)
    node.link("docker0", "10.5.1.1/24")
    node.add(lease(2, VXLAN))
    await node.engine.apply(full=True)
    assert await node.routes() == ["10.5.2.0/24"]
    assert not node.ignored
    assert node.engine.report().overlaps == ()


@pytest.mark.parametrize("backend", [HOST_GW, VXLAN])
async def test_a_peer_comes_and_goes_with_the_address_that_is_in_its_way(backend):
    """Without waiting for the next full comparison: the notification points at it."""
    node = Node(backend)
    node.add(lease(2, backend))
    await node.engine.apply(full=True)
    heard = node.netlink.notifications()
    index = node.link("lan0", "10.5.2.9/24")
    address = Address(index=index, interface=IPv4Interface("10.5.2.9/24"))

    async def next_pass() -> None:
        noticed = False
        while heard._pending:
            noticed |= node.engine.notice(await anext(heard))
        assert noticed
        await node.engine.apply(full=False)

    await next_pass()
    kernel = {r.dst: r for r in await node.netlink.routes(Family.V4) if r.oif == index}
    assert IPv4Network("10.5.2.0/24") in kernel, "the one that came with the address"
    assert await node.routes() == []
    assert "10.5.2.9/24 of lan0" in node.ignored["10.5.2.0/24"]
    node.netlink.meddle(Delete(address))
    await next_pass()
    assert await node.routes() == ["10.5.2.0/24"]
    assert not node.ignored


@pytest.mark.parametrize("backend", [HOST_GW, VXLAN])
async def test_a_routing_daemons_route_stays_and_the_peer_gets_its_own_when_it_is_gone(backend):
    node = Node(backend)
    theirs = Route(
        dst=IPv4Network("10.5.2.0/24"), oif=node.machine.eth0.index, protocol=BIRD, scope=253
    )
    node.netlink.meddle(Set(theirs))
    node.add(lease(2, backend), lease(3, backend))
    await node.engine.apply(full=True)
    routes = await node.netlink.routes(Family.V4)
    assert [r for r in routes if r.dst == theirs.dst] == [theirs]
    assert await node.routes() == ["10.5.2.0/24", "10.5.3.0/24"]
    assert "proto bird" in node.ignored["10.5.2.0/24"]
    heard = node.netlink.notifications()
    node.netlink.meddle(Delete(theirs))
    assert node.engine.notice(await anext(heard))
    await node.engine.apply(full=False)
    assert not node.ignored
    (ours,) = [r for r in await node.netlink.routes(Family.V4) if r.dst == theirs.dst]
    assert ours.protocol != BIRD


async def test_one_that_takes_our_place_keeps_it():
    """A routing daemon replaces our route while we run: not a fight, but a peer left out."""
    node = Node()
    node.add(lease(2, HOST_GW))
    await node.engine.apply(full=True)
    theirs = Route(
        dst=IPv4Network("10.5.2.0/24"), gateway=IPv4Address("192.0.2.77"),
        oif=node.machine.eth0.index, protocol=BIRD,
    )  # fmt: skip
    heard = node.netlink.notifications()
    node.netlink.meddle(Set(theirs))
    while heard._pending:
        node.engine.notice(await anext(heard))
    for full in (False, True):
        await node.engine.apply(full=full)
        assert theirs in await node.netlink.routes(Family.V4)
    assert "proto bird" in node.ignored["10.5.2.0/24"]


async def test_one_that_was_never_heard_of_is_in_the_way_once():
    """The creation is exclusive: it fails, names the route, and the next pass leaves it alone."""
    node = Node()
    await node.engine.apply(full=True)
    theirs = Route(
        dst=IPv4Network("10.5.2.0/24"), oif=node.machine.eth0.index, protocol=BIRD, scope=253
    )
    node.netlink.meddle(Set(theirs))
    node.add(lease(2, HOST_GW))
    with pytest.raises(PartlyApplied, match="proto bird"):
        await node.engine.apply(full=False)
    await node.engine.apply(full=True)
    assert "proto bird" in node.ignored["10.5.2.0/24"]
    assert theirs in await node.netlink.routes(Family.V4)
    # It vanishes without a word, as IPv4 routes do with their device.
    node.netlink.meddle(Delete(theirs))
    await node.engine.apply(full=True)
    assert not node.ignored


async def test_routes_of_routing_daemons_are_not_read_at_rest():
    """A router has a hundred thousand: only those near the network are looked at, and not often."""
    node = Node()
    far = Route(
        dst=IPv4Network("203.0.113.0/24"), gateway=IPv4Address("192.0.2.9"),
        oif=node.machine.eth0.index, protocol=BIRD,
    )  # fmt: skip
    node.netlink.meddle(Set(far))
    node.add(lease(2, HOST_GW))
    await node.engine.apply(full=True)
    node.netlink.calls.clear()
    heard = node.netlink.notifications()
    node.netlink.meddle(Delete(far), Set(far))
    assert not any([node.engine.notice(await anext(heard)) for _ in range(2)])
    for _ in range(3):
        await node.engine.apply(full=True)
    assert node.netlink.calls["all routes"] == 0
    assert node.netlink.calls["routes"] == 3


async def test_a_static_route_to_exactly_a_peers_subnet_is_replaced():
    node = Node()
    static = Route(
        dst=IPv4Network("10.5.2.0/24"), oif=node.machine.eth0.index, protocol=4, scope=253
    )
    node.netlink.meddle(Set(static))
    node.add(lease(2, HOST_GW))
    await node.engine.apply(full=True)
    (found,) = [r for r in await node.netlink.routes(Family.V4) if r.dst == static.dst]
    assert found.gateway == IPv4Address("192.0.2.2")


async def test_in_ipv6_a_daemons_better_metric_wins_and_is_not_swept():
    node = Node(VXLAN, ipv6=True)
    theirs = Route(
        dst=IPv6Network("fd00:5:0:2::/64"), oif=node.machine.eth0.index, protocol=BIRD,
        metric=32,
    )  # fmt: skip
    node.netlink.meddle(Set(theirs))
    node.add(lease(2, VXLAN, ipv6=True))
    await node.engine.apply(full=True)
    routes = await node.netlink.routes(Family.V6)
    assert [r for r in routes if r.dst == theirs.dst] == [theirs]
    assert await node.routes() == ["10.5.2.0/24"], "the other family is carried"


async def test_of_a_dual_stack_peer_the_family_that_is_in_no_ones_way_is_carried():
    node = Node(VXLAN, ipv6=True)
    node.link("lan0", "fd00:5:0:2::9/64")
    node.add(lease(2, VXLAN, ipv6=True))
    await node.engine.apply(full=True)
    assert await node.routes() == ["10.5.2.0/24"]
    (problem,) = node.ignored.values()
    assert "fd00:5:0:2::9/64 of lan0" in problem


async def test_the_route_of_the_whole_network_leaves_a_connected_one_alone(caplog):
    node = Node(UDP)
    index = node.link("docker0", "10.5.0.1/16")
    before = await node.netlink.routes(Family.V4)
    for _ in range(2):
        await node.engine.apply(full=True)
    there = [r for r in await node.netlink.routes(Family.V4) if r.dst == NETWORK]
    assert there == [r for r in before if r.dst == NETWORK]
    assert "10.5.0.1/16 of docker0" in node.ignored["this node"]
    node.netlink.meddle(Delete(Address(index=index, interface=IPv4Interface("10.5.0.1/16"))))
    await node.engine.apply(full=True)
    assert await node.routes() == [str(NETWORK)]
    assert not node.ignored
    (line,) = said(caplog, "the overlay has no route")
    assert "10.5.0.1/16 of docker0" in line


async def test_the_route_of_the_whole_network_goes_when_its_connected_twin_comes():
    """In IPv4 the older of the two is in force: left there, ours would cut docker0 off."""
    node = Node(UDP)
    await node.engine.apply(full=True)
    assert await node.routes() == [str(NETWORK)]
    node.link("docker0", "10.5.0.1/16")
    await node.engine.apply(full=True)
    assert await node.routes() == []


async def test_udp_carries_peers_that_are_in_the_way_of_something():
    """They are rows of a table that only packets for the overlay come to."""
    node = Node(UDP)
    node.link("lan0", "10.5.40.7/24")
    node.add(node.peer("10.5.40.0/24"))
    await node.engine.apply(full=True)
    assert not node.ignored
    assert await node.routes() == [str(NETWORK)]


async def test_an_own_subnet_that_overlaps_is_said_kept_and_said_to_be_over(caplog):
    """The containers live in it; only a bridge among them is in no one's way."""
    caplog.set_level("INFO")

    node = Node()
    node.link("docker0", "10.5.1.1/24", kind="bridge")
    await node.engine.apply(full=True)
    assert node.engine.report().own_overlap == ""
    index = node.link("lan0", "10.5.1.7/25")
    await node.engine.apply(full=True)
    assert "10.5.1.7/25 of lan0" in node.engine.report().own_overlap
    await node.engine.apply(full=True)
    node.netlink.meddle(Delete(Address(index=index, interface=IPv4Interface("10.5.1.7/25"))))
    await node.engine.apply(full=True)
    assert node.engine.report().own_overlap == ""
    (line,) = said(caplog, "this node's own subnet overlaps what")
    assert "restart pyflanneld" in line
    assert len(said(caplog, "this node's own subnet overlaps nothing")) == 1
