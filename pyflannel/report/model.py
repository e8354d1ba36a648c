"""What a node says about itself, as frozen records.

Every part of the daemon that has something to tell returns one of these from a method `report`.
They are the one source of `pyflannel status`, of its JSON, of systemd's status line and of metrics.
Nothing here acts or looks anything up: values in, values out.

Units and conventions:

* A time is in seconds since the epoch (`since`, `expires`, `started`), a duration in seconds and
  named `…_s`.
* `None` means "not known" or "does not apply", never zero or false.
* A failure is its text under the name of its subject; an empty text means that nothing fails.
* Every field has a default, so that a record of an older daemon can be read by a newer command.

Shapes grow and never shrink. `SCHEMA` changes only if a reader of the old shape would be misled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import StrEnum
from typing import Final

from pyflannel.records import dataclass

SCHEMA: Final = 1
"""Version of the shape of `pyflannel status --json`."""

MOST_SHOWN: Final = 100
"""Of what may be as many as there are peers: enough to see what is wrong, never megabytes."""
_NOTHING: Final[Mapping[str, str]] = {}


class Severity(StrEnum):
    """How bad a problem is."""

    INFO = "info"
    """Worth knowing; nothing has to be done."""
    WARNING = "warning"
    """The node carries packets, but something is wrong or will be."""
    ERROR = "error"
    """The node does not do what it is there for."""


class StoreFault(StrEnum):
    """What keeps Kubernetes' store from its work, as far as an operator can mend it."""

    NONE = ""
    NODE_MISSING = "node missing"
    """There is no object of this node."""
    NO_POD_CIDR = "no podCIDR"
    """It has no podCIDR, or none that the network config allows."""
    DENIED = "denied"
    """The API server refuses who we are, or what we ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong now."""

    code: str = ""
    """Stable, `PF` and three digits; the list is in `report.problems`."""
    severity: Severity = Severity.WARNING
    subject: str = ""
    """What it is about: `etcd`, `lease`, `underlay`, `peer 10.5.7.0/24`, a file or a device."""
    since: float | None = None
    text: str = ""
    """What is wrong and what comes of it, in a sentence or two."""
    remedy: str = ""
    """What to do; empty where nothing but waiting helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Something that fails now."""

    text: str = ""
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """Where the leases are kept, and whether it answers."""

    kind: str = ""
    """`etcd`, `kubernetes` or `static`."""
    where: str = ""
    """Endpoints or the file, without secrets."""
    version: str = ""
    """Of the server that was asked last; empty if it is not known."""
    alarms: tuple[str, ...] = ()
    """etcd's: `NOSPACE`, `CORRUPT`."""
    connected: bool | None = None
    """Whether the last request or watch went well; `None` before the first one."""
    since: float | None = None
    """When `connected` became what it is."""
    reason: str = ""
    """Why it does not answer."""
    revision: int = 0
    """Of the newest state that we have applied."""
    snapshots: int = 0
    reconnects: int = 0
    peers: int = 0
    """Leases of other nodes that are followed."""
    rejected: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Leases that are not followed, by subnet (Kubernetes: also `node NAME`), with the reason; the
    first hundred."""
    rejected_count: int = 0
    """How many there are."""
    fault: StoreFault = StoreFault.NONE
    """What is missing, as a kind; the words for it are in `reason`, the lease's, or what is waited
    for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReport:
    """Our own lease."""

    subnet: str | None = None
    ipv6_subnet: str | None = None
    public_ip: str | None = None
    public_ipv6: str | None = None
    backend: str = ""
    expires: float | None = None
    """By our own clock; `None` for a reservation and where leases have no end."""
    reservation: bool = False
    held: bool | None = None
    """Whether the store shows the lease as ours; `None` while it shows nothing. `False` too from
    the lease's end by our own clock on."""
    confirmed: float | None = None
    """When the store last showed it as ours."""
    reason: str = ""
    """Why it is not held, or cannot be read or renewed, as it is at present."""
    since: float | None = None
    """When `reason` began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderlayReport:
    """The external interface."""

    interface: str = ""
    index: int = 0
    mtu: int = 0
    """In bytes."""
    address: str | None = None
    address6: str | None = None
    public_ip: str | None = None
    public_ipv6: str | None = None
    failing: str = ""
    """Why it cannot be used now."""
    failing_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """A device of the overlay."""

    index: int = 0
    mac: str = ""
    mtu: int = 0
    """In bytes."""
    up: bool | None = None
    tx_checksum: str = ""
    """What becomes of the offload of checksums: `off` where it is kept off, with the reason if that
    is not the config; empty where it is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatapathReport:
    """What carries the packets of backend udp."""

    name: str | None = None
    """`None` while none runs."""
    why: str = ""
    """Why this one was chosen."""
    offloads: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """What is on, off or withdrawn, by name."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Packets and bytes since its start, by name; drops by reason."""
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkReport:
    """The overlay as the backend keeps it."""

    backend: str = ""
    mtu: int = 0
    """Bytes a container may send."""
    underlay: str = ""
    devices: Mapping[str, DeviceReport] = field(default_factory=dict)
    peers: int = 0
    objects: Mapping[str, int] = field(default_factory=dict)
    """Kernel objects wanted, by kind."""
    ignored: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Peers that are left out, in whole or in part, with the reason. JSON has the first
    `MOST_SHOWN`, as of `failing`; the peers' own records have it of all."""
    ignored_count: int = 0
    """How many there are."""
    overlaps: Sequence[str] = ()
    """What is carried although it overlaps something of this machine, with both sides."""
    own_overlap: str = ""
    """What of this machine the node's own subnet takes away, with both sides; empty if nothing."""
    shared: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Devices that another daemon uses too, with what shows it."""
    failing: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """What could not be applied, with the kernel's answer; it is retried."""
    failing_count: int = 0
    """How much that is."""
    failing_since: Mapping[str, float] = field(default_factory=dict)
    port: int | None = None
    """UDP port, where the backend has one."""
    commands_running: int | None = None
    """Commands of backend extension."""
    datapath: DatapathReport | None = None
    passes: Mapping[str, int] = field(default_factory=dict)
    """By reason: `leases`, `notification`, `retry`, `resync`."""
    changed: int = 0
    repaired: Mapping[str, int] = field(default_factory=dict)
    """Objects put right because another program had changed them, by kind."""
    last_error: str = ""
    """The last failure there was, also if it is over."""
    last_pass_s: float = 0.0
    longest_pass_s: float = 0.0
    defects: int = 0
    """Exceptions that are defects of pyflannel; each is in the log with its traceback."""
    notification_overflows: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesReport:
    """Masquerade and forward rules."""

    repairs: int = 0
    """How often rules were restored that another program had removed."""
    failing: str = ""
    failing_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesReport:
    """`subnet.env` and `docker_opts.env`."""

    states: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    """Each file with `written`, or why it could not be."""
    restored: int = 0
    """How often one was written again because another program had deleted or changed it."""
    failing_since: Mapping[str, float] = field(default_factory=dict)
    """When the writing of a file began to fail."""

    @property
    def failing(self) -> Mapping[str, str]:
        """The files that could not be written, with the reason."""
        return {path: state for path, state in self.states.items() if state != WRITTEN}


