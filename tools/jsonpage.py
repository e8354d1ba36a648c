"""Writes docs/reference/json.md, what `--json` prints: python tools/jsonpage.py [FILE]."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pyflannel.diagnose.datapaths import DatapathFacts, PathFacts
from pyflannel.diagnose.finding import Finding
from pyflannel.diagnose.layers import Layer, Verdict
from pyflannel.diagnose.way import Hop
from pyflannel.docker import model as docker
from pyflannel.lab.bench import BenchResult, Latency, PacketRate, Throughput

Shape = Mapping[str, object]
"""Member by member: a tuple of names for an object, a list with one such tuple for an array of
them, a text for anything else."""
DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "reference" / "json.md"
STATUS: Final = Path(__file__).parents[1] / "docs" / "reference" / "status.schema.json"

HEAD: Final = """\
# JSON

Made by `tools/jsonpage.py`.

Shapes only grow: members are added, none is taken away or means something else. A member that is
not known now is `null`. Where there is `"schema"`, it says which shape this is. Times are seconds
since the epoch, lengths of time end in `_s`, and sizes are bytes.
"""


def _of(kind: Any) -> tuple[str, ...]:  # noqa: ANN401
    return tuple(each.name for each in fields(kind))


_PROBLEMS: Final = [("severity", "key", "message", "remedy")]
_LEASE: Final = (
    *("subnet", "ipv6_subnet", "public_ip", "public_ipv6", "backend", "backend_data"),
    *("backend_v6_data", "ttl", "reservation"),
)
_CONFIG: Final[Shape] = {
    "config": "the network config with nothing left to defaults; `null` if it has errors",
    "problems": _PROBLEMS,
}
_DONE: Final[Shape] = {"done": "what was done", "lease": _LEASE}
_FINDINGS: Final[Shape] = {"schema": "1", "subject": "as asked", "findings": [_of(Finding)]}


def shapes() -> dict[str, Shape]:
    """By the words of a command, with what makes a difference in brackets."""
    schema = json.loads(STATUS.read_text())
    peer = schema["properties"]["peers"]["items"]["properties"]
    return {
        "config get": _CONFIG,
        "config check": _CONFIG,
        "static check": {
            "config": _CONFIG["config"],
            "nodes": [
                *[("name", "subnet", "ipv6_subnet", "public_ip", "public_ipv6", *_LEASE[5:7])],
            ],
            "problems": _PROBLEMS,
        },
        "leases list": {
            "leases": [(*_LEASE, "own")],
            "ignored": "keys that are no leases, each with the reason",
        },
        "leases release": _DONE,
        "leases reserve": _DONE,
        "leases prune": {
            "silent": [("subnet", "public_ip", "silent_s")],
            "unclear": [("subnet", "reason")],
            "released": "subnets",
            "kept": "subnets that could not be released, each with the reason",
        },
        "status": dict.fromkeys(schema["properties"], "see `docs/reference/status.schema.json`"),
        "peers": {"(an array)": [tuple(peer)]},
        "ping": {"layers": [_of(Layer)], "verdict": _of(Verdict)},
        "trace": {"hops": [_of(Hop)], "ends": "whether one of them ends it"},
        "cleanup": {
            "dry_run": "whether nothing was removed",
            "found": "what was found",
            "failed": "what could not be removed, each with the reason",
            "left": "what was left alone, each with the reason",
        },
        "doctor": _FINDINGS,
        "doctor (docker)": {"findings": [_of(docker.Checked)]},
        "doctor (datapath)": {
            "schema": "1",
            "subject": "`datapath`",
            **dict.fromkeys(_of(DatapathFacts), "see `docs/reference/datapaths.md`"),
            "paths": [_of(PathFacts)],
        },
        "doctor (--cluster)": {
            **_FINDINGS,
            "nodes": "problems by node",
            "unknown": "nodes that could not be asked, each with the reason",
            "matrix": "by node, how each other one is seen from there",
        },
        "bundle": {"file": "the archive", "members": [("name", "source", "missing")]},
        "lab up": {
            "name": "of the lab",
            "directory": "where its files are",
            "store": "`etcd` or `static`",
            "etcd_endpoint": "`null` without etcd",
            "etcd_prefix": "of the keys",
            "config": "the network config",
            "nodes": [("node", "public_ip", "daemon_pid", "subnet", "mtu", "pod", "log")],
        },
        "lab ping": {
            "ok": "whether every pair answered",
            "pairs": [("from", "to", "address", "ok", "sent", "received", "ttl", "rtt_ms")],
            "foreign_sources": "by pod, addresses that its requests came from and no pod has",
        },
        "lab bench": {
            **dict.fromkeys(_of(BenchResult), "a pod"),
            "tcp_1": _of(Throughput),
            "tcp_4": _of(Throughput),
            "latency": _of(Latency),
            "packets": _of(PacketRate),
        },
        "lab list": {"labs": [("name", "nodes", "state", "directory")]},
        "lab status": {
            "name": "of the lab",
            "nodes": [
                *[("node", "public_ip", "subnet", "pod", "daemon_pid", "state", "problems")],
            ],
            "broken": "faults that `lab break` made",
            "hidden": "how many more there are, made with `--hide`",
        },
    }


def page() -> str:
    """The page."""
    return "".join(_page())


def _page() -> Iterator[str]:
    yield HEAD
    for name, shape in shapes().items():
        yield f"\n## {name}\n\n| member | |\n| --- | --- |\n"
        for member, about in shape.items():
            yield f"| `{member}` | {_said(about)} |\n"


def _said(about: object) -> str:
    match about:
        case [tuple() as names]:
            return f"an array; each: {_names(names)}"
        case tuple() as names:
            return f"an object: {_names(names)}"
        case _:
            return str(about)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    (Path(sys.argv[1]) if len(sys.argv) > 1 else DOCUMENT).write_text(page())
