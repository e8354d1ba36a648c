"""The bytes of an unsolicited neighbour advertisement, against RFC 4861 §4.4 and scapy."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr

from pyflannel.kernel.ndisc import advertisement

ADDRESS = IPv6Address("2001:db8::1")
MAC = "02:00:00:00:00:0a"


@pytest.mark.parametrize("router", [True, False])
def test_it_overrides_and_says_whether_this_node_is_a_router(router):
    message = advertisement(ADDRESS, MAC, router=router)
    expected = ICMPv6ND_NA(tgt=str(ADDRESS), R=int(router), S=0, O=1, cksum=0)
    assert message == bytes(expected / ICMPv6NDOptDstLLAddr(lladdr=MAC))
