"""The packets that are written whole."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from pyflannel.core.packet import checksum
from pyflannel.kernel.knock import PORT, datagram


@pytest.mark.parametrize(
    ("source", "target", "header"), [("10.5.1.0", "10.5.2.0", 20), ("fd00:5:1::", "fd00:5:2::", 40)]
)
@pytest.mark.parametrize("size", [0, 1, 32])
def test_a_datagram_is_whole_with_its_checksum(source: str, target: str, header: int, size: int):
    packet = datagram(source, 40_000, ip_address(target), bytes(range(size)))
    assert len(packet) == header + 8 + size
    addresses = packet[12:20] if header == 20 else packet[8:40]
    assert addresses == ip_address(source).packed + ip_address(target).packed
    sender, port, length, value = struct.unpack_from("!HHHH", packet, header)
    assert (sender, port, length) == (40_000, PORT, 8 + size)
    assert value
    # RFC 768: the sum over pseudo header and datagram, checksum included, is all ones.
    assert checksum(addresses + struct.pack("!HH", 17, length) + packet[header:]) == 0


def test_a_checksum_of_zero_is_written_as_all_ones():
    """Zero would say that there is none (RFC 768)."""
    zeros = datagram("10.5.1.0", 40_000, ip_address("10.5.2.0"), bytes(2))
    # What fills the sum up to all ones, whose complement is zero.
    filling = zeros[26:28]
    packet = datagram("10.5.1.0", 40_000, ip_address("10.5.2.0"), filling)
    assert packet[26:28] == b"\xff\xff"
