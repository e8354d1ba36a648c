"""Which pods reach each other: pings all pairs at the same time.

`pinger` does the work inside the pods. This module turns its reports into a `PingMatrix`, which is
a value, a JSON document and a table.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final, TypedDict

from pyflannel.lab import pinger
from pyflannel.lab.errors import LabError
from pyflannel.lab.spaces import Space
from pyflannel.records import dataclass

PROGRAM: Final = Path(pinger.__file__)

_WIDE: Final = 6
"""Up to this many pods a matrix with round trip times fits a terminal."""

_MARGIN_S: Final = 30.0
"""Added to the pingers' own deadline: time for dozens of them to start on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingResult:
    """The answers of one pod to another."""

    source: str
    """Name of the pod that asked."""
    target: str
    """Name of the pod that was asked."""
    address: str
    sent: int
    received: int
    ttl: int | None
    """TTL (hop limit) of the answer as it arrived, `None` without one."""
    rtt_ms: float | None
    """Best round trip, in milliseconds."""

    @property
    def ok(self) -> bool:
        """Whether it answered at all."""
        return self.received > 0

    def silence(self, deadline_s: float) -> str:
        """For people: no answer, to how many requests, and in what time."""
        pair = f"{self.source} to {self.target} ({self.address})"
        if not self.sent:
            return f"{pair}: the deadline of {deadline_s:g} s passed before anything was sent"
        return f"{pair}: no answer to {self.sent} requests in {deadline_s:g} s"


PairJson = TypedDict(
    "PairJson",
    {
        "from": str,
        "to": str,
        "address": str,
        "ok": bool,
        "sent": int,
        "received": int,
        "ttl": int | None,
        "rtt_ms": float | None,
    },
)
"""A pair of pods."""


class MatrixJson(TypedDict):
    """What `pyflannel lab ping --json` prints."""

    ok: bool
    pairs: list[PairJson]
    foreign_sources: dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PingMatrix:
    """The answers between all pairs of pods."""

    pods: tuple[str, ...]
    results: tuple[PingResult, ...]
    foreign_sources: Mapping[str, tuple[str, ...]]
    """For each pod that got requests from addresses that are no pod's: those addresses. A node on
    the path has rewritten them, which an overlay must not do."""

    @property
    def ok(self) -> bool:
        """Whether every pair answered, from unchanged addresses."""
        return all(result.ok for result in self.results) and not self.foreign_sources

    @property
    def ttls(self) -> frozenset[int]:
        """The TTLs seen."""
        return frozenset(result.ttl for result in self.results if result.ttl is not None)

    def failures(self) -> list[PingResult]:
        """The pairs without an answer."""
        return [result for result in self.results if not result.ok]

    def between(self, source: str, target: str) -> PingResult:
        """The result of one pair.

        Raises:
            KeyError: if this pair was not pinged.
        """
        for result in self.results:
            if (result.source, result.target) == (source, target):
                return result
        raise KeyError((source, target))

    def to_json(self) -> MatrixJson:
        """The matrix as JSON values."""
        return {
            "ok": self.ok,
            "pairs": [
                {
                    "from": result.source,
                    "to": result.target,
                    "address": result.address,
                    "ok": result.ok,
                    "sent": result.sent,
                    "received": result.received,
                    "ttl": result.ttl,
                    "rtt_ms": result.rtt_ms,
                }
                for result in self.results
            ],
            "foreign_sources": {pod: list(found) for pod, found in self.foreign_sources.items()},
        }

    def table(self) -> list[str]:
        """The matrix as lines: a row per asking pod, a column per asked one.

        Beyond `_WIDE` pods a cell has room for the TTL only, `-` being no answer.
        """
        brief = len(self.pods) > _WIDE
        cells = {(r.source, r.target): _cell(r, brief=brief) for r in self.results}
        heads = [pod if brief else f"to {pod}" for pod in self.pods]
        width = max(len(text) for text in (*cells.values(), *heads)) + (1 if brief else 2)
        name = max(len(pod) for pod in self.pods) + 2
        lines = [(" " * name + "".join(head.ljust(width) for head in heads)).rstrip()]
        for source in self.pods:
            row = [cells.get((source, target), "·").ljust(width) for target in self.pods]
            lines.append((source.ljust(name) + "".join(row)).rstrip())
        for pod, found in self.foreign_sources.items():
            lines.append(f"{pod} was asked from {', '.join(found)}: no pod has that address")
        return lines


