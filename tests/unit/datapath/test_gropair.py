"""The test frame of the SRv6 way."""

from __future__ import annotations

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from pyflannel.datapath.ebpf import gropair
from pyflannel.datapath.ebpf.gropair import GroPair

PAIR = GroPair(4, 5, bytes.fromhex("02000000aa00"), bytes.fromhex("02000000aa01"))
TOKEN = bytes(range(12))


def test_the_test_frame_is_an_ethernet_frame_inside_ipv6():
    frame = Ether(gropair.test_frame(PAIR, TOKEN))
    assert (frame.dst, frame.src) == ("02:00:00:00:aa:00", "02:00:00:00:aa:01")
    packet = frame[IPv6]
    assert packet.nh == 143  # Ethernet, RFC 8986 §9.1
    assert (packet.src, packet.dst) == (str(gropair.STRIP_FROM), str(gropair.STRIP_TO))
    assert packet.plen == len(bytes(packet.payload))
    inside = Ether(bytes(packet.payload))
    assert bytes(inside)[:12] == TOKEN
    assert inside[Dot1Q].type == gropair.TEST_ETHERTYPE
