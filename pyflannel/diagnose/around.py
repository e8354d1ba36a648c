"""Facts about the machine around the overlay. Every fact may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from ipaddress import IPv4Interface, IPv6Interface

from pyflannel.core.ip import IPAddress
from pyflannel.diagnose.way import Lookup
from pyflannel.records import dataclass

IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSeen:
    """A device of this network namespace, with the properties that the checks need."""

    kind: str = ""
    index: int = 0
    mtu: int = 0
    up: bool = True
    carrier: bool = True
    addresses: tuple[IPInterface, ...] = ()
    ours: bool = False
    """Whether one of flannel's backends made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRoutes:
    """The kernel's route look-ups about one peer, by its rules and tables."""

    subnet: str
    version: int = 4
    public: str = ""
    to_pods: Lookup = field(default_factory=Lookup)
    """From a pod here to one there."""
    from_pods: Lookup = field(default_factory=Lookup)
    """From one there, arriving by the tunnel, to a pod here."""
    to_node: Lookup = field(default_factory=Lookup)
    """From this node to its public address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """The machine as it is now."""

    links: Mapping[str, LinkSeen] = field(default_factory=dict)
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """Those that could be read, by name with `/` between the parts."""
    routes: tuple[PeerRoutes, ...] = ()
    """Of some peers."""
    rules: tuple[tuple[int, str], ...] = ()
    """Policy rules: priority and table."""
    ra_defaults: tuple[str, ...] = ()
    """Devices of IPv6 default routes that a router has advertised."""
    conntrack: tuple[int, int] | None = None
    """Entries of the connection table, and the most it can have."""
    arp: tuple[int, int] | None = None
    """The same of the neighbour table of IPv4, of what counts against its limit."""
    ndisc: tuple[int, int] | None = None
    """And of IPv6."""
    managed: tuple[str, ...] = ()
    """Devices that NetworkManager manages."""
    nameservers: tuple[IPAddress, ...] = ()
    unit: str = ""
    """The unit's state in systemd, if it does not run; empty if it does."""
    enabled: str = ""
    """`enabled`, `disabled`, as `systemctl is-enabled` says; empty without systemd."""
    synchronised: bool | None = None
    """Whether the kernel's clock is synchronised."""
    free: int | None = None
    """Free bytes where the daemon keeps its state."""
