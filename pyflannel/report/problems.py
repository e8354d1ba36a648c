"""What is wrong with a node: a pure function from its report to a list of problems.

One function a kind of problem; each yields what it finds. A problem names its subject, since when,
what comes of it and the way out. Codes are stable: scripts and alerts refer to them. They are
listed in `docs/reference/problems.md`, which a test compares with `CODES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from pyflannel.core.kind import OWN_VNI
from pyflannel.core.overlap import ANOTHER_SUBNET
from pyflannel.report.model import MOST_SHOWN, NodeReport, ProbeFailure, Problem, Severity
from pyflannel.report.words import clock_time, left

WAITING: Final = "PF101"
STORE: Final = "PF102"
CONFIG: Final = "PF103"
ALARM: Final = "PF104"
OLD_SERVER: Final = "PF105"
LEASE_LOST: Final = "PF111"
LEASE_ENDED: Final = "PF112"
LEASE_NOT_RENEWED: Final = "PF113"
LEASE_REJECTED: Final = "PF114"
UNDERLAY: Final = "PF121"
DEVICE_DOWN: Final = "PF131"
NOT_APPLIED: Final = "PF132"
PEER_IGNORED: Final = "PF133"
NO_DATAPATH: Final = "PF134"
OVERLAP: Final = "PF135"
OWN_OVERLAP: Final = "PF136"
SHARED_DEVICE: Final = "PF137"
RULES: Final = "PF141"
FILE: Final = "PF151"
PART: Final = "PF161"
PEER_DOWN: Final = "PF171"
PEER_SMALL_ONLY: Final = "PF172"
CUT_OFF: Final = "PF173"
DEFECT: Final = "PF199"

OLDEST_ETCD: Final = (3, 4)
"""The oldest in the test matrix; etcd's own support of 3.3 ended in 2020."""
_VERSION: Final = re.compile(r"(\d{1,4})\.(\d{1,4})\.", re.ASCII)

CODES: Final = {
    WAITING: "the daemon is not ready and waits for something",
    STORE: "the store of the leases does not answer",
    ALARM: "etcd has raised an alarm and refuses writes",
    OLD_SERVER: "etcd's release is older than those that pyflannel is tested with",
    CONFIG: "the network config in the store is not the one in force",
    LEASE_LOST: "this node's lease is gone or another node's, and is being taken back",
    LEASE_ENDED: "this node's lease has ended without a renewal",
    LEASE_NOT_RENEWED: "the lease has not ended, but reading or renewing it fails",
    LEASE_REJECTED: "a lease in the store is not followed",
    UNDERLAY: "the external interface cannot be used",
    DEVICE_DOWN: "a device of the overlay is down",
    NOT_APPLIED: "something could not be programmed into the kernel",
    PEER_IGNORED: "a peer is left out",
    NO_DATAPATH: "no data path carries the packets of backend udp",
    OVERLAP: "a subnet that is carried overlaps a prefix of this machine",
    OWN_OVERLAP: "this node's own subnet overlaps what the node is connected to",
    SHARED_DEVICE: "another daemon uses a device of this one",
    RULES: "the masquerade and forward rules are not in place",
    FILE: "an environment file could not be written",
    PART: "a part of the daemon that packets do not need fails",
    PEER_DOWN: "a peer that answered probes does not any more",
    PEER_SMALL_ONLY: "large packets do not reach a peer, small ones do",
    CUT_OFF: "most of the peers that answered do not any more",
    DEFECT: "the daemon has met a defect of its own",
}
"""Every code, with what it means in a phrase."""

KUBERNETES: Final = "kubernetes"
_SERVERS: Final = {KUBERNETES: "the API server"}
_CONFIGS: Final = {KUBERNETES: "in net-conf.json of the ConfigMap", "static": "in the file"}

_ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.INFO)


def problems(report: NodeReport) -> tuple[Problem, ...]:
    """Everything that is wrong, the worst first."""
    found = [problem for check in _CHECKS for problem in check(report)]
    return tuple(sorted(found, key=lambda problem: _ORDER.index(problem.severity)))


