"""The seam between the daemon and the ways of carrying packets between nodes.

A *backend* publishes what peers need to reach this node and then attaches the node to the overlay;
what comes back is a *network*: the object that the driver feeds with lease events and kernel
notifications and tells to converge. Leases change one record at a time and the kernel changes
behind our back, so a network keeps desired state (from leases and config) apart from actual state
(read back) and applies the difference; calling `apply` again is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field
from typing import Protocol

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ApplyError, ConfigError, FlannelError
from pyflannel.core.ip import IPAddress, IPNetwork
from pyflannel.core.kind import Kind
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseEvent
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Netlink, Notification
from pyflannel.kernel.sysctl import try_write_sysctl
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.report.model import NetworkReport
from pyflannel.systemd import FdStore, Notifier

log = get_logger(__name__)

RESYNC_INTERVAL_S = 10.0
"""Seconds between full comparisons even if nothing is known to be wrong; upstream's route checker
has the same."""


SysctlWriter = Callable[[str, str], bool]
"""Sets a sysctl named like its file under /proc/sys; tells whether it could."""
DeviceClaim = Callable[[str], None]
"""Makes a device, by its name, this daemon's alone, or raises `DeviceUnavailable`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """All that a backend may lean on."""

    config: NetworkConfig
    """With the settings of its own kind: `config.settings(FooSettings)`."""
    underlay: ExternalInterface
    netlink: Netlink
    state_dir: str
    """For what must outlive a reboot; may be missing, or not be writable."""
    datapath: str = "auto"
    """Which data path this node shall use, where there is a choice; `auto` takes the best."""
    accept_any_port: bool = False
    """Whether known peers may send from another port than the backend's, as behind a NAT."""
    accept_any: bool = False
    """Whether packets from others than known peers are taken, where that can be told."""
    write_sysctl: SysctlWriter = try_write_sysctl
    """For those of its own devices."""
    checksums_lost: Callable[[], str] = str
    """Where packets are known to be lost whose checksum is left to the device; empty if nowhere."""
    fd_store: FdStore = field(default_factory=lambda: FdStore(Notifier("")))
    """Descriptors that a restart shall find again."""
    prescribed: LeaseAttrs | None = None
    """What our lease carries in a store to which nothing can be published: the backend conforms
    to it, as the peers do. `None` where it publishes what it likes."""
    is_own_device: Callable[[str, str], bool] = lambda _name, _kind: False
    """Whether a device, by its name and kind of link, was made by a backend of any kind."""
    store_addresses: Callable[[], Collection[IPAddress]] = tuple
    """Where the store is, as far as known now: no route of ours may lead there."""
    claim_device: DeviceClaim = lambda _name: None
    """For devices that several daemons could keep; see `kernel/claim.py`."""
    held: Callable[[], None] = lambda: None
    """To be called when `attach` has all that another program could hold (device, socket): other
    parts of the start go on beside the rest from then on. May be left out, or called again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What one pass of `Network.apply` did."""

    changed: int = 0
    """Objects set or deleted because leases or config changed."""
    repaired: Mapping[str, int] = field(default_factory=dict)
    """Objects put right because another program had changed the kernel, by kind: `route`,
    `neighbour`, `fdb`, `address`, `link`, `mtu`, `mac`, `offload`, `device`."""


class PartlyApplied(ApplyError):
    """Some objects failed, the others were applied.

    Args:
        failures: what failed, by peer, object or device.
        applied: what the same pass did all the same.
    """

    def __init__(self, failures: Mapping[str, FlannelError], applied: Applied) -> None:
        super().__init__(failures)
        self.applied = applied


class Backend(Protocol):
    """Carries overlay packets between nodes in one particular way.

    Called in this order, once each; after a crash both run again and recognise their own work.
    """

    async def prepare(self, previous: LeaseAttrs | None) -> LeaseAttrs:
        """Makes what must exist before the lease (the vxlan device, whose MAC the lease carries).

        Args:
            previous: what this node published before its restart, if the store still holds it.
        """
        ...

    async def attach(self, lease: Lease) -> Network:
        """Joins the overlay with this subnet: device addressed and up, own routes there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendKind(Kind):
    """A kind of backend, with the way to make one; the last thing in a backend's file."""

    create: Callable[[BackendContext], Backend]
    """Called with a config that fits the interface (`require_fit`). Raises `FlannelError`."""


def require_fit(kind: Kind, config: NetworkConfig, external: ExternalInterface) -> None:
    """Makes sure that a kind of backend can work on an interface; logs what is odd about it.

    Warnings of the config alone are not repeated: they were logged when it was read.

    Raises:
        ConfigError: naming everything in the way.
    """
    found = kind.fits(config, external)
    known = kind.fits(config)
    for problem in found:
        if not problem.is_error and problem not in known:
            log.warning(problem.message, key=problem.key or None, remedy=problem.remedy or None)
    errors = [str(problem) for problem in found if problem.is_error]
    if errors:
        raise ConfigError("; ".join(errors))


class Network(Protocol):
    """An attached overlay. The driver owns it and never runs two methods at once.

    One exception: `notice` may be called while `apply` or `rebase` is under way; what it marks then
    counts for the next pass.
    """

    @property
    def mtu(self) -> int:
        """Bytes a container may send; the encapsulation overhead is already taken off."""
        ...

    @property
    def near(self) -> Sequence[IPNetwork] | None:
        """Prefixes near which the routes of routing daemons matter; `None` if all of them do.

        Does not change; see `Netlink.notifications`.
        """
        ...

    @property
    def neighbours_of(self) -> frozenset[int]:
        """Indexes of the links whose neighbours and FDB entries matter, as the last pass saw them.

        See `Netlink.notifications`.
        """
        ...

    def update(self, events: Sequence[LeaseEvent]) -> None:
        """Takes lease events. Cheap: marks what is pending, never awaits.

        May be told the same event twice.
        """
        ...

    def synced(self) -> None:
        """The first full snapshot has been delivered: from now on leftovers may be swept."""
        ...

    def notice(self, notification: Notification) -> bool:
        """Whether a kernel notification may concern us; if so the next `apply` reads back."""
        ...

    async def apply(self, *, full: bool) -> Applied:
        """Makes the kernel (or data path) hold the desired state. Idempotent.

        Args:
            full: read the actual state back from the kernel even if no change was reported.

        Raises:
            ApplyError: naming each object that failed; all others were applied (`PartlyApplied`
                says which).
            FlannelError: if nothing could be decided, for instance because nothing could be read.
        """
        ...

    async def rebase(self, underlay: ExternalInterface, lease: Lease | None = None) -> LeaseAttrs:
        """Follows the machine: the external interface, its address, its MTU or our lease changed.

        Device and peers are re-created or re-pointed by the next `apply`.

        Returns:
            The attributes that the lease must carry from now on.
        """
        ...

    def own_attrs(self) -> LeaseAttrs:
        """The attributes that the lease must carry now (a MAC changed behind our back counts)."""
        ...

    def report(self) -> NetworkReport:
        """Devices, objects, what is left out and what fails; the driver adds what it counts."""
        ...

    def peer_counters(self, lease: Lease) -> Mapping[str, int] | None:
        """What was counted of a peer, by the names of `datapath.base.PEER_COUNTERS`.

        `None` where it cannot be told: the kernel counts what passes a device, not for whom.
        """
        ...

    async def detach(self) -> None:
        """Orderly end: takes down what upstream takes down (udp: the device), leaves the rest."""
        ...
