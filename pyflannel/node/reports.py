"""What an agent knows, as the records of `report.model`. Values in, values out."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from itertools import islice
from typing import Final, TypedDict

from pyflannel.core.config import NetworkConfig, effective
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease
from pyflannel.core.underlay import ExternalInterface
from pyflannel.probe.prober import UNSEEN, PeerView
from pyflannel.report.model import (
    ConfigReport,
    Failure,
    LeaseReport,
    NetworkReport,
    PeerReport,
    UnderlayReport,
)
from pyflannel.store.base import Standing

SORTED_AT_ONCE: Final = 500
"""Leases that are put in order before others may have their turn: 1 ms."""
_DROPS: Final = ("tun_", "udp_")
"""How the reasons of drop begin among a peer's counters."""
MOST_REJECTED_SHOWN: Final = 100
"""Leases that are not followed, in one answer of the status socket."""


def lease_report(lease: Lease, standing: Standing, backend: str) -> LeaseReport:
    """Our own lease, and whether it is ours."""
    return LeaseReport(
        subnet=_text(lease.key.v4),
        ipv6_subnet=_text(lease.key.v6),
        public_ip=_text(lease.attrs.public_ip),
        public_ipv6=_text(lease.attrs.public_ipv6),
        backend=backend,
        expires=lease.expires,
        reservation=lease.is_reservation,
        held=standing.held,
        confirmed=standing.confirmed,
        reason=standing.reason,
        since=standing.since,
    )


def some_rejections(rejected: Mapping[SubnetKey, str]) -> dict[str, str]:
    """Rejections as `status` shows them: enough to see what is wrong, never megabytes."""
    return {key.describe(): why for key, why in islice(rejected.items(), MOST_REJECTED_SHOWN)}


def config_report(config: NetworkConfig | None) -> ConfigReport | None:
    """A config that was read, before anything came of it."""
    return ConfigReport(effective=effective(config)) if config is not None else None


def underlay_report(
    interface: ExternalInterface | None, failure: Failure | None = None
) -> UnderlayReport | None:
    """The external interface, `None` before one is chosen, and why it cannot be used now."""
    if interface is None:
        return None
    return UnderlayReport(
        interface=interface.name,
        index=interface.index,
        mtu=interface.mtu,
        address=_text(interface.address),
        address6=_text(interface.address6),
        public_ip=_text(interface.public_ip),
        public_ipv6=_text(interface.public_ipv6),
        failing=failure.text if failure is not None else "",
        failing_since=failure.since if failure is not None else None,
    )


def peer_report(
    lease: Lease,
    backend: str,
    network: NetworkReport,
    view: PeerView | None = None,
    counted: Mapping[str, int] | None = None,
) -> PeerReport:
    """A peer by its lease: what the backend and the probes say of it, what the data path counted.

    One record, made once: with 1,000 peers the event loop stands still meanwhile.
    """
    ignored = failing = ""
    if network.ignored or network.failing:
        name = lease.key.describe()
        ignored, failing = network.ignored.get(name, ""), network.failing.get(f"peer {name}", "")
    bad = "ignored" if ignored else "failing" if failing else ""
    probed = view if view is not None else UNSEEN
    told = UNSEEN if bad else probed
    return PeerReport(
        subnet=_text(lease.key.v4),
        ipv6_subnet=_text(lease.key.v6),
        public_ip=_text(lease.attrs.public_ip),
        public_ipv6=_text(lease.attrs.public_ipv6),
        backend=lease.attrs.backend_type or backend,
        state=bad or told.state.value,
        reason=ignored or failing or told.reason,
        cause=told.cause.value,
        since=told.since,
        way=_way(backend, network),
        last_heard=probed.heard,
        rtt_s=probed.rtt_s,
        loss=probed.loss,
        mtu=probed.mtu,
        **_traffic(counted),
        underlay_heard=probed.underlay_heard,
        underlay_rtt_s=probed.underlay_rtt_s,
    )


def with_counts(peer: PeerReport, counted: Mapping[str, int] | None) -> PeerReport:
    """The same record with what the data path counted, if it counts this peer."""
    return replace(peer, **_traffic(counted)) if counted is not None else peer


def key_of(peer: PeerReport) -> SubnetKey:
    """Of the lease that a record is about."""
    return SubnetKey(
        v4=IPv4Network(peer.subnet) if peer.subnet is not None else None,
        v6=IPv6Network(peer.ipv6_subnet) if peer.ipv6_subnet is not None else None,
    )


class _Traffic(TypedDict, total=False):
    packets_in: int
    packets_out: int
    bytes_in: int
    bytes_out: int
    drops: Mapping[str, int]


def _traffic(counted: Mapping[str, int] | None) -> _Traffic:
    if counted is None:
        return {}
    return {
        "packets_in": counted["packets_in"],
        "packets_out": counted["packets_out"],
        "bytes_in": counted["bytes_in"],
        "bytes_out": counted["bytes_out"],
        "drops": {name: n for name, n in counted.items() if n and name.startswith(_DROPS)},
    }


def _way(backend: str, network: NetworkReport) -> str:
    path = network.datapath
    return f"{backend}/{path.name}" if path is not None and path.name else backend


def by_subnet(leases: Iterable[Lease]) -> Iterator[Lease | None]:
    """Leases in order; `None` is a pause, before the first one."""
    waiting = list(leases)
    parts: list[list[Lease]] = []
    for start in range(0, len(waiting), SORTED_AT_ONCE):
        if start:
            yield None
        parts.append(sorted(waiting[start : start + SORTED_AT_ONCE], key=_order))
    yield from heapq.merge(*parts, key=_order)


def _order(lease: Lease) -> tuple[int, int]:
    v4, v6 = lease.key.v4, lease.key.v6
    return (
        int(v4.network_address) if v4 is not None else 0,
        int(v6.network_address) if v6 is not None else 0,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
