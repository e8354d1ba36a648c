"""Writes docs/reference/json.md and *.schema.json, what `--json` prints.

`python tools/jsonpage.py [DIRECTORY]`. Schemas are made of the records and types that the commands
print, so that the type checker holds the commands to them; the page is made of the schemas. What a
member means, where its name does not say it, stands here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypedDict

from pyflannel.cli import shapes
from pyflannel.diagnose.datapaths import PathFacts
from pyflannel.diagnose.finding import Finding
from pyflannel.diagnose.layers import Layer, Verdict
from pyflannel.diagnose.way import Hop
from pyflannel.docker import model as docker
from pyflannel.lab.bench import BenchResult
from pyflannel.lab.cluster import LabJson
from pyflannel.lab.overview import LabsJson, StatusJson
from pyflannel.lab.ping import MatrixJson
from pyflannel.report import codec
from pyflannel.report.model import PeerReport

DIRECTORY: Final = Path(__file__).parents[1] / "docs" / "reference"
DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


class PingJson(TypedDict):
    """`ping`."""

    layers: list[Layer]
    verdict: Verdict


class TraceJson(TypedDict):
    """`trace`."""

    hops: list[Hop]
    ends: bool


class FindingsJson(TypedDict):
    """`doctor`."""

    schema: int
    subject: str
    findings: list[Finding]


class DockerJson(TypedDict):
    """`doctor docker`."""

    findings: list[docker.Checked]


class DatapathJson(TypedDict):
    """`doctor datapath`."""

    schema: int
    subject: str
    chosen: str
    why: str
    paths: list[PathFacts]


class ClusterJson(FindingsJson):
    """`doctor --cluster`."""

    nodes: dict[str, list[str]]
    unknown: dict[str, str]
    matrix: list[list[str]]


_OF: Final[Mapping[str, Any]] = {
    "config get": shapes.ConfigJson,
    "config check": shapes.ConfigJson,
    "static check": shapes.StaticJson,
    "leases list": shapes.LeasesJson,
    "leases release": shapes.LeaseDoneJson,
    "leases reserve": shapes.LeaseDoneJson,
    "leases prune": shapes.PruneJson,
    "peers": Sequence[PeerReport],
    "ping": PingJson,
    "trace": TraceJson,
    "cleanup": shapes.CleanupJson,
    "doctor": FindingsJson,
    "doctor (docker)": DockerJson,
    "doctor (datapath)": DatapathJson,
    "doctor (--cluster)": ClusterJson,
    "bundle": shapes.BundleJson,
    "lab up": LabJson,
    "lab ping": MatrixJson,
    "lab bench": BenchResult,
    "lab list": LabsJson,
    "lab status": StatusJson,
}
"""By the words of a command, with what makes a difference in brackets."""


def schemas() -> dict[str, dict[str, object]]:
    """By the words of a command, as in `_OF`; `status` too."""
    found = {"status": codec.schema()}
    for name, hint in _OF.items():
        words = name.replace("(", "").replace(")", "")
        found[name] = {
            "$schema": DRAFT,
            "title": f"pyflannel {words} --json",
            **codec.schema_of(hint),
        }
    return found


def file_of(name: str) -> str:
    """The file of a command's schema."""
    words = re.sub(r"[()]|--", "", name)
    return f"{words.replace(' ', '-')}.schema.json"


HEAD: Final = """\
# JSON

Made by `tools/jsonpage.py`.

Shapes only grow: members are added, none is taken away or means something else. A member that is
not known now is `null`. Where there is `"schema"`, it says which shape this is. Times are seconds
since the epoch, lengths of time end in `_s`, and sizes are bytes. For each command there is a JSON
schema (draft 2020-12); readers must allow further members.
"""

_CONFIG: Final = {
    "config": "the network config with nothing left to defaults; `null` if it has errors"
}
_FINDINGS: Final = {"subject": "as asked"}
ABOUT: Final[Mapping[str, Mapping[str, str]]] = {
    "config get": _CONFIG,
    "config check": _CONFIG,
    "static check": _CONFIG,
    "leases list": {"ignored": "keys that are no leases, each with the reason"},
    "leases release": {"done": "what was done"},
    "leases reserve": {"done": "what was done"},
    "leases prune": {
        "released": "subnets",
        "kept": "subnets that could not be released, each with the reason",
    },
    "trace": {"ends": "whether one of them ends it"},
    "cleanup": {
        "dry_run": "whether nothing was removed",
        "found": "what was found",
        "failed": "what could not be removed, each with the reason",
        "left": "what was left alone, each with the reason",
    },
    "doctor": _FINDINGS,
    "doctor (datapath)": {
        "subject": "`datapath`",
        "chosen": "what `--datapath auto` takes; empty if it finds none",
        "why": "the reason",
    },
    "doctor (--cluster)": {
        "subject": "`cluster`",
        "nodes": "codes of problems by node",
        "unknown": "nodes that could not be asked, each with the reason",
        "matrix": "rows: by node, how each other one is seen from there",
    },
    "bundle": {"file": "the archive"},
    "lab up": {
        "name": "of the lab",
        "directory": "where its files are",
        "store": "`etcd` or `static`",
        "etcd_endpoint": "`null` without etcd",
        "etcd_prefix": "of the keys",
        "config": "the network config",
    },
    "lab ping": {
        "ok": "whether every pair answered",
        "foreign_sources": "by pod, addresses that its requests came from and no pod has",
    },
    "lab bench": {"source": "a pod", "target": "a pod"},
    "lab status": {
        "name": "of the lab",
        "broken": "faults that `lab break` made",
        "hidden": "how many more there are, made with `--hide`",
    },
}
"""By the words of a command and the member."""


def page() -> str:
    """The page."""
    return "".join(_page())


def _page() -> Iterator[str]:
    yield HEAD
    for name, schema in schemas().items():
        file = file_of(name)
        yield f"\n## {name}\n\nSchema: [`{file}`]({file})\n\n| member | | |\n| --- | --- | --- |\n"
        about = ABOUT.get(name, {})
        if schema["type"] == "array":
            yield f"| (all of it) | {_said(schema)} | |\n"
        properties: Any = schema.get("properties", {})
        for member, inner in properties.items():
            yield f"| `{member}` | {_said(inner)} | {about.get(member, '')} |\n"


def _said(schema: Mapping[str, Any]) -> str:
    """What stands there: its type, and the members of objects."""
    if "const" in schema:
        return f"`{schema['const']}`"
    kinds = schema.get("type", "anything")
    kind, *more = [kinds] if isinstance(kinds, str) else kinds
    or_null = " or null" if more else ""
    if kind == "array":
        return f"array{or_null}; each: {_said(schema['items'])}"
    if kind == "object" and "properties" in schema:
        names = ", ".join(f"`{name}`" for name in schema["properties"])
        return f"object{or_null}: {names}"
    if kind == "object" and "additionalProperties" in schema:
        return f"object{or_null}, by name: {_said(schema['additionalProperties'])}"
    return f"{kind}{or_null}"


def pages() -> dict[str, str]:
    """Every file, by its name."""
    found = {file_of(name): json.dumps(each, indent=2) + "\n" for name, each in schemas().items()}
    return {"json.md": page(), **found}


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY
    for name, text in pages().items():
        (directory / name).write_text(text)