def _cell(result: PingResult, *, brief: bool) -> str:
    if not result.ok:
        return "-" if brief else "no answer"
    if brief:
        return str(result.ttl)
    return f"ttl={result.ttl} {result.rtt_ms:.2f} ms"


def ping_all(
    pods: Mapping[str, tuple[Space, str]],
    *,
    count: int = 3,
    interval_s: float = 0.05,
    deadline_s: float = 5.0,
) -> PingMatrix:
    """Pings between all pairs of pods, all at once.

    Args:
        pods: by name: the pod's space and its address in the overlay.
        count: answers wanted from each.
        interval_s: seconds between two rounds of requests.
        deadline_s: how long a pod goes on asking those that do not answer.
    """
    started: list[subprocess.Popen[str]] = []
    try:
        for name, (space, _) in pods.items():
            others = [address for other, (_, address) in pods.items() if other != name]
            started.append(
                space.popen(
                    [
                        sys.executable,
                        "-IS",
                        str(PROGRAM),
                        f"--count={count}",
                        f"--interval={interval_s}",
                        f"--deadline={deadline_s}",
                        *others,
                    ],
                    stdin=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
        _in_step(list(pods), started)
        reports = [
            _report(child, deadline_s, name) for name, child in zip(pods, started, strict=True)
        ]
    finally:
        for child in started:
            if child.poll() is None:
                child.kill()
            with child:  # closes the pipes and reaps it
                pass
    return _matrix(pods, reports)


def _in_step(names: Sequence[str], children: Sequence[subprocess.Popen[str]]) -> None:
    for name, child in zip(names, children, strict=True):
        _expect(name, child, "ready")
    for child in children:
        pipe = _pipe(child.stdin)
        pipe.write("go\n")
        pipe.flush()
    for name, child in zip(names, children, strict=True):
        _expect(name, child, "done")


def _expect(name: str, child: subprocess.Popen[str], word: str) -> None:
    output = _pipe(child.stdout)
    line = output.readline()
    if line.strip() != word:
        raise LabError(f"{name}: the pinger failed: {(line + output.read()).strip()}")


def _report(child: subprocess.Popen[str], deadline_s: float, name: str) -> Mapping[str, object]:
    try:
        output, _ = child.communicate(timeout=deadline_s + _MARGIN_S)
        report: Mapping[str, object] = json.loads(output)
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise LabError(f"{name}: the pinger gave no report: {error}") from error
    return report


def _matrix(
    pods: Mapping[str, tuple[Space, str]], reports: Sequence[Mapping[str, object]]
) -> PingMatrix:
    names = {address: name for name, (_, address) in pods.items()}
    results: list[PingResult] = []
    foreign: dict[str, tuple[str, ...]] = {}
    for source, report in zip(pods, reports, strict=True):
        targets, sources = report["targets"], report["foreign_sources"]
        if not isinstance(targets, list) or not isinstance(sources, list):
            raise LabError(f"{source}: the pinger gave a wrong report: {report}")
        if sources:
            foreign[source] = tuple(str(address) for address in sources)
        results += [
            PingResult(
                source=source,
                target=names[target["address"]],
                address=target["address"],
                sent=target["sent"],
                received=target["received"],
                ttl=target["ttl"],
                rtt_ms=target["rtt_ms"],
            )
            for target in targets
        ]
    return PingMatrix(pods=tuple(pods), results=tuple(results), foreign_sources=foreign)


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise LabError("a pinger without a pipe")
    return stream
