"""A bolt before a UDP port, and the socket that it does not count for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.kernel import xfrm
from pyflannel.kernel.udp import aside, can_step_aside, open_udp
from tests.contract.datapath_rigs import Wire

pytestmark = [pytest.mark.root, pytest.mark.guest]

PORT = 8285


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    try:
        with made.node.entered():
            yield made
    finally:
        made.close()


@pytest.fixture
def ours(wire: Wire) -> Iterator[IPv4Address]:
    return wire.addresses["ours"]


@pytest.fixture
def gets(wire: Wire) -> Callable[[socket.socket, bytes], bool]:
    """Whether a socket gets a datagram of a peer's before one to another port, sent after it."""

    def ask(sock: socket.socket, data: bytes) -> bool:
        target = str(wire.addresses["ours"])
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as later:
            later.bind((target, 0))
            later.settimeout(5)
            with wire.other.entered():
                peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with peer:
                peer.sendto(data, (target, PORT))
                peer.sendto(data, later.getsockname())
            assert later.recv(100) == data
        try:
            return sock.recv(100, socket.MSG_DONTWAIT) == data
        except BlockingIOError:
            return False

    return ask


def test_what_is_bolted_gets_nothing_but_for_the_exempt_socket(
    ours: IPv4Address, gets: Callable[[socket.socket, bytes], bool]
) -> None:
    with open_udp(ours, PORT) as sock:
        assert gets(sock, b"open")
        xfrm.bolt(ours, PORT)
        assert not gets(sock, b"bolted")
        xfrm.exempt(sock, ours, PORT)
        assert gets(sock, b"exempt")


def test_a_bolt_is_known_again_and_the_policies_of_others_are_not_it(
    wire: Wire, ours: IPv4Address
) -> None:
    assert xfrm.policies() == []
    xfrm.bolt(ours, PORT)
    wire.node.run(
        "ip", "xfrm", "policy", "add", "dir", "in", "dst", f"{ours}/32", "proto", "udp",
        "dport", "9", "action", "block", "priority", "1718378862",
    )  # fmt: skip
    wire.node.run("ip", "xfrm", "policy", "add", "dir", "in", "dst", f"{ours}/32")
    wire.node.run("ip", "xfrm", "policy", "add", "dir", "out", "dst", "192.0.2.9/32")
    found = xfrm.policies()
    assert {each.bolted for each in found} == {(ours, PORT), (ours, 9), None}
    assert len(found) == 3
    with pytest.raises(KernelError) as refusal:
        xfrm.bolt(ours, PORT)
    assert refusal.value.errno == errno.EEXIST
    (bolt,) = (each for each in found if each.bolted == (ours, PORT))
    xfrm.delete(bolt)
    xfrm.delete(bolt)
    assert {each.bolted for each in xfrm.policies()} == {(ours, 9), None}
    # The same to another's eyes.
    assert "dport 8285" not in wire.node.run("ip", "xfrm", "policy")


def test_policies_can_be_there_where_the_kernel_listens_for_them(ours: IPv4Address) -> None:
    xfrm.bolt(ours, PORT)
    assert xfrm.is_loaded()


def test_sockets_step_aside_for_each_other(ours: IPv4Address) -> None:
    """One bound to the device stands for the kernel's own, which `open_udp` then is beside."""
    assert can_step_aside()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernels:
        kernels.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"under0\0")
        kernels.bind((str(ours), PORT))
        with pytest.raises(KernelError, match="in use"):
            open_udp(ours, PORT)
        open_udp(ours, PORT, beside_fou=True).close()
    with open_udp(ours, PORT) as sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernels:
        kernels.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"under0\0")
        with pytest.raises(OSError, match="in use"):
            kernels.bind((str(ours), PORT))
        with aside(sock):
            kernels.bind((str(ours), PORT))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16) == b""
