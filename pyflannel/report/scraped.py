"""What another node tells on its health port: `/metrics`, read back as a report.

The inverse of `report.metrics`, as far as that goes: version, lease, network config, whether it is
ready, its peers and the codes of its problems. The text is a stranger's: every value is taken as
text, and what is not understood is passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final

from pyflannel.records import dataclass
from pyflannel.report.model import (
    ConfigReport,
    LeaseReport,
    NodeReport,
    PeerReport,
    Severity,
)

_LINE: Final = re.compile(r"(?P<name>pyflannel_[a-z_]+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL: Final = re.compile(r'([a-z0-9_]+)="((?:[^"\\]|\\.)*)",?')
_ESCAPED: Final = re.compile(r"\\(.)")
_STATES: Final = {1.0: "up", 0.0: "down"}


class NotTold(ValueError):
    """The text is not that of a node that tells its lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scraped:
    """One node, as its metrics have it."""

    report: NodeReport
    complete: bool
    """Whether the report has all of its peers: a node tells of the first 250."""
    codes: tuple[str, ...]
    """Of its problems that are more than information."""


def scraped(text: str) -> Scraped:
    """A node by its metrics.

    Raises:
        NotTold: it does not say which lease it has.
    """
    series: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, labels, value in _samples(text):
        series.setdefault(name, []).append((labels, value))
    first = {name: found[0] for name, found in series.items()}
    if "pyflannel_node_info" not in first:
        raise NotTold("pyflannel_node_info")
    node, _ = first["pyflannel_node_info"]
    version, _ = first.get("pyflannel_build_info", ({}, 0.0))
    config, _ = first.get("pyflannel_config_info", ({}, 0.0))
    ready = first.get("pyflannel_ready", ({}, 0.0))[1] > 0
    states = {
        labels.get("subnet", ""): _STATES.get(value, "unknown")
        for labels, value in series.get("pyflannel_peer_up", ())
    }
    peers = [
        PeerReport(
            subnet=labels.get("subnet") or None,
            public_ip=labels.get("public_ip") or None,
            state=states.get(labels.get("subnet", ""), "unknown"),
        )
        for labels, _ in series.get("pyflannel_peer_info", ())
    ]
    known = sum(value for _, value in series.get("pyflannel_peers", ()))
    report = NodeReport(
        version=version.get("version", ""),
        ready_since=0.0 if ready else None,
        lease=LeaseReport(
            subnet=node.get("subnet") or None,
            ipv6_subnet=node.get("ipv6_subnet") or None,
            public_ip=node.get("public_ip") or None,
            public_ipv6=node.get("public_ipv6") or None,
            backend=node.get("backend", ""),
        ),
        config=ConfigReport(effective=_config(config)) if config else None,
        peers=peers,
    )
    codes = tuple(
        labels.get("code", "")
        for labels, _ in series.get("pyflannel_problems_by_code", ())
        if labels.get("severity") != Severity.INFO.value
    )
    return Scraped(report=report, complete=known <= len(peers), codes=codes)


def told_config(effective: Mapping[str, object]) -> dict[str, object]:
    """The part of a network config that the health port tells: no text but the backend's type.

    A backend's other texts are commands and the like, which concern this node alone.
    """
    backend = effective.get("Backend")
    told: dict[str, object] = {}
    if isinstance(backend, Mapping):
        told = {
            str(key): value
            for key, value in backend.items()
            if key == "Type" or isinstance(value, bool | int)
        }
    return {
        key: told if key == "Backend" else effective[key]
        for key in TOLD.values()
        if key in effective
    }


TOLD: Final = {
    "network": "Network",
    "ipv6_network": "IPv6Network",
    "subnet_len": "SubnetLen",
    "enable_ipv4": "EnableIPv4",
    "enable_ipv6": "EnableIPv6",
    "backend": "Backend",
}
"""Labels of `pyflannel_config_info`, with the keys of the config; each value as JSON."""


def config_labels(effective: Mapping[str, object]) -> dict[str, str]:
    """The labels of `pyflannel_config_info`."""
    told = told_config(effective)
    return {
        label: json.dumps(told[key], sort_keys=True, separators=(",", ":")) if key in told else ""
        for label, key in TOLD.items()
    }


def _config(labels: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for label, key in TOLD.items():
        text = labels.get(label, "")
        if text:
            try:
                found[key] = json.loads(text)
            except (ValueError, RecursionError):
                found[key] = text
    return found


def _samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        labels = {
            name: _ESCAPED.sub(lambda each: "\n" if each[1] == "n" else each[1], label)
            for name, label in _LABEL.findall(match["labels"] or "")
        }
        yield match["name"], labels, value