def why_not_working(report: NodeReport) -> str:
    """The first problem for which a node does not do its work; empty if it does.

    Of the peers' state nothing is asked: a node is not restarted or drained because others are ill.
    """
    serious = (one for one in problems(report) if one.severity is Severity.ERROR)
    return next((f"{one.code} {one.text}" for one in serious if one.code != CUT_OFF), "")


def _waiting(report: NodeReport) -> Iterator[Problem]:
    if report.waiting_for and not report.ready:
        yield Problem(
            code=WAITING,
            severity=Severity.ERROR,
            subject="start",
            since=report.waiting_since if report.waiting_since is not None else report.started,
            text=f"not ready: {report.waiting_for}",
            remedy="it goes on by itself as soon as that is there",
        )


def _store(report: NodeReport) -> Iterator[Problem]:
    store = report.store
    if store is None or store.connected is not False:
        return
    reason = f": {store.reason}" if store.reason else ""
    if store.kind == "static":
        yield Problem(
            code=STORE,
            subject="static network",
            since=store.since,
            text=f"{store.where} cannot be used{reason}. What it said before stays in force.",
            remedy=f"mend it; pyflannel static check {store.where} says what is wrong",
        )
        return
    goes_on = "Packets flow on; new nodes and changed leases are not seen."
    lease = report.lease
    if lease is None:
        goes_on = "There is no lease yet."
    elif store.kind == KUBERNETES:
        goes_on += " Our podCIDR stays ours as long as the node object exists."
    elif lease.reservation:
        goes_on += " Our lease is a reservation and has no end."
    elif lease.expires is not None:
        goes_on += (
            f" Our lease ends at {clock_time(lease.expires, report.now)} "
            f"({left(lease.expires, report.now)}) unless it can be renewed before."
        )
    yield Problem(
        code=STORE,
        subject=store.kind or "store",
        since=store.since,
        text=f"{store.where} does not answer{reason}. {goes_on}",
        remedy=f"look at {_SERVERS.get(store.kind, 'etcd')} and the way to it; nothing has to be"
        " done here afterwards",
    )


def _config(report: NodeReport) -> Iterator[Problem]:
    config = report.config
    kind = report.store.kind if report.store is not None else ""
    if config is not None and config.pending:
        yield Problem(
            code=CONFIG,
            subject="network config",
            since=config.pending_since,
            text=f"{config.pending}. The former one stays in force.",
            remedy=f"put it right {_CONFIGS.get(kind, 'with pyflannel config set')}, or restart"
            " pyflanneld to use it",
        )


def _server(report: NodeReport) -> Iterator[Problem]:
    store = report.store
    if store is None or store.kind != "etcd":
        return
    for alarm in store.alarms:
        goes_on = "Leases that exist are renewed; nodes without one get none, and none can move."
        yield Problem(
            code=ALARM,
            subject="etcd",
            text=f"the alarm {alarm} is raised. {goes_on}",
            remedy=_ALARMS.get(alarm, "etcdctl alarm list names the member"),
        )
    found = _VERSION.match(store.version)
    if found is not None and (int(found[1]), int(found[2])) < OLDEST_ETCD:
        least = ".".join(map(str, OLDEST_ETCD))
        yield Problem(
            code=OLD_SERVER,
            severity=Severity.INFO,
            subject="etcd",
            text=f"etcd is {store.version}; pyflannel is tested with {least} and newer",
            remedy=f"upgrade etcd to {least} or newer, one minor release after another",
        )


_ALARMS: Final = {
    "NOSPACE": "etcdctl compact and etcdctl defrag, or a larger --quota-backend-bytes, then"
    " etcdctl alarm disarm",
    "CORRUPT": "members disagree: restore the cluster from a backup, see etcd's documentation",
}


