"""Compares what nodes report about each other. Values in, values out.

Each node's own report is one witness. A node that could not be asked is unknown, and so is its view
of others: silence proves nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pyflannel.diagnose.finding import (
    CONFIGS_DIFFER,
    DEAF_NODE,
    LEASE_UNKNOWN,
    ONE_WAY,
    TWO_OWNERS,
    VERSIONS_DIFFER,
    Finding,
)
from pyflannel.records import dataclass
from pyflannel.report.model import NodeReport, Severity
from pyflannel.report.problems import problems
from pyflannel.report.scraped import told_config

COMPARED: Final = ("Network", "IPv6Network", "SubnetLen", "EnableIPv4", "EnableIPv6", "Backend")
"""The parts of the network config on which nodes must agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """The report of one node, as far as it could be read."""

    name: str
    report: NodeReport | None = None
    reason: str = ""
    """Why it could not be asked."""
    codes: tuple[str, ...] | None = None
    """The codes of its problems; `None` if they follow from its report. A health port gives only a
    part of the report, but the codes."""
    complete: bool = True
    """Whether the report has all of its peers."""

    @property
    def subnet(self) -> str:
        """Of its lease; empty if that is not known."""
        lease = self.report.lease if self.report is not None else None
        return (lease.subnet or lease.ipv6_subnet or "") if lease is not None else ""


def cluster_findings(witnesses: Sequence[Witness]) -> list[Finding]:
    """The faults between nodes. Each node's own problems are not repeated."""
    heard = [each for each in witnesses if each.report is not None]
    found = [
        *_owners(heard),
        *_configs(heard),
        *_one_way(heard),
        *_deaf(heard),
        *_missing(heard),
        *_versions(heard),
    ]
    order = (Severity.ERROR, Severity.WARNING, Severity.INFO)
    return sorted(found, key=lambda each: order.index(each.severity))


def states(witness: Witness) -> Mapping[str, str]:
    """How a node sees its peers, by subnet."""
    report = witness.report
    return {
        peer.subnet or peer.ipv6_subnet or "": peer.state
        for peer in (report.peers if report is not None else ())
    }


def matrix(witnesses: Sequence[Witness]) -> list[list[str]]:
    """Which node hears which: a row for each one asked, a column for each; `.` is itself."""
    subnets = {each.subnet: each.name for each in witnesses if each.subnet}
    for each in witnesses:
        for subnet in states(each):
            subnets.setdefault(subnet, subnet)
    rows = [["", *subnets.values()]]
    for each in witnesses:
        if each.report is None:
            rows.append([each.name, *("unknown" for _ in subnets)])
            continue
        seen = states(each)
        unseen = "no lease" if each.complete else "unknown"
        rows.append(
            [each.name, *("." if s == each.subnet else seen.get(s, unseen) for s in subnets)]
        )
    return rows


def own_problems(witnesses: Sequence[Witness]) -> dict[str, list[str]]:
    """The codes that each node reports of itself, without information."""
    return {
        each.name: [
            problem.code
            for problem in problems(each.report)
            if problem.severity is not Severity.INFO
        ]
        if each.codes is None
        else list(each.codes)
        for each in witnesses
        if each.report is not None
    }


def _owners(heard: Sequence[Witness]) -> Iterator[Finding]:
    by_subnet: dict[str, list[str]] = {}
    for each in heard:
        if each.subnet:
            by_subnet.setdefault(each.subnet, []).append(each.name)
    for subnet, names in by_subnet.items():
        if len(names) > 1:
            yield Finding(
                code=TWO_OWNERS,
                severity=Severity.ERROR,
                subject=f"lease {subnet}",
                text=f"{' and '.join(names)} both claim {subnet}",
                evidence=tuple(f"pyflannel status on {name}" for name in names),
                consequence="containers have the same addresses on both",
                remedy="pyflannel leases says who holds it; restart the daemon of the other one",
            )


