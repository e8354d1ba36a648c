"""The network config: the JSON an operator puts into etcd, parsed once, validated, derived values in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.core.ip import Family, IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A valid network config with every default filled in."""

    network: IPv4Network | None = None
    subnet_len: int = 0
    subnet_min: IPv4Address = IPv4Address(0)
    subnet_max: IPv4Address = IPv4Address(0)
    ipv6_network: IPv6Network | None = None
    ipv6_subnet_len: int = 0
    ipv6_subnet_min: IPv6Address = IPv6Address(0)
    ipv6_subnet_max: IPv6Address = IPv6Address(0)
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    enable_nftables: bool = False
    backend_type: str = "udp"
    backend: Mapping[str, object] = field(default_factory=dict)
    """The whole `Backend` object as decoded JSON; each backend reads its own keys from it."""

    @property
    def families(self) -> tuple[Family, ...]:
        """The enabled families, IPv4 first."""
        return tuple(
            family
            for family, on in ((Family.V4, self.enable_ipv4), (Family.V6, self.enable_ipv6))
            if on
        )

    def network_of(self, family: Family) -> IPNetwork | None:
        """The cluster network of one family."""
        return self.network if family is Family.V4 else self.ipv6_network
