"""A report for people: the verdict, what is wrong, then the node part by part.

`headline` is the one line that systemd shows; `page` is `pyflannel status`. A page fits into 80
columns where its words allow it. Nothing is left out because it is false or zero: what is not known
is not shown, everything else is.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.model import (
    DatapathReport,
    NetworkReport,
    NodeReport,
    Problem,
    Severity,
)
from pyflannel.report.peers import by_trouble, table
from pyflannel.report.problems import KUBERNETES, problems
from pyflannel.report.words import clock_time, left, since

WIDTH: Final = 80
INDENT: Final = "  "
MOST_PEERS: Final = 12
"""In the page: with problems and parts it still is about one screen."""


def verdict(report: NodeReport) -> Severity | None:
    """The worst that is wrong; `None` if nothing is. Information alone is nothing."""
    found = {problem.severity for problem in problems(report)}
    for severity in (Severity.ERROR, Severity.WARNING):
        if severity in found:
            return severity
    return None


def headline(report: NodeReport) -> str:
    """One line: what the node does, and the worst that is wrong with it."""
    if not report.ready and report.waiting_for:
        return shown(report.waiting_for, MOST_IN_LOG)
    serious = [p for p in problems(report) if p.severity is not Severity.INFO]
    if not serious:
        return shown(report.phase, MOST_IN_LOG)
    first = serious[0]
    more = f" (and {len(serious) - 1} more)" if len(serious) > 1 else ""
    when = f" {since(first.since, report.now)}" if first.since is not None else ""
    return shown(f"{report.phase}; {first.subject}{when}: {first.text}{more}", MOST_IN_LOG)


def page(report: NodeReport) -> str:
    """The whole report."""
    found = problems(report)
    serious = [problem for problem in found if problem.severity is not Severity.INFO]
    lines = [_verdict_line(report, len(serious))]
    for problem in found:
        lines += _problem(problem, report.now)
    lines += _peer_table(report)
    lines += _section("probes", _probes(report))
    lines += _section("lease", _lease(report))
    lines += _section("store", _store(report))
    lines += _section("underlay", _underlay(report))
    lines += _section("network", _network(report))
    if report.network is not None and report.network.datapath is not None:
        lines += _section("data path", _datapath(report.network.datapath))
    lines += _section("traffic rules", _rules(report))
    lines += _section("files", _files(report))
    return "\n".join(lines)


def _verdict_line(report: NodeReport, count: int) -> str:
    if not report.ready:
        state = "NOT READY"
    elif count:
        state = f"works, with {count} problem" + ("s" if count > 1 else "")
    else:
        state = "fine"
    return shown(f"pyflanneld {report.version}: {state}; {report.phase}", MOST_IN_LOG)


def _problem(problem: Problem, now: float) -> list[str]:
    when = since(problem.since, now)
    head = f"{problem.severity.upper()} {problem.code} {problem.subject}" + (when and f", {when}")
    lines = [shown(head, MOST_IN_LOG), *wrapped(problem.text)]
    if problem.remedy:
        lines += wrapped(f"do: {problem.remedy}")
    return lines


def wrapped(text: str) -> list[str]:
    """Foreign or own words as indented lines."""
    return textwrap.wrap(
        shown(text, MOST_IN_LOG),
        WIDTH,
        initial_indent=INDENT,
        subsequent_indent=INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _peer_table(report: NodeReport) -> list[str]:
    first = by_trouble(report.peers)[:MOST_PEERS]
    lines = [INDENT + line for line in table(first, report.now, width=WIDTH - len(INDENT))]
    more = len(report.peers) - len(first)
    if more:
        lines.append(f"{INDENT}and {more} more: pyflannel peers")
    counts = Counter(peer.state for peer in report.peers)
    summary = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return [f"peers: {summary}", *lines] if lines else []


Row = tuple[str, str]


def _section(title: str, rows: Iterator[Row]) -> list[str]:
    known = [(name, shown(text, MOST_IN_LOG)) for name, text in rows if text]
    if not known:
        return []
    width = max(len(name) for name, _ in known)
    return [f"{title}:", *(f"{INDENT}{name.ljust(width)}  {text}" for name, text in known)]


def _probes(report: NodeReport) -> Iterator[Row]:
    probes = report.probes
    if probes is None or not report.peers:
        return
    asked = _ASKED.get(probes.probed, "")
    if not asked:
        yield "asked", "nothing: something else carries the packets of this backend"
    elif not probes.interval_s:
        yield "asked", "nothing: --probe-interval is 0"
    elif probes.refused:
        yield "asked", f"nothing: {probes.refused}"
    else:
        yield "asked", f"{asked}, every {probes.interval_s:.0f} s"
        void = f", {probes.void} void" if probes.void else ""
        yield "answers", f"{probes.answered}, {probes.lost} lost{void}"


_ASKED: Final = {
    "tunnel": "each peer through the tunnel, and now and then beside it",
    "node": "each peer at its public address (there is no tunnel)",
}


def _lease(report: NodeReport) -> Iterator[Row]:
    lease = report.lease
    if lease is None:
        return
    yield "subnet", _joined(lease.subnet, lease.ipv6_subnet)
    yield "public ip", _joined(lease.public_ip, lease.public_ipv6)
    yield "backend", lease.backend
    if report.store is not None and report.store.kind == KUBERNETES:
        yield "ends", "with the node object: it is its podCIDR"
    elif lease.reservation:
        yield "ends", "never: it is a reservation"
    elif lease.expires is not None:
        ends = f"{clock_time(lease.expires, report.now)} ({left(lease.expires, report.now)})"
        yield "ends", ends
    if lease.held is not None:
        yield "held", "yes" if lease.held else f"no: {lease.reason}"
    elif lease.confirmed is not None:
        yield "held", f"not known {since(lease.confirmed, report.now)}: {lease.reason}"


def _store(report: NodeReport) -> Iterator[Row]:
    store = report.store
    if store is None:
        return
    yield store.kind, store.where
    if store.connected is None:
        yield "answers", "not asked yet"
    else:
        state = "yes" if store.connected else "no"
        yield "answers", " ".join(filter(None, (state, since(store.since, report.now))))
    if store.version:
        yield "version", store.version
    yield "revision", str(store.revision)
    yield "peers", str(store.peers)
    if store.reconnects:
        yield "reconnects", str(store.reconnects)
    if report.config is not None:
        yield "config", "in force" if not report.config.pending else report.config.pending


def _underlay(report: NodeReport) -> Iterator[Row]:
    underlay = report.underlay
    if underlay is None:
        return
    yield "interface", f"{underlay.interface} (index {underlay.index}, MTU {underlay.mtu})"
    yield "address", _joined(underlay.address, underlay.address6)


def _network(report: NodeReport) -> Iterator[Row]:
    network = report.network
    if network is None:
        return
    port = f", port {network.port}" if network.port is not None else ""
    yield "backend", f"{network.backend}{port}"
    yield "mtu", str(network.mtu)
    for name, device in network.devices.items():
        state = {True: "up", False: "DOWN", None: "state unknown"}[device.up]
        mac = f", {device.mac}" if device.mac else ""
        yield "device", f"{name} {state}, index {device.index}, MTU {device.mtu}{mac}"
        if device.tx_checksum:
            yield "checksums", f"offload of {name} {device.tx_checksum}"
    yield "peers", _peers(network)
    yield "objects", _counts(network.objects)
    yield "repaired", _counts(network.repaired)
    if network.commands_running is not None:
        yield "commands", f"{network.commands_running} running"


def _peers(network: NetworkReport) -> str:
    count = max(network.ignored_count, len(network.ignored))  # an older daemon counts none
    ignored = f", {count} of them left out" if count else ""
    return f"{network.peers}{ignored}"


def _datapath(path: DatapathReport) -> Iterator[Row]:
    yield "name", path.name or "none runs"
    yield "why", path.why
    yield "offloads", ", ".join(f"{name} {state}" for name, state in path.offloads.items())
    for name, count in path.counters.items():
        yield name, str(count)
    yield "restarts", str(path.restarts)


def _rules(report: NodeReport) -> Iterator[Row]:
    if report.rules is not None:
        yield "in place", f"no: {report.rules.failing}" if report.rules.failing else "yes"
        yield "repairs", str(report.rules.repairs)


def _files(report: NodeReport) -> Iterator[Row]:
    yield from report.files.states.items()
    if report.files.restored:
        yield "restored", str(report.files.restored)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _joined(*values: str | None) -> str:
    return ", ".join(value for value in values if value is not None)