def _lease(report: NodeReport) -> Iterator[Problem]:
    lease = report.lease
    if lease is None:
        return
    subnet = lease.subnet or lease.ipv6_subnet or ""
    away = report.store is not None and report.store.connected is False
    ended = not lease.reservation and lease.expires is not None and lease.expires <= report.now
    if lease.held is False and not ended:
        yield Problem(
            code=LEASE_LOST,
            severity=Severity.ERROR,
            subject="lease",
            since=lease.since,
            text=f"{subnet} is not ours now: {lease.reason}. Packets flow on as far as peers let "
            "them; pyflanneld goes on taking it back.",
        )
    elif ended:
        reason = f" ({lease.reason})" if lease.reason else ""
        yield Problem(
            code=LEASE_ENDED,
            severity=Severity.ERROR,
            subject="lease",
            since=lease.expires,
            text=f"{subnet} has ended by our clock{reason}. Packets flow on, but another node may "
            "lease the subnet.",
            remedy="make etcd reachable: the lease is then taken again" if away else "",
        )
    elif lease.reason and not away:  # that tells it already, and when the lease ends
        yield Problem(
            code=LEASE_NOT_RENEWED,
            subject="lease",
            since=lease.since,
            text=f"{subnet} cannot be read or renewed: {lease.reason}. Packets flow on.",
        )


def _rejected(report: NodeReport) -> Iterator[Problem]:
    if report.store is None:
        return
    is_kubernetes = report.store.kind == KUBERNETES
    for subject, reason in report.store.rejected.items():
        # A node is named as such already, a lease by its subnet.
        yield Problem(
            code=LEASE_REJECTED,
            severity=Severity.INFO,
            subject=subject if subject.startswith("node ") else f"lease {subject}",
            text=f"not followed: {reason}",
            remedy="put its annotations or its podCIDR right; it is followed at once"
            if is_kubernetes
            else "delete its key if no node needs it",
        )


def _underlay(report: NodeReport) -> Iterator[Problem]:
    underlay = report.underlay
    if underlay is not None and underlay.failing:
        yield Problem(
            code=UNDERLAY,
            severity=Severity.ERROR,
            subject="underlay",
            since=underlay.failing_since,
            text=f"{underlay.failing}. Everything is left as it is until it can be used again.",
            remedy=f"look at {underlay.interface} and its address",
        )


def _devices(report: NodeReport) -> Iterator[Problem]:
    for name, device in report.network.devices.items() if report.network is not None else ():
        if device.up is False:
            yield Problem(
                code=DEVICE_DOWN,
                severity=Severity.ERROR,
                subject=name,
                text=f"{name} is down, so no packet passes. It is brought up again within seconds.",
                remedy="if that fails, the log of pyflanneld says why",
            )


def _network(report: NodeReport) -> Iterator[Problem]:
    network = report.network
    if network is None:
        return
    for subject, reason in islice(network.failing.items(), MOST_SHOWN):
        yield Problem(
            code=NOT_APPLIED,
            subject=subject,
            since=network.failing_since.get(subject),
            text=f"not applied, tried again: {reason}",
        )
    if (more := network.failing_count - MOST_SHOWN) > 0:
        yield Problem(code=NOT_APPLIED, subject="others", text=f"{more} more are not applied")
    for subnet, reason in islice(network.ignored.items(), MOST_SHOWN):
        yield Problem(
            code=PEER_IGNORED,
            subject=f"peer {subnet}" if "/" in subnet else subnet,
            text=f"left out: {reason}",
        )
    if (more := network.ignored_count - MOST_SHOWN) > 0:
        yield Problem(code=PEER_IGNORED, subject="others", text=f"{more} more are left out")
    if network.own_overlap:
        yield Problem(
            code=OWN_OVERLAP,
            subject="own subnet",
            text=f"{network.own_overlap}: containers and what is there cannot reach each other",
            remedy=ANOTHER_SUBNET,
        )
    for device, sign in network.shared.items():
        text = f"another daemon uses it: {sign}"
        yield Problem(code=SHARED_DEVICE, subject=device, text=text, remedy=OWN_VNI)
    for overlap in network.overlaps:
        yield Problem(code=OVERLAP, severity=Severity.INFO, subject="overlap", text=overlap)
    if network.datapath is not None and network.datapath.name is None:
        yield Problem(
            code=NO_DATAPATH,
            severity=Severity.ERROR,
            subject="data path",
            text="none runs, so no packet passes; it is started again",
        )


