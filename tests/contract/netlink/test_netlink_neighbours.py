"""Neighbours of a link."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    NUD_PERMANENT,
    Delete,
    FdbEntry,
    Neighbour,
    Set,
)
from tests.contract.netlink.world import MAC, OTHER_MAC, World

NUD_REACHABLE = 2


class TestNeighbours:
    @pytest.mark.parametrize("ip", ["10.5.7.0", "fd00:5:7::"])
    async def test_a_neighbour_is_set_replaced_and_deleted(self, w: World, ip: str) -> None:
        """Permanent unless said otherwise; another MAC takes the place of the first."""
        family = Family(ip_address(ip).version)
        index = w.device.index
        one = Neighbour(index=index, ip=ip_address(ip), mac=MAC)
        two = replace(one, mac=OTHER_MAC)
        await w.done(Set(one))
        assert await w.netlink.neighbours(index, family) == [one]
        assert one.state == NUD_PERMANENT
        await w.done(Set(two))
        assert await w.netlink.neighbours(index, family) == [two]
        await w.done(Set(replace(two, state=NUD_REACHABLE)))
        (found,) = await w.netlink.neighbours(index, family)
        assert found.state == NUD_REACHABLE
        await w.done(Set(one))
        assert await w.netlink.neighbours(index, family) == [one]
        await w.done(Delete(one), Delete(one))
        assert await w.netlink.neighbours(index, family) == []

    async def test_neighbours_are_those_of_one_link_and_family(self, w: World) -> None:
        """And of a missing link there are none."""
        one = Neighbour(index=w.device.index, ip=IPv4Address("10.5.7.0"), mac=MAC)
        two = Neighbour(index=w.under.index, ip=IPv4Address("192.0.2.7"), mac=MAC)
        six = Neighbour(index=w.device.index, ip=IPv6Address("fd00:5:7::"), mac=MAC)
        await w.done(Set(one), Set(two), Set(six))
        assert await w.netlink.neighbours(w.device.index, Family.V4) == [one]
        assert await w.netlink.neighbours(w.under.index, Family.V4) == [two]
        assert await w.netlink.neighbours(w.device.index, Family.V6) == [six]
        assert await w.netlink.neighbours(99, Family.V4) == []

    async def test_a_changed_mac_of_the_link_flushes_its_neighbours(self, w: World) -> None:
        """Permanent ones as well; routes and FDB stay."""
        index = w.device.index
        fdb = FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7"))
        await w.done(
            Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)),
            Set(Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC)),
            Set(w.route("10.5.7.0/24", "10.5.7.0")),
            Set(fdb),
        )
        await w.netlink.set_link(index, mac="0e:00:00:00:99:99")
        assert await w.netlink.neighbours(index, Family.V4) == []
        assert await w.netlink.neighbours(index, Family.V6) == []
        assert len(await w.routes("10.5.7.0/24")) == 1
        assert await w.netlink.fdb(index) == [fdb]
