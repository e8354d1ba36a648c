"""The network config that an operator puts into etcd: its values, and how they are written.

`configparse.py` makes one from its JSON. `effective` prints one with nothing left to defaults, and
parsing what it printed gives the same config again.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeVar

from pyflannel.core.ip import Family, IPNetwork, spell_ip
from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S
from pyflannel.core.settings import Settings
from pyflannel.records import dataclass

UNSET_V4: Final = IPv4Address(0)
"""Upstream's "not given" for `SubnetMin` and `SubnetMax`, also when written as `0.0.0.0`."""
UNSET_V6: Final = IPv6Address(0)

DEFAULT_BACKEND: Final = "udp"
"""What upstream's code takes when `Backend` is absent; its documentation says vxlan."""

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A valid network config with every default filled in.

    The values of a family that is not enabled are the defaults below, whatever the text says.
    """

    network: IPv4Network | None = None
    """Cluster prefix, host bits masked off."""
    subnet_len: int = 0
    """Prefix length of a node's subnet; 0 where the store does not allot by it (Kubernetes)."""
    subnet_min: IPv4Address = UNSET_V4
    """First subnet that may be leased, by its address."""
    subnet_max: IPv4Address = UNSET_V4
    """Last subnet that may be leased; below `subnet_min` if the operator said so: then none may."""
    ipv6_network: IPv6Network | None = None
    ipv6_subnet_len: int = 0
    ipv6_subnet_min: IPv6Address = UNSET_V6
    ipv6_subnet_max: IPv6Address = UNSET_V6
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    enable_nftables: bool = False
    """Traffic rules through nftables instead of iptables."""
    lease_ttl: int = DEFAULT_LEASE_TTL_S
    """Seconds for which a subnet is leased unless it is renewed. Not upstream's: its nodes ignore
    the key and lease for a day."""
    backend_type: str = DEFAULT_BACKEND
    """Canonical, lower case."""
    backend: Settings = Settings()
    """What the type reads of `Backend`; `settings` gives it as what it is."""

    def settings(self, of: type[S]) -> S:
        """The backend's settings, for the backend itself, which knows their class.

        Raises:
            TypeError: they are another kind's, a defect of the caller.
        """
        if not isinstance(self.backend, of):
            raise TypeError(f"settings of {self.backend_type} are not {of.__name__}")
        return self.backend

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

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The cluster networks of the enabled families, IPv4 first."""
        found = (self.network_of(family) for family in self.families)
        return tuple(network for network in found if network is not None)

    def allots_differently(self, other: NetworkConfig) -> bool:
        """Whether the other config is the same overlay and differs only in how it is divided.

        Such a change matters to the choice of a subnet alone: not to devices, routes or rules.
        """
        return self != other and self == replace(
            other,
            lease_ttl=self.lease_ttl,
            subnet_len=self.subnet_len,
            subnet_min=self.subnet_min,
            subnet_max=self.subnet_max,
            ipv6_subnet_len=self.ipv6_subnet_len,
            ipv6_subnet_min=self.ipv6_subnet_min,
            ipv6_subnet_max=self.ipv6_subnet_max,
        )


def effective(config: NetworkConfig) -> dict[str, object]:
    """The config under upstream's key names with nothing left to defaults; plain JSON values.

    Keys of a family that is not enabled are left out.
    """
    values: dict[str, object] = {
        "EnableIPv4": config.enable_ipv4,
        "EnableIPv6": config.enable_ipv6,
        "EnableNFTables": config.enable_nftables,
        "LeaseTTL": config.lease_ttl,
    }
    if config.enable_ipv4 and config.network is not None:
        values["Network"] = spell_network(config.network)
        if config.subnet_len:
            values |= {
                "SubnetLen": config.subnet_len,
                "SubnetMin": spell_ip(config.subnet_min),
                "SubnetMax": spell_ip(config.subnet_max),
            }
    if config.enable_ipv6 and config.ipv6_network is not None:
        values["IPv6Network"] = spell_network(config.ipv6_network)
        if config.ipv6_subnet_len:
            values |= {
                "IPv6SubnetLen": config.ipv6_subnet_len,
                "IPv6SubnetMin": spell_ip(config.ipv6_subnet_min),
                "IPv6SubnetMax": spell_ip(config.ipv6_subnet_max),
            }
    values["Backend"] = {"Type": config.backend_type, **config.backend.encode()}
    return values


def subnet_count(config: NetworkConfig, family: Family = Family.V4) -> int:
    """How many subnets may be leased between the family's Min and Max, both included."""
    if config.network_of(family) is None:
        return 0
    if family is Family.V4:
        low, high, length = int(config.subnet_min), int(config.subnet_max), config.subnet_len
    else:
        low, high = int(config.ipv6_subnet_min), int(config.ipv6_subnet_max)
        length = config.ipv6_subnet_len
    return max(0, ((high - low) >> (family.bits - length)) + 1)


def spell_network(network: IPNetwork) -> str:
    """A prefix as upstream writes it."""
    return f"{spell_ip(network.network_address)}/{network.prefixlen}"
