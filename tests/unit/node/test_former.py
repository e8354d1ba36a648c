"""What a run with another network or subnet has left, on a kernel in memory."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.kernel.base import (
    NUD_STALE,
    RTN_BLACKHOLE,
    Address,
    Delete,
    IpipAttrs,
    KernelObject,
    LinkSpec,
    Neighbour,
    Route,
    Set,
    VxlanAttrs,
)
from pyflannel.node.former import remove_former
from tests.support.overlay import ME, Machine, config, key, mac

CONFIG = config({"Type": "vxlan"})
FORMER = SubnetEnv(network=IPv4Network("10.9.0.0/16"), subnet=IPv4Network("10.9.1.0/24"))
VIA = IPv4Address("192.0.2.7")


class Node:
    """A machine with flannel.1, and the objects of its former network beside others'."""

    def __init__(self, machine: Machine, device: int) -> None:
        self.machine, self.device = machine, device
        self.netlink, self.eth0 = machine.netlink, machine.eth0.index
        vtep = IPv4Address("10.9.2.0")
        self.ours: list[KernelObject] = [
            self.host("10.9.1.0"),
            Neighbour(index=device, ip=vtep, mac=mac(2)),
            Route(dst=IPv4Network("10.9.2.0/24"), gateway=vtep, oif=device, onlink=True),
            Route(dst=IPv4Network("10.9.3.0/24"), gateway=VIA, oif=self.eth0),
            Route(dst=IPv4Network("10.9.0.0/16"), oif=device),
            Route(dst=IPv4Network("10.9.1.0/24"), type=RTN_BLACKHOLE),
        ]
        self.others: list[KernelObject] = [
            # On our device, of no network of ours.
            Address(index=device, interface=IPv4Interface("172.31.0.1/32")),
            Route(dst=IPv4Network("172.31.0.0/24"), oif=device),
            Neighbour(index=device, ip=IPv4Address("10.9.7.7"), mac=mac(7), state=NUD_STALE),
            # In the former network, not of our making.
            Route(dst=IPv4Network("10.9.4.0/25"), gateway=VIA, oif=self.eth0),
            Route(dst=IPv4Network("10.9.4.0/24"), gateway=VIA, oif=self.eth0, metric=5),
            Route(dst=IPv4Network("10.9.6.0/24"), gateway=VIA, oif=self.eth0, protocol=12),
            Route(dst=IPv4Network("10.9.8.0/24"), gateway=VIA, oif=self.eth0, protocol=4),
            Route(dst=IPv4Network("10.9.9.0/24"), type=RTN_BLACKHOLE),
            Address(index=self.eth0, interface=IPv4Interface("10.9.77.1/32")),
            # The present network's.
            self.host("10.5.1.0"),
            Route(dst=IPv4Network("10.5.2.0/24"), gateway=VIA, oif=self.eth0),
            Neighbour(index=device, ip=IPv4Address("10.5.2.0"), mac=mac(2)),
        ]
        self.netlink.meddle(*map(Set, [*self.others, *self.ours]))

    def host(self, text: str) -> Address:
        return Address(index=self.device, interface=IPv4Interface(f"{text}/32"))


async def node() -> Node:
    machine = Machine()
    attrs = VxlanAttrs(vni=1, link=machine.eth0.index)
    link = await machine.netlink.create_link(
        LinkSpec(name="flannel.1", kind="vxlan", mac=mac(1), vxlan=attrs)
    )
    await machine.netlink.set_link(link.index, up=True)
    return Node(machine, link.index)


@pytest.mark.parametrize(
    ("former", "conf"),
    [
        (FORMER, CONFIG),
        (FORMER, replace(CONFIG, enable_ipv4=False)),
    ],
    ids=["another network", "family off"],
)
async def test_of_another_network_all_that_is_ours_goes_and_nothing_else(former, conf):
    made = await node()
    before = await made.machine.state()
    await remove_former(made.netlink, former, conf, key(ME), KINDS)
    assert await made.machine.state() == before - set(made.ours)
    assert set(made.others) <= before


@pytest.mark.parametrize(
    "former", [SubnetEnv(), replace(FORMER, network=CONFIG.network, subnet=key(ME).v4)]
)
async def test_without_a_change_nothing_is_even_looked_at(former):
    made = await node()
    made.netlink.calls.clear()
    await remove_former(made.netlink, former, CONFIG, key(ME), KINDS)
    assert not made.netlink.calls


async def test_of_another_subnet_the_blackhole_goes():
    """The rest lies in the present network; the backend sweeps it when it knows the leases."""
    made = await node()
    before = await made.machine.state()
    conf = replace(CONFIG, network=FORMER.network)
    hole = Route(dst=IPv4Network("10.9.1.0/24"), type=RTN_BLACKHOLE)
    own = SubnetKey(IPv4Network("10.9.1.0/24"))
    await remove_former(made.netlink, FORMER, conf, own, KINDS)
    assert await made.machine.state() == before
    await remove_former(made.netlink, FORMER, conf, SubnetKey(IPv4Network("10.9.40.0/24")), KINDS)
    assert await made.machine.state() == before - {hole}


async def test_where_the_two_networks_overlap_the_present_one_counts():
    made = await node()
    before = await made.machine.state()
    conf = replace(CONFIG, network=IPv4Network("10.9.2.0/23"))
    await remove_former(made.netlink, FORMER, conf, SubnetKey(IPv4Network("10.9.2.128/25")), KINDS)
    gone = before - await made.machine.state()
    assert {str(r.dst) for r in gone if isinstance(r, Route)} == {"10.9.0.0/16", "10.9.1.0/24"}


async def test_what_cannot_be_removed_is_said_and_the_rest_goes(caplog):
    made = await node()
    made.netlink.fail_next("route_delete", 1, match="10.9.3.0/24")
    await remove_former(made.netlink, FORMER, CONFIG, key(ME), KINDS)
    left = await made.netlink.routes(Family.V4)
    assert IPv4Network("10.9.3.0/24") in {route.dst for route in left}
    assert not set(made.ours) & set(await made.netlink.addresses())
    made.netlink.fail_next("links", 5)
    await remove_former(made.netlink, FORMER, CONFIG, key(ME), KINDS)
    assert "not removed" in caplog.text
    assert "cannot be listed" in caplog.text


async def test_a_delete_of_what_is_gone_is_no_failure(caplog):
    made = await node()
    made.netlink.meddle(*map(Delete, made.ours))
    await remove_former(made.netlink, FORMER, CONFIG, key(ME), KINDS)
    assert caplog.text == ""


async def test_of_ipip_too():
    """Its routes lead through the tunnel, to the peers' own addresses."""
    machine = Machine()
    attrs = IpipAttrs(local=IPv4Address("192.0.2.1"))
    spec = LinkSpec(name="flannel.ipip", kind="ipip", ipip=attrs)
    link = await machine.netlink.create_link(spec)
    await machine.netlink.set_link(link.index, up=True)
    before = await machine.state()
    for thing in (
        Address(index=link.index, interface=IPv4Interface("10.9.1.0/32")),
        Route(dst=IPv4Network("10.9.2.0/24"), gateway=VIA, oif=link.index, onlink=True),
        # Of a peer on the same link, with DirectRouting.
        Route(dst=IPv4Network("10.9.3.0/24"), gateway=VIA, oif=machine.eth0.index, onlink=True),
    ):
        machine.netlink.meddle(Set(thing))
    await remove_former(machine.netlink, FORMER, config({"Type": "ipip"}), key(ME), KINDS)
    assert await machine.state() == before
