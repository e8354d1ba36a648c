"""Which addresses of a peer are asked."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.kind import Probed
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.probe.targets import targets

BOTH = (Family.V4, Family.V6)
LEASE = Lease(
    key=SubnetKey(IPv4Network("10.5.7.0/24"), IPv6Network("fd00:5:0:7::/64")),
    attrs=LeaseAttrs(public_ip=IPv4Address("192.0.2.7"), public_ipv6=IPv6Address("2001:db8::7")),
)


def test_with_a_tunnel_the_first_address_of_the_subnet_and_the_node_beside_it():
    v4, v6 = targets(LEASE, Probed.TUNNEL, BOTH)
    assert v4.overlay == (IPv4Address("10.5.7.0"), IPv4Address("10.5.7.1"))
    assert v4.underlay == IPv4Address("192.0.2.7")
    assert v6.overlay[0] == IPv6Address("fd00:5:0:7::")
    assert v6.underlay == IPv6Address("2001:db8::7")


def test_with_plain_routes_the_node_and_nothing_beside_it():
    (v4,) = targets(LEASE, Probed.NODE, (Family.V4,))
    assert (v4.overlay, v4.underlay) == ((IPv4Address("192.0.2.7"),), None)


def test_where_packets_are_not_ours_nothing():
    assert not list(targets(LEASE, Probed.NOTHING, BOTH))


def test_a_family_without_a_public_address_is_left_out():
    lease = Lease(key=LEASE.key, attrs=LeaseAttrs(public_ip=IPv4Address("0.0.0.0")))
    assert not list(targets(lease, Probed.TUNNEL, BOTH))


def test_every_backend_says_what_is_asked():
    said = {name: KINDS.get(name).probed for name in KINDS.names()}
    assert said == {
        "vxlan": Probed.TUNNEL,
        "udp": Probed.TUNNEL,
        "ipip": Probed.TUNNEL,
        "host-gw": Probed.NODE,
        "alloc": Probed.NOTHING,
        "extension": Probed.NOTHING,
    }