def _rules(report: NodeReport) -> Iterator[Problem]:
    if report.rules is not None and report.rules.failing:
        yield Problem(
            code=RULES,
            subject="traffic rules",
            since=report.rules.failing_since,
            text=f"not in place, tried again: {report.rules.failing}",
        )


def _files(report: NodeReport) -> Iterator[Problem]:
    for path, reason in report.files.failing.items():
        yield Problem(
            code=FILE,
            subject=f"file {path}",
            since=report.files.failing_since.get(path),
            text=f"not written, tried again: {reason}",
            remedy="make its directory writable, or make room on the disk",
        )


def _parts(report: NodeReport) -> Iterator[Problem]:
    for name, failure in report.failing.items():
        yield Problem(code=PART, subject=name, since=failure.since, text=failure.text)


CUT_OFF_FROM: Final = 4
"""Peers that have answered. Of fewer, more than half may well be away at once."""
MOST_TOLD: Final = 10
"""Peers with a problem each; more are one."""


def cut_off(report: NodeReport) -> bool:
    """Whether most of the peers that answered do not any more."""
    states = report.probes.states if report.probes is not None else {}
    down = states.get("down", 0)
    heard = down + states.get("up", 0) + states.get("small-only", 0)
    return heard >= CUT_OFF_FROM and down > heard / 2


def _peers(report: NodeReport) -> Iterator[Problem]:
    probes = report.probes
    if probes is None:
        return
    down = {name: one for name, one in probes.failing.items() if one.state == "down"}
    count = probes.states.get("down", 0)
    heard = count + probes.states.get("up", 0) + probes.states.get("small-only", 0)
    if cut_off(report):
        yield Problem(
            code=CUT_OFF,
            severity=Severity.ERROR,
            subject="peers",
            since=min((one.since for one in down.values() if one.since is not None), default=None),
            text=f"{count} of {heard} peers that answered do not any more, so it is this node that "
            f"is cut off, or the network around it. The first: {next(iter(down.values())).text}"
            if down
            else f"{count} of {heard} peers that answered do not any more",
            remedy="pyflannel doctor looks for the cause on this node",
        )
    else:
        yield from _failing_peers(
            PEER_DOWN,
            down,
            "Containers there cannot be reached from here",
            "pyflannel ping {} tries the way layer by layer",
        )
    yield from _failing_peers(
        PEER_SMALL_ONLY,
        {name: one for name, one in probes.failing.items() if one.state == "small-only"},
        "Connections open and then hang",
        "the way between the nodes carries less than their interfaces say: set MTU in the Backend "
        "of the network config, or find the link; pyflannel ping {} finds what passes",
    )


def _failing_peers(
    code: str, failing: Mapping[str, ProbeFailure], so_what: str, remedy: str
) -> Iterator[Problem]:
    if len(failing) <= MOST_TOLD:
        for name, one in failing.items():
            yield Problem(
                code=code,
                subject=f"peer {name}",
                since=one.since,
                text=f"{one.text}. {so_what}.",
                remedy=remedy.format(name),
            )
        return
    first = ", ".join(list(failing)[:3])
    yield Problem(
        code=code,
        subject="peers",
        since=min((one.since for one in failing.values() if one.since is not None), default=None),
        text=f"{len(failing)} peers, {first} among them: {next(iter(failing.values())).text}. "
        f"{so_what}.",
        remedy=remedy.format(next(iter(failing))) + "; pyflannel peers names all",
    )


def _defects(report: NodeReport) -> Iterator[Problem]:
    if report.network is not None and report.network.defects:
        yield Problem(
            code=DEFECT,
            subject="pyflanneld",
            text=f"{report.network.defects} defects of pyflanneld were met and survived",
            remedy="the log has a traceback of each: please report it",
        )


_CHECKS: Final[tuple[Callable[[NodeReport], Iterator[Problem]], ...]] = (
    _waiting,
    _store,
    _server,
    _lease,
    _underlay,
    _devices,
    _network,
    _rules,
    _files,
    _config,
    _parts,
    _peers,
    _defects,
    _rejected,
)
