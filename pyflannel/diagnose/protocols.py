"""One name for each protocol, for all names that tools use."""

from __future__ import annotations

from typing import Final

_PROTOCOLS: Final = {
    "1": "icmp",
    "4": "ipip",
    "6": "tcp",
    "17": "udp",
    "58": "ipv6-icmp",
    "icmpv6": "ipv6-icmp",
    "ipencap": "ipip",
    "ipv4": "ipip",
    "ip-in-ip": "ipip",
}
"""IANA's numbers, and the names in /etc/protocols of different distributions."""
_ECHO_REQUEST: Final = frozenset({"8", "128", "ping", "echo-request"})


def protocol(name: str) -> str:
    """A layer 4 protocol by the name that `diagnose.filter` uses."""
    return _PROTOCOLS.get(name, name)


def icmp_type(name: str) -> str:
    """A type of ICMP or ICMPv6."""
    return "echo-request" if name in _ECHO_REQUEST else name
