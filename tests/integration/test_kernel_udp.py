"""The overlay's UDP socket, on the loopback."""

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel import udp
from pyflannel.kernel.udp import IP_PMTUDISC_PROBE, adopt_udp, open_udp

LOOPBACK = IPv4Address("127.0.0.1")
_IP_MTU_DISCOVER = 10


def test_the_socket_is_bound_non_blocking_and_has_room() -> None:
    """Both buffers; the kernel doubles what it grants (without rights it grants less)."""
    with open_udp(LOOPBACK, 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getblocking() is False
        assert sock.get_inheritable() is False
        privileged = os.geteuid() == 0
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            granted = sock.getsockopt(socket.SOL_SOCKET, option)
            assert granted >= (2 * udp.BUFFER_BYTES if privileged else 200_000)


def test_path_mtu_discovery_can_be_chosen() -> None:
    """By default it is the system's."""
    with open_udp(LOOPBACK, 0, mtu_discover=udp.IP_PMTUDISC_DO) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER) == udp.IP_PMTUDISC_DO
    with open_udp(LOOPBACK, 0) as sock:
        assert sock.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER) == udp.IP_PMTUDISC_WANT


def test_a_port_in_use_is_unavailable_and_the_holder_named() -> None:
    """As far as /proc tells; here it is ourselves."""
    with open_udp(LOOPBACK, 0) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(DeviceUnavailable) as refusal:
            open_udp(LOOPBACK, port)
        assert refusal.value.errno == errno.EADDRINUSE
        assert f"udp port {port} on 127.0.0.1 is in use" in str(refusal.value)
        assert f"(pid {os.getpid()})" in str(refusal.value)
    assert udp.find_holder(LOOPBACK, port) == ""


def test_an_address_that_is_not_ours_is_unavailable() -> None:
    """As when the external interface lost it."""
    with pytest.raises(DeviceUnavailable, match=r"192\.0\.2\.99") as refusal:
        open_udp(IPv4Address("192.0.2.99"), 0)
    assert refusal.value.errno == errno.EADDRNOTAVAIL


def test_ipv6_works_alike() -> None:
    """Bound to its own family only."""
    with open_udp(IPv6Address("::1"), 0, mtu_discover=udp.IP_PMTUDISC_DO) as sock:
        assert sock.family == socket.AF_INET6
        port = sock.getsockname()[1]
        with pytest.raises(DeviceUnavailable, match="in use by"):
            open_udp(IPv6Address("::1"), port)


def test_a_socket_of_an_earlier_process_is_adopted_if_it_fits() -> None:
    with open_udp(LOOPBACK, 0) as first:
        port = first.getsockname()[1]
        first.setsockopt(socket.IPPROTO_UDP, 104, 1)
        kept = [os.dup(first.fileno()) for _ in range(3)]
    assert (
        adopt_udp(
            kept[0], LOOPBACK, port + 1 if port < 65535 else 1, mtu_discover=IP_PMTUDISC_PROBE
        )
        is None
    )
    assert (
        adopt_udp(kept[1], IPv4Address("127.0.0.2"), port, mtu_discover=IP_PMTUDISC_PROBE) is None
    )
    adopted = adopt_udp(kept[2], LOOPBACK, port, mtu_discover=IP_PMTUDISC_PROBE)
    assert adopted is not None
    with adopted:
        assert adopted.getblocking() is False
        assert adopted.getsockopt(socket.IPPROTO_UDP, 104) == 0
        assert adopted.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER) == IP_PMTUDISC_PROBE
    read, write = os.pipe()
    os.close(write)
    assert adopt_udp(read, LOOPBACK, port, mtu_discover=IP_PMTUDISC_PROBE) is None
