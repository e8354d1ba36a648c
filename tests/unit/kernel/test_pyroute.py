"""What goes through pyroute2: the look-up of a route."""

from ipaddress import IPv4Address

from pyflannel.kernel import pyroute, rtnl


def test_a_route_lookup_is_for_one_address() -> None:
    """All bits of it."""
    request = pyroute.look_up_route(IPv4Address("192.0.2.7"))
    assert request == rtnl.Request(
        26, 1, bytes.fromhex("02200000 00000000 00000000 08000100 c0000207")
    )
