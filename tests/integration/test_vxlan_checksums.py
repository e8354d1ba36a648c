"""vxlan's checksum offload on real devices: kept off, and what leaves the node then."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import IPAddress
from pyflannel.core.packet import checksum
from pyflannel.kernel.knock import PORT as PROBED
from pyflannel.kernel.knock import SIZE, Knock
from tests.integration.backend_nodes import Node, Underlay, eventually, run
from tests.support.netns import in_new_netns
from tests.support.overlay import config

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

HEALED_WITHIN_S = 2.0
PORT = 7000
TEXT = b"the checksum of this datagram is computed before the tunnel, or behind it"


@pytest.fixture
def underlay() -> Iterator[Underlay]:
    with Underlay() as made:
        yield made


def pair(
    underlay: Underlay, state: Path, *, ipv6: bool = False, **settings: object
) -> tuple[Node, Node]:
    return underlay.pair(config({"Type": "vxlan", **settings}, ipv6=ipv6), state)


def offload(node: Node) -> bool:
    return node.do(node.netlink.tx_checksum("flannel.1"))


def losing_rules(target: str, source: str, port: int, size: int) -> str:
    """Rules for the receiver; they stand for the fault.

    What had no checksum when it got to the tunnel is lost behind it. In the place of a checksum
    that is still to be computed there is the sum of the pseudo header (include/linux/skbuff.h,
    CHECKSUM_PARTIAL).
    """
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    pseudo = addresses + struct.pack("!HH", socket.IPPROTO_UDP, 8 + size)
    rule = f'iifname "flannel.1" udp dport {port} udp checksum {~checksum(pseudo) & 0xFFFF} drop'
    chain = f"chain in {{ type filter hook prerouting priority 0; {rule}; }};"
    return f"table inet fault {{ {chain} }}"


def lose_open_checksums(node: Node, target: str, source: str, port: int, size: int) -> None:
    """Puts those rules in force."""
    run("ip", "netns", "exec", node.ns, "nft", losing_rules(target, source, port, size))


def sends(a: Node, b: Node) -> bool:
    """Whether a datagram gets from container to container."""

    async def open_(address: str, port: int) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))
        return sock

    with b.do(open_("10.5.2.1", PORT)) as there, a.do(open_("10.5.1.1", 0)) as here:
        there.settimeout(0.3)
        here.sendto(TEXT, ("10.5.2.1", PORT))
        try:
            return there.recv(1000) == TEXT
        except TimeoutError:
            return False


def test_off_it_is_kept_off_and_nothing_leaves_without_a_checksum(
    underlay: Underlay, tmp_path: Path
) -> None:
    """After another program's `ethtool -K`, and on a device that is made again."""
    a, b = pair(underlay, tmp_path, TxChecksumOffload=False)
    lose_open_checksums(b, "10.5.2.1", "10.5.1.1", PORT, len(TEXT))
    assert not offload(a)
    assert sends(a, b)
    a.do(a.netlink.set_tx_checksum("flannel.1", on=True))
    eventually(lambda: not offload(a), HEALED_WITHIN_S, "off again")
    a.ip("link", "del", "flannel.1")
    eventually(lambda: a.pings(b) and not offload(a), HEALED_WITHIN_S, "off on another device")
    assert sends(a, b)
    assert a.driver.stats.repaired["offload"] == 1


def test_on_the_kernel_leaves_checksums_to_those_behind_the_tunnel(
    underlay: Underlay, tmp_path: Path
) -> None:
    """So that is what the test above is about, and what upstream does."""
    a, b = pair(underlay, tmp_path)
    assert offload(a)
    assert sends(a, b)
    lose_open_checksums(b, "10.5.2.1", "10.5.1.1", PORT, len(TEXT))
    assert not sends(a, b)


@pytest.mark.parametrize("ipv6", [False, True])
def test_both_datagrams_of_the_probe_are_refused_and_heard(
    ipv6: bool, underlay: Underlay, tmp_path: Path
) -> None:
    a, b = pair(underlay, tmp_path, ipv6=ipv6)
    first = b.key.v6 if ipv6 else b.key.v4
    assert first is not None
    eventually(lambda: a.pings(b, ipv6=ipv6), 3, "first ping")
    for written in (False, True):
        assert a.do(knock(first.network_address, written=written))


def test_the_probe_hears_which_of_its_datagrams_is_lost(underlay: Underlay, tmp_path: Path) -> None:
    """And with the offload off none is."""
    a, b = pair(underlay, tmp_path)
    lose_open_checksums(b, "10.5.2.0", "10.5.1.0", PROBED, SIZE)
    target = IPv4Address("10.5.2.0")
    assert not a.do(knock(target, written=False))
    assert a.do(knock(target, written=True))
    a.do(a.netlink.set_tx_checksum("flannel.1", on=False))
    assert a.do(knock(target, written=False))


async def knock(target: IPAddress, *, written: bool) -> bool:
    """Whether one is answered within a second."""
    with contextlib.closing(Knock(target)) as made:
        assert made.send(written=written) == 0
        for _ in range(20):
            await asyncio.sleep(0.05)
            if made.answered():
                return True
        return False


def test_without_a_way_or_a_socket_the_probe_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing stays open: a node asks again and again."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", partial(refuse, socket.socket, kind))
            with pytest.raises(KernelError, match=r"10\.5\.2\.0"):
                Knock(IPv4Address("10.5.2.0"))
    assert in_new_netns(without_a_way) == "ENETUNREACH"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def refuse(make: Callable[..., socket.socket], kind: int, *given: int) -> socket.socket:
    if given[1] & 0xF == kind:
        raise OSError(errno.EMFILE, "too many")
    return make(*given)


def without_a_way() -> str:
    try:
        Knock(IPv4Address("10.5.2.0"))
    except KernelError as error:
        return errno.errorcode[error.errno]
    return ""