def _configs(heard: Sequence[Witness]) -> Iterator[Finding]:
    in_part = any(each.codes is not None for each in heard)
    for key in COMPARED:
        values: dict[str, list[str]] = {}
        for each in heard:
            config = each.report.config if each.report is not None else None
            if config is not None:
                known = told_config(config.effective) if in_part else config.effective
                values.setdefault(_spelled(known.get(key)), []).append(each.name)
        if len(values) > 1:
            rare = min(values, key=lambda value: len(values[value]))
            yield Finding(
                code=CONFIGS_DIFFER,
                severity=Severity.ERROR,
                subject=f"network config, {key}",
                text=f"nodes have {len(values)} values of {key} in force; {rare} on "
                + ", ".join(values[rare]),
                evidence=tuple(f"{', '.join(names)}: {value}" for value, names in values.items()),
                consequence="nodes with different values cannot reach each other, or only in part",
                remedy="systemctl restart pyflannel on those that started before the change",
            )


def _spelled(value: object) -> str:
    """Equal values get equal texts, in any order of their parts."""
    return str(dict(sorted(value.items()))) if isinstance(value, Mapping) else str(value)


def _one_way(heard: Sequence[Witness]) -> Iterator[Finding]:
    for place, one in enumerate(heard):
        for other in heard[place + 1 :]:
            there, back = states(one).get(other.subnet, ""), states(other).get(one.subnet, "")
            if {there, back} == {"up", "down"}:
                deaf, fine = (one, other) if there == "down" else (other, one)
                yield Finding(
                    code=ONE_WAY,
                    severity=Severity.WARNING,
                    subject=f"{one.name}, {other.name}",
                    text=f"{fine.name} hears {deaf.name}, and {deaf.name} does not hear "
                    f"{fine.name}",
                    evidence=(f"pyflannel peers on {deaf.name}",),
                    consequence="connections from one side fail; or one has just come back",
                    remedy=f"pyflannel doctor on {fine.name}, then on {deaf.name}; a firewall on "
                    f"{fine.name} that lets replies in and nothing new does this",
                )


def _deaf(heard: Sequence[Witness]) -> Iterator[Finding]:
    """A node that several others do not hear is named once."""
    down = Counter(
        subnet for each in heard for subnet, state in states(each).items() if state == "down"
    )
    names = {each.subnet: each.name for each in heard}
    for subnet, count in down.items():
        asked = sum(subnet in states(each) for each in heard)
        if count > 1 and count > asked / 2:
            yield Finding(
                code=DEAF_NODE,
                severity=Severity.ERROR,
                subject=names.get(subnet, f"peer {subnet}"),
                text=f"{count} of {asked} nodes do not hear {names.get(subnet, subnet)}",
                evidence=("pyflannel peers",),
                consequence="the fault is at that node or on the path to it, not at the others",
                remedy="look at that node: pyflannel doctor there",
            )


def _missing(heard: Sequence[Witness]) -> Iterator[Finding]:
    known = {each.subnet: each.name for each in heard if each.subnet}
    for each in heard:
        seen = states(each)
        if not each.complete:
            continue
        lost = [name for subnet, name in known.items() if subnet not in {each.subnet, *seen}]
        if lost:
            yield Finding(
                code=LEASE_UNKNOWN,
                severity=Severity.WARNING,
                subject=each.name,
                text=f"{each.name} does not know the lease of {', '.join(lost)}",
                evidence=(f"pyflannel peers on {each.name}",),
                consequence="it has no route to their containers",
                remedy="pyflannel status there: it may use another etcd or another prefix",
            )


def _versions(heard: Sequence[Witness]) -> Iterator[Finding]:
    versions: dict[str, list[str]] = {}
    for each in heard:
        if each.report is not None:
            versions.setdefault(each.report.version, []).append(each.name)
    if len(versions) > 1:
        yield Finding(
            code=VERSIONS_DIFFER,
            severity=Severity.INFO,
            subject="versions",
            text=f"{len(versions)} releases of pyflannel are in use",
            evidence=tuple(f"{', '.join(names)}: {version}" for version, names in versions.items()),
            consequence="this is normal while nodes are updated one by one",
            remedy="update the rest",
        )
