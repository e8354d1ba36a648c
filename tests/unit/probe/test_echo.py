"""The text of an echo."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6EchoRequest

from pyflannel.core.ip import Family
from pyflannel.probe import echo

SECRET = b"12345678"


@pytest.mark.parametrize("size", [84, 85, 1450, 8950])
def test_a_request_is_what_another_reader_takes_for_one(size):
    message = echo.request(Family.V4, 77, SECRET, 65_537, size)
    assert len(message) == size - 20
    found = ICMP(message)
    assert (found.type, found.code, found.id, found.seq) == (8, 0, 77, 1)
    del found.chksum
    assert bytes(found) == message  # with the checksum worked out anew
    assert len(bytes(IP(bytes(IP(dst="192.0.2.1") / found)))) == size


def test_ipv6_leaves_the_checksum_to_the_kernel():
    message = echo.request(Family.V6, 77, SECRET, 3, 1_280)
    found = ICMPv6EchoRequest(message)
    assert (found.type, found.id, found.seq, len(message)) == (128, 77, 3, 1_240)


@pytest.mark.parametrize("family", list(Family))
def test_an_answer_is_known_by_the_secret_and_nothing_else_is_taken_for_one(family):
    request = echo.request(family, 77, SECRET, 70_000, 100)
    reply = bytes([echo.REPLY[family]]) + request[1:]
    assert echo.answer(family, reply, SECRET) == 70_000
    assert echo.answer(family, reply, b"another1") is None
    assert echo.answer(family, request, SECRET) is None
    assert all(echo.answer(family, reply[:cut], SECRET) is None for cut in range(20))
