"""Addresses of links, and what goes with them."""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    RT_SCOPE_LINK,
    RTPROT_KERNEL,
    Address,
    Delete,
    Neighbour,
    Set,
)
from tests.contract.netlink.world import MAC, World, address


class TestAddresses:
    async def test_addresses_of_both_families_are_listed(self, w: World) -> None:
        """IPv4 before IPv6; of all links or of one."""
        everything = await w.netlink.addresses()
        assert [a.interface.version for a in everything] == sorted(
            a.interface.version for a in everything
        )
        assert address(w.under, "192.0.2.1/24") in everything
        of_one = await w.netlink.addresses(index=w.device.index)
        assert of_one[0] == address(w.device, "10.5.0.0/32")
        # The link-local one that every device with a MAC gets when it goes up.
        assert of_one[1:] == [address(w.device, "fe80::c00:ff:fe00:1/64", scope=RT_SCOPE_LINK)]

    async def test_addresses_of_a_missing_link_are_none(self, w: World) -> None:
        """An empty list, not an error."""
        assert await w.netlink.addresses(index=99) == []

    async def test_an_address_set_twice_is_there_once(self, w: World) -> None:
        """Set is idempotent."""
        one = address(w.device, "10.5.9.0/32")
        await w.done(Set(one), Set(one))
        await w.done(Set(one))
        assert (await w.netlink.addresses(index=w.device.index)).count(one) == 1

    async def test_ipv4_addresses_differ_by_their_prefix_length(self, w: World) -> None:
        """Both stand side by side, and each is deleted by itself."""
        host, net = address(w.device, "10.5.9.0/32"), address(w.device, "10.5.9.0/24")
        await w.done(Set(host), Set(net))
        found = await w.netlink.addresses(index=w.device.index)
        assert host in found
        assert net in found
        await w.done(Delete(net))
        found = await w.netlink.addresses(index=w.device.index)
        assert host in found
        assert net not in found

    async def test_an_ipv6_address_has_one_prefix_length(self, w: World) -> None:
        """Setting it with another one replaces it, though the kernel's replace would not."""
        wide, host = address(w.device6, "fd00:9::1/64"), address(w.device6, "fd00:9::1/128")
        await w.done(Set(wide))
        await w.done(Set(host))
        found = await w.netlink.addresses(index=w.device6.index)
        assert host in found
        assert wide not in found
        assert await w.routes("fd00:9::/64") == []

    async def test_an_ipv4_address_with_another_scope_is_replaced(self, w: World) -> None:
        """The kernel's replace would leave the scope."""
        await w.done(Set(address(w.device, "10.5.9.0/32", scope=RT_SCOPE_LINK)))
        wanted = address(w.device, "10.5.9.0/32")
        await w.done(Set(wanted))
        found = await w.netlink.addresses(index=w.device.index)
        assert [a for a in found if a.interface == wanted.interface] == [wanted]

    async def test_deleting_an_absent_address_succeeds(self, w: World) -> None:
        """Absent from the link, with another length, or with the link itself."""
        await w.done(
            Delete(address(w.device, "10.5.77.0/32")),
            Delete(address(w.device, "10.5.0.0/24")),
            Delete(address(w.device6, "fd00:5::/64")),
            Delete(Address(index=99, interface=ip_interface("10.5.0.0/32"))),
        )
        assert address(w.device, "10.5.0.0/32") in await w.netlink.addresses()
        assert address(w.device6, "fd00:5::/128") in await w.netlink.addresses()

    async def test_an_address_for_a_missing_link_is_refused(self, w: World) -> None:
        """As a missing device."""
        lost = Address(index=99, interface=ip_interface("10.5.0.0/32"))
        refusal = await w.refusal(Set(lost))
        assert isinstance(refusal, DeviceUnavailable)
        assert refusal.errno == errno.ENODEV

    async def test_an_address_brings_the_route_to_its_network(self, w: World) -> None:
        """Of protocol `kernel`; an IPv4 host address brings none, an IPv6 one does."""
        (v4,) = await w.routes("192.0.2.0/24")
        assert (v4.oif, v4.protocol, v4.scope) == (w.under.index, RTPROT_KERNEL, RT_SCOPE_LINK)
        assert v4.src == IPv4Address("192.0.2.1")
        (v6,) = await w.routes("2001:db8::/64")
        assert (v6.oif, v6.protocol, v6.metric) == (w.under.index, RTPROT_KERNEL, 256)
        assert await w.routes("10.5.0.0/32") == []
        (host,) = await w.routes("fd00:5::/128")
        assert host.protocol == RTPROT_KERNEL
        await w.done(Delete(address(w.under, "192.0.2.1/24")))
        await w.done(Delete(address(w.under, "2001:db8::1/64")))
        assert await w.routes("192.0.2.0/24") == []
        assert await w.routes("2001:db8::/64") == []

    async def test_the_last_ipv4_address_takes_routes_and_neighbours_along(self, w: World) -> None:
        """Only IPv4 ones; as long as there is another address they stay."""
        index = w.device.index
        v6_route = replace(w.route("fd00:5:7::/64"), oif=index)
        v4 = Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)
        v6 = Neighbour(index=index, ip=IPv6Address("fd00:5:7::"), mac=MAC)
        second = address(w.device, "10.5.9.0/32")
        await w.done(
            Set(second),
            Set(w.route("10.5.7.0/24", "10.5.7.0")),
            Set(v6_route),
            Set(v4),
            Set(v6),
        )
        await w.done(Delete(second))
        assert len(await w.routes("10.5.7.0/24")) == 1
        assert await w.netlink.neighbours(index, Family.V4) == [v4]
        await w.done(Delete(address(w.device, "10.5.0.0/32")))
        assert await w.routes("10.5.7.0/24") == []
        assert await w.netlink.neighbours(index, Family.V4) == []
        assert len(await w.routes("fd00:5:7::/64")) == 1
        assert await w.netlink.neighbours(index, Family.V6) == [v6]

    async def test_routes_with_a_source_go_with_its_address(self, w: World) -> None:
        """IPv4: a route that prefers an address is removed with it."""
        second = address(w.device, "10.5.9.0/32")
        route = w.route("10.5.7.0/24", "10.5.7.0", src=IPv4Address("10.5.9.0"))
        await w.done(Set(second), Set(route))
        assert await w.routes("10.5.7.0/24") == [route]
        await w.done(Delete(second))
        assert await w.routes("10.5.7.0/24") == []

    async def test_secondary_addresses_go_with_the_first_of_their_network(self, w: World) -> None:
        """IPv4's promote_secondaries is off by default."""
        first, second = address(w.under, "192.0.2.1/24"), address(w.under, "192.0.2.5/24")
        await w.done(Set(second))
        await w.done(Delete(second))
        assert first in await w.netlink.addresses()
        await w.done(Set(second))
        await w.done(Delete(first))
        assert second not in await w.netlink.addresses()
