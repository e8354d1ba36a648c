"""The reports as JSON values, and back; and the schema of that JSON.

The shape is that of the records, but for what scripts held on to before it had a version: `config`
is the effective config itself, `files` maps a path to its state, and `etcd` repeats `store` where
the store is etcd. `decode` is for the command that shows a report: it passes over what it does not
know, and what is missing has the record's default, so that command and daemon may differ in age.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from pyflannel.report.model import (
    MOST_SHOWN,
    SCHEMA,
    ConfigReport,
    FilesReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    Problem,
)
from pyflannel.report.problems import problems

_SPECIAL: Final = ("config", "files")
"""Fields of `NodeReport` whose JSON is not that of their record."""


def encode(report: NodeReport) -> dict[str, object]:
    """The whole report with its problems, as plain JSON values."""
    shown: dict[str, object] = {
        "schema": SCHEMA,
        "version": report.version,
        "ready": report.ready,
        "problems": [_plain(problem) for problem in problems(report)],
        "uptime_s": round(max(0.0, report.now - report.started), 3),
    }
    if report.network is not None:
        report = dataclasses.replace(report, network=_some(report.network))
    for each in dataclasses.fields(report):
        if each.name not in _SPECIAL:
            shown[each.name] = _plain(getattr(report, each.name))
    config = report.config
    shown["config"] = dict(config.effective) if config is not None else None
    shown["config_pending"] = config.pending if config is not None else ""
    shown["config_pending_since"] = config.pending_since if config is not None else None
    shown["files"] = dict(report.files.states)
    shown["files_restored"] = report.files.restored
    shown["files_failing_since"] = dict(report.files.failing_since)
    if report.store is not None and report.store.kind == "etcd":
        shown["etcd"] = {"endpoints": report.store.where, **_members(report.store)}
    return shown


def encode_in_parts(report: NodeReport, peers: Iterable[PeerReport | None]) -> Iterator[str]:
    """The JSON text of a report with these peers, however many there are; `None` is a pause."""
    yield "{"
    for number, (name, value) in enumerate(encode(report).items()):
        yield f"{', ' if number else ''}{json.dumps(name)}: "
        if name != "peers":
            yield json.dumps(value)
            continue
        yield "["
        between = ""
        for peer in peers:
            if peer is None:
                yield ""
                continue
            yield between + json.dumps(_plain(peer))
            between = ", "
        yield "]"
    yield "}"


def _some(network: NetworkReport) -> NetworkReport:
    """A network without what the records of its peers say again."""
    failing = dict(islice(network.failing.items(), MOST_SHOWN))
    since = network.failing_since
    return dataclasses.replace(
        network,
        ignored=dict(islice(network.ignored.items(), MOST_SHOWN)),
        failing=failing,
        failing_since={name: since[name] for name in failing if name in since},
    )


def decode(shown: Mapping[str, Any]) -> NodeReport:
    """The report that `encode` was given, as far as both sides know the same fields.

    Raises:
        ValueError: a value has a type that its field cannot have.
    """
    values = {
        name: _typed(hint, shown[name])
        for name, hint in typing.get_type_hints(NodeReport).items()
        if name in shown and name not in _SPECIAL
    }
    if shown.get("config") is not None:
        values["config"] = ConfigReport(
            effective=shown["config"],
            pending=shown.get("config_pending", ""),
            pending_since=shown.get("config_pending_since"),
        )
    values["files"] = FilesReport(
        states=shown.get("files", {}),
        restored=shown.get("files_restored", 0),
        failing_since=shown.get("files_failing_since", {}),
    )
    return NodeReport(**values)


def schema() -> dict[str, object]:
    """A JSON schema (draft 2020-12) of what `encode` gives. Readers must allow further keys."""
    properties = {
        name: schema_of(hint)
        for name, hint in typing.get_type_hints(NodeReport).items()
        if name not in _SPECIAL
    }
    text: dict[str, object] = {"type": "string"}
    texts: dict[str, object] = {"type": "object", "additionalProperties": text}
    times: dict[str, object] = {"type": "object", "additionalProperties": {"type": "number"}}
    maybe_time: dict[str, object] = {"type": ["number", "null"]}
    properties |= {
        "schema": {"const": SCHEMA},
        "ready": {"type": "boolean"},
        "uptime_s": {"type": "number"},
        "problems": {"type": "array", "items": schema_of(Problem)},
        "config": {"type": ["object", "null"]},
        "config_pending": text,
        "config_pending_since": maybe_time,
        "files": texts,
        "files_restored": {"type": "integer"},
        "files_failing_since": times,
        "etcd": {"type": "object", "required": ["endpoints", "connected"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pyflannel status --json",
        "type": "object",
        "properties": dict(sorted(properties.items())),
        "required": sorted(set(properties) - {"etcd"}),
    }


def _members(record: object) -> dict[str, object]:
    assert dataclasses.is_dataclass(record)  # noqa: S101 - callers hand in records only
    return {each.name: _plain(getattr(record, each.name)) for each in dataclasses.fields(record)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _members(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(member) for member in value]
    return value


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    """The types of a record's fields. Worked out once: a report has as many peers as it has."""
    return typing.get_type_hints(kind)


def _typed(hint: Any, value: Any) -> Any:  # noqa: ANN401 - a hint and a JSON value are anything
    """A JSON value as what a field's annotation says."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _typed(next(each for each in arguments if each is not types.NoneType), value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ValueError(f"{value!r} is not an object")
        hints = _hints(hint)
        return hint(**{n: _typed(h, value[n]) for n, h in hints.items() if n in value})
    if origin is not None and issubclass(origin, Mapping):
        return {name: _typed(arguments[1], member) for name, member in value.items()}
    if origin is not None and issubclass(origin, Sequence):
        return tuple(_typed(arguments[0], member) for member in value)
    return value


_NAMES: Final[Mapping[type, str]] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
}


def schema_of(hint: Any) -> dict[str, object]:  # noqa: ANN401 - a hint is anything
    """A JSON schema of what a record, a `TypedDict` or a plain type becomes as JSON.

    A union is of one type and `None`. What can be anything has the empty schema.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = schema_of(next(each for each in arguments if each is not types.NoneType))
        kind = inner.get("type")
        return {**inner, "type": [kind, "null"]} if isinstance(kind, str) else inner
    if typing.is_typeddict(hint) or (dataclasses.is_dataclass(hint) and isinstance(hint, type)):
        members = {name: schema_of(each) for name, each in typing.get_type_hints(hint).items()}
        return {"type": "object", "properties": members, "required": sorted(members)}
    if origin is not None and issubclass(origin, Mapping):
        inner = schema_of(arguments[1])
        return {"type": "object"} | ({"additionalProperties": inner} if inner else {})
    if origin is not None and issubclass(origin, Sequence):
        return {"type": "array", "items": schema_of(arguments[0])}
    for kind, name in _NAMES.items():
        if isinstance(hint, type) and issubclass(hint, kind):
            return {"type": name}
    return {}


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=2))
