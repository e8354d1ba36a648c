"""The pods' bridge after the node got another podCIDR."""

from __future__ import annotations

import asyncio
from ipaddress import ip_interface

import pytest

from pyflannel.kernel.base import Address
from pyflannel.node.cnibridge import BRIDGE, release_bridge
from pyflannel.testing.fakenetlink import FakeNetlink
from tests.support.overlay import key

FORMER, PRESENT = key(2, ipv6=True), key(9, ipv6=True)
GATEWAYS = ("10.5.2.1/24", "fd00:5:0:2::1/64")


def left(
    *addresses: str,
    name: str = BRIDGE,
    kind: str = "bridge",
    pods: int = 0,
    present=PRESENT,
) -> list[str]:
    """The addresses of a bridge afterwards."""

    async def main() -> list[str]:
        netlink = FakeNetlink()
        netlink.add_link("eth1", kind="veth")
        link = netlink.add_link(name, kind=kind)
        for number in range(pods):
            netlink.add_link(f"veth{number}", kind="veth", master=link.index)
        for text in addresses:
            netlink.add_address(Address(index=link.index, interface=ip_interface(text)))
        await release_bridge(netlink, FORMER, present)
        found = await netlink.addresses(index=link.index)
        return [str(a.interface) for a in found if not a.interface.ip.is_link_local]

    return asyncio.run(main())


def test_the_former_gateway_goes_in_both_families_and_nothing_else():
    others = ("10.5.2.1/25", "198.51.100.1/24", "10.5.9.1/24")
    assert left(*GATEWAYS, *others) == list(others)


def test_a_bridge_with_pods_keeps_it_and_they_are_named(caplog):
    assert left(*GATEWAYS, pods=2) == list(GATEWAYS)
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "10.5.2.0/24" in str(record.__dict__)


@pytest.mark.parametrize("other", [{"name": "br0"}, {"kind": "vxlan"}, {"kind": ""}])
def test_only_the_plugins_own_bridge_is_meant(other):
    assert left(*GATEWAYS, **other) == list(GATEWAYS)


def test_a_family_whose_subnet_is_the_same_is_left_alone():
    assert left(*GATEWAYS, present=key(2, ipv6=True)) == list(GATEWAYS)


def test_no_bridge_is_no_trouble(caplog):
    asyncio.run(release_bridge(FakeNetlink(), FORMER, PRESENT))
    assert caplog.records == []