WRITTEN: Final = "written"
"""The state of a file that is as it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigReport:
    """The network config in force, and what became of a newer one."""

    effective: Mapping[str, object] = field(default_factory=dict)
    """Under upstream's key names, defaults filled in."""
    pending: str = ""
    """Why the store's config is not the one in force: deleted, wrong, or changed."""
    pending_since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerReport:
    """Another node, as seen from here. `None` where nothing was measured."""

    subnet: str | None = None
    ipv6_subnet: str | None = None
    public_ip: str | None = None
    public_ipv6: str | None = None
    host: str | None = None
    backend: str = ""
    state: str = "unknown"
    """`ignored` if it is left out, `failing` if it could not be programmed; else by its probes:
    `unknown` until one was answered, `up`, `small-only` (large packets do not pass), `down`."""
    reason: str = ""
    """Why it is not simply up."""
    cause: str = ""
    """Of a peer that is down: `away` (the node does not answer beside the tunnel either), `tunnel`
    (it does), `unclear` (it never did)."""
    since: float | None = None
    """When the state became what it is; `None` before the first answer."""
    way: str = ""
    """What carries packets to it: the backend; with udp and a data path `udp/ebpf` and so on."""
    last_heard: float | None = None
    rtt_s: float | None = None
    loss: float | None = None
    """Share of probes that were not answered, 0 to 1."""
    mtu: int | None = None
    """Bytes of the largest packet that a probe saw arrive."""
    bytes_in: int | None = None
    """Of inner packets, since the peer is known and the data path runs; with backend udp alone. The
    kernel counts what passes a device, not for which peer."""
    bytes_out: int | None = None
    packets_in: int | None = None
    packets_out: int | None = None
    drops: Mapping[str, int] | None = None
    """Packets by reason, where the peer was known: the names are those of the data path's counters
    (`network.datapath.counters`)."""
    underlay_heard: float | None = None
    """When the node last answered ping beside the tunnel."""
    underlay_rtt_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFailure:
    """A peer whose probes fail."""

    state: str = ""
    """`down` or `small-only`."""
    cause: str = ""
    """As `PeerReport.cause`."""
    text: str = ""
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """Our own probes of the peers."""

    probed: str = ""
    """`tunnel`, `node` (plain routes: the peers' public addresses) or `nothing`."""
    interval_s: float = 0.0
    """Between two probes of a peer; 0 if they are off."""
    states: Mapping[str, int] = field(default_factory=dict)
    """Peers that are probed, by `unknown`, `up`, `small-only`, `down`."""
    sent: int = 0
    answered: int = 0
    lost: int = 0
    void: int = 0
    """Neither: this machine stood still meanwhile."""
    refused: str = ""
    """Why none can be sent."""
    failing: Mapping[str, ProbeFailure] = field(default_factory=dict)
    """By subnet; the first hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """Everything that one node says about itself at one moment."""

    version: str = ""
    now: float = 0.0
    """When the report was made."""
    started: float = 0.0
    phase: str = "starting"
    """What the daemon is doing: `starting`, or `running with subnet …`."""
    waiting_for: str = ""
    """What it waits for; empty if nothing."""
    waiting_since: float | None = None
    ready_since: float | None = None
    """When `subnet.env` was first written."""
    config: ConfigReport | None = None
    store: StoreReport | None = None
    underlay: UnderlayReport | None = None
    lease: LeaseReport | None = None
    network: NetworkReport | None = None
    rules: RulesReport | None = None
    files: FilesReport = field(default_factory=FilesReport)
    failing: Mapping[str, Failure] = field(default_factory=dict)
    """Other parts that fail, by name: the status socket, the blackhole route."""
    probes: ProbeReport | None = None
    peers: Sequence[PeerReport] = ()
    """By subnet. Empty too where it was not asked for."""

    @property
    def ready(self) -> bool:
        """Whether `subnet.env` has been written; this never goes back."""
        return self.ready_since is not None
