"""Which interface carries the overlay, and which addresses stand for this node on it.

(The matching rules; looking links, addresses and routes up is the caller's.)
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.core.ip import Family, IPAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalInterface:
    """The chosen underlay interface."""

    name: str
    index: int
    mtu: int
    address: IPv4Address | None = None
    """Interface address: what sockets bind to and tunnels use as their source."""
    address6: IPv6Address | None = None
    public_ip: IPv4Address | None = None
    """External address: what the lease publishes; the interface address unless `--public-ip`."""
    public_ipv6: IPv6Address | None = None

    def local(self, family: Family) -> IPAddress | None:
        """The interface address of one family."""
        return self.address if family is Family.V4 else self.address6

    def public(self, family: Family) -> IPAddress | None:
        """The published address of one family."""
        return self.public_ip if family is Family.V4 else self.public_ipv6
