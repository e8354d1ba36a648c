"""Which way the kernel would send a packet."""

from ipaddress import ip_address, ip_network

import pytest

from pyflannel.core.ip import IPAddress
from pyflannel.kernel.base import (
    RTN_BLACKHOLE,
    Route,
    Set,
)
from tests.contract.netlink.world import World

RTN_LOCAL = 2


class TestLookup:
    async def test_a_direct_neighbour_has_no_gateway(self, w: World) -> None:
        """The answer tells link and source, and is about the address itself."""
        for text, own in (("192.0.2.9", "192.0.2.1"), ("2001:db8::9", "2001:db8::1")):
            destination = ip_address(text)
            found = await w.netlink.route_lookup(destination)
            assert found is not None
            assert (found.gateway, found.oif) == (None, w.under.index)
            assert found.src == ip_address(own)
            assert found.dst == ip_network(text)

    async def test_others_have_one(self, w: World) -> None:
        """The longest prefix decides, then the lowest metric."""
        await w.done(
            Set(w.route("10.0.0.0/8", oif=w.under.index)),
            Set(w.route("10.5.7.0/24", "10.5.7.1", metric=9)),
            Set(w.route("10.5.7.0/24", "10.5.7.0")),
            Set(w.route("fd00:5:7::/64", "fd00:5:7::")),
        )
        for text, gateway, device, own in (
            ("10.5.7.9", "10.5.7.0", w.device, "10.5.0.0"),
            ("fd00:5:7::9", "fd00:5:7::", w.device6, "fd00:5::"),
        ):
            found = await w.netlink.route_lookup(ip_address(text))
            assert found is not None
            assert (found.gateway, found.oif) == (ip_address(gateway), device.index)
            assert found.src == ip_address(own)

    @pytest.mark.parametrize("text", ["203.0.113.1", "2001:db8:99::1"])
    async def test_an_unreachable_one_is_none(self, w: World, text: str) -> None:
        """Without a route, and with one that leads into a black hole."""
        destination: IPAddress = ip_address(text)
        assert await w.netlink.route_lookup(destination) is None
        await w.done(Set(Route(dst=ip_network(text), type=RTN_BLACKHOLE)))
        assert await w.netlink.route_lookup(destination) is None

    async def test_an_own_address_is_local(self, w: World) -> None:
        """Its route has the type `local`."""
        for text in ("192.0.2.1", "10.5.0.0", "2001:db8::1"):
            found = await w.netlink.route_lookup(ip_address(text))
            assert found is not None
            assert found.type == RTN_LOCAL
