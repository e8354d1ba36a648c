"""Reading /proc/net/udp: who is in the way of a port."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.kernel.udp import socket_inodes

V4 = """\
   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  390: 010200C0:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 11
  391: 00000000:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12
  392: 020200C0:205D 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 13
  393: 010200C0:205E 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 14
"""
V6 = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
  391: 00000000000000000000000000000000:205D ::0 07 0:0 0:0 0 0 0 22
  392: B80D0120000000000000000001000000:205D ::0 07 0:0 0:0 0 0 0 23
"""


@pytest.mark.parametrize(
    ("table", "address", "port", "inodes"),
    [
        (V4, IPv4Address("192.0.2.1"), 8285, {11, 12}),
        (V4, IPv4Address("192.0.2.9"), 8285, {12}),
        (V4, IPv4Address("192.0.2.1"), 8286, {14}),
        (V4, IPv4Address("192.0.2.1"), 53, set()),
        (V6, IPv4Address("192.0.2.1"), 8285, {22}),
        (V6, IPv6Address("2001:db8::1"), 8285, {22, 23}),
        ("header only\n", IPv4Address("192.0.2.1"), 8285, set()),
    ],
)
def test_the_address_itself_and_any_are_in_the_way(
    table: str, address: IPv4Address | IPv6Address, port: int, inodes: set[int]
) -> None:
    """A socket on another address or port is not."""
    assert socket_inodes(table, address, port) == inodes
