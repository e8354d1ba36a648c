"""Facts about a node. Every fact may be missing; then its checks report nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, ip_network
from typing import Final

from pyflannel.core.ip import IPNetwork
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.diagnose.filter import Table
from pyflannel.records import dataclass
from pyflannel.report.model import NodeReport

IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFact:
    """A device of this network namespace."""

    up: bool = True
    addresses: tuple[IPInterface, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A node as it is now. `None` means unknown, or missing."""

    report: NodeReport | None = None
    """The daemon's own report."""
    silence: str = ""
    """Why no daemon answers."""
    subnet_file: str = ""
    env: SubnetEnv | None = None
    """The content of the subnet file."""
    ip_forward: bool | None = None
    links: Mapping[str, LinkFact] | None = None
    """By name."""
    tables: Sequence[Table] = ()
    """Of the firewall, those that IPv4 packets meet."""
    modules: Mapping[str, bool] = field(default_factory=dict)
    """Whether the kernel has a module, loaded or not; only for needed modules."""
    flanneld: tuple[int, ...] = ()
    """Process ids of flannel's own daemon."""
    daemons: tuple[int, ...] = ()
    """Of `pyflanneld`."""
    unseen: Mapping[str, str] = field(default_factory=dict)
    """What could not be read, with the reason."""

    @property
    def network(self) -> IPv4Network | None:
        """The overlay's prefix."""
        config = self.report.config if self.report is not None else None
        named = config.effective.get("Network") if config is not None else None
        if isinstance(named, str) and named:
            return IPv4Network(named, strict=False)
        return self.env.network if self.env is not None else None

    @property
    def subnet(self) -> IPv4Network | None:
        """The leased subnet."""
        lease = self.report.lease if self.report is not None else None
        if lease is not None and lease.subnet is not None:
            return IPv4Network(lease.subnet, strict=False)
        return self.env.subnet if self.env is not None else None

    def network_of(self, version: int) -> IPNetwork | None:
        """The overlay's prefix of an IP version."""
        if version == 4:
            return self.network
        config = self.report.config if self.report is not None else None
        named = config.effective.get("IPv6Network") if config is not None else None
        return ip_network(named, strict=False) if isinstance(named, str) and named else None

    def subnet_of(self, version: int) -> IPNetwork | None:
        """The leased subnet of an IP version."""
        if version == 4:
            return self.subnet
        lease = self.report.lease if self.report is not None else None
        named = lease.ipv6_subnet if lease is not None else None
        return ip_network(named, strict=False) if named else None

    @property
    def devices(self) -> tuple[str, ...]:
        """The overlay's devices; none for backends that route over the underlay."""
        network = self.report.network if self.report is not None else None
        return tuple(network.devices) if network is not None else ()

    @property
    def port(self) -> int | None:
        """The UDP port of the overlay's own packets; `None` if they are not UDP."""
        network = self.report.network if self.report is not None else None
        config = self.report.config if self.report is not None else None
        if network is None:
            return None
        if network.backend != "vxlan":
            return network.port
        section = config.effective.get("Backend") if config is not None else None
        named = section.get("Port") if isinstance(section, Mapping) else None
        return named if isinstance(named, int) and named > 0 else KERNELS_VXLAN_PORT

    @property
    def carrier(self) -> tuple[str, int | None]:
        """Protocol and UDP port of the packets that carry the overlay's; empty for none."""
        network = self.report.network if self.report is not None else None
        if network is not None and network.backend == "ipip":
            return "ipip", None
        port = self.port
        return ("udp", port) if port is not None else ("", None)

    def tunnel_of(self, version: int) -> str | None:
        """The device that overlay packets come and go by, on the side of the peers."""
        of_version = [name for name in self.devices if ("v6" in name) == (version == 6)]
        if self.devices:
            return of_version[0] if of_version else None
        underlay = self.report.underlay if self.report is not None else None
        return underlay.interface if underlay is not None else None

    @property
    def bridge(self) -> str | None:
        """As `bridge_of`, of IPv4."""
        return self.bridge_of(4)

    def bridge_of(self, version: int) -> str | None:
        """The device with an address in the leased subnet that is not the overlay's own."""
        subnet = self.subnet_of(version)
        for name, link in (self.links or {}).items():
            if name not in self.devices and any(
                subnet is not None and each.version == version and each.ip in subnet
                for each in link.addresses
            ):
                return name
        return None


KERNELS_VXLAN_PORT: Final = 8472
"""Where the config names none: the default of drivers/net/vxlan/vxlan_core.c, `vxlan_port`."""


def backend_of(report: NodeReport | None) -> str:
    """The backend in use, or the one that the network config names; empty if neither is known."""
    if report is None:
        return ""
    if report.network is not None and report.network.backend:
        return report.network.backend
    section = report.config.effective.get("Backend") if report.config is not None else None
    return str(section.get("Type", "")) if isinstance(section, Mapping) else ""
