"""From what pytest wrote in a guest to the tables in docs/kernels.md.

`docs/kernels.json` has the results: a column for each kernel, a cell for each module of tests. All
tests of a kernel take hours, so each cell is written when its module has ended, with the commit and
the day. The tables are made from it, so they are never written by hand.
"""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

BEGIN: Final = "<!-- written by `make kernels` from kernels.json -->"
END: Final = "<!-- end of what `make kernels` writes -->"

FIGURE: Final = "figure: "
"""A property of a test by this prefix is a row of the table of figures: `record_property("figure:
TCP vxlan, Mbit/s", 1500)`."""


@dataclass
class Outcome:
    """What became of one module of tests on one kernel."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    """Names of tests."""

    skipped: dict[str, int] = field(default_factory=dict)
    """How many for which reason."""

    figures: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """In the guest's time."""

    cpu_s: float = 0.0
    """CPU time of the machine that ran the guest."""

    date: str = ""
    commit: str = ""
    """Of the checkout that ran; with a `+` if there were changes beside it."""

    broken: str = ""
    """Why there is no result, if there is none; or what the kernel said that it should not."""

    @property
    def fine(self) -> bool:
        """Whether nothing failed and something was tried."""
        tried = self.passed or self.skipped
        return bool(tried) and not self.failed and not self.broken

    def cell(self) -> str:
        """The result in a few words."""
        skips = sum(self.skipped.values())
        if self.broken:
            return f"**{self.broken}**"
        words = []
        if self.failed:
            words.append(f"**{len(self.failed)} failed**")
        if self.passed or not skips:
            words.append(f"{self.passed} passed")
        if skips:
            words.append(f"{skips} skipped")
        return ", ".join(words)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(**value)


@dataclass
class Column:
    """The results of one kernel."""

    version: str
    """The package's version."""

    modules: dict[str, Outcome] = field(default_factory=dict)
    """Of the modules that have run; they may have run on different days."""

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From JSON."""
        modules = {name: Outcome.of(one) for name, one in value["modules"].items()}
        return cls(value["version"], modules)


@dataclass
class Results:
    """All that is known of all kernels."""

    tests: list[str] = field(default_factory=list)
    """The modules with tests for guests, whether they have run or not."""

    kernels: dict[str, Column] = field(default_factory=dict)
    """By series."""

    def put(self, series: str, version: str, module: str, outcome: Outcome) -> None:
        """Takes what became of a module in place of what was known.

        A newer package is another kernel: what was seen on the one before it is dropped.
        """
        known = self.kernels.get(series)
        if known is None or known.version != version:
            known = self.kernels[series] = Column(version)
        known.modules[module] = outcome


def read_junit(text: str) -> Outcome:
    """Reads the report that pytest writes with `--junitxml`.

    Raises:
        ValueError: if it is none (a guest that died while it wrote).
    """
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(f"no junit report: {error}") from error
    outcome = Outcome()
    skipped: Counter[str] = Counter()
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        children = {child.tag: child for child in case}
        if "failure" in children or "error" in children:
            if name not in outcome.failed:
                outcome.failed.append(name)
        elif "skipped" in children:
            skipped[children["skipped"].get("message", "")] += 1
        else:
            outcome.passed += 1
        for one in case.iterfind("properties/property"):
            label = one.get("name", "")
            if label.startswith(FIGURE):
                outcome.figures[label.removeprefix(FIGURE)] = float(one.get("value", "nan"))
    for suite in root.iter("testsuite"):
        outcome.seconds += float(suite.get("time", 0))
    outcome.skipped = dict(skipped)
    return outcome


def load(file: Path) -> Results:
    """The results in a file; none if there is no file yet."""
    if not file.exists():
        return Results()
    value = json.loads(file.read_text())
    columns = {name: Column.of(one) for name, one in value["kernels"].items()}
    return Results(value["tests"], columns)


def save(results: Results, file: Path) -> None:
    """Writes a results file, the columns in the order of their kernels."""
    kernels = results.kernels
    ordered = {name: asdict(kernels[name]) for name in sorted(kernels, key=_numbers)}
    value = {"tests": sorted(results.tests), "kernels": ordered}
    file.write_text(json.dumps(value, indent=1) + "\n")


def render(results: Results) -> str:
    """The tables, and what explains them, in Markdown."""
    columns = [results.kernels[name] for name in sorted(results.kernels, key=_numbers)]
    if not columns:
        return "Not run yet.\n"
    modules = sorted({*results.tests, *(name for column in columns for name in column.modules)})
    rows = [["tests", *(_upstream(column.version) for column in columns)]]
    for module in modules:
        rows.append([f"`{module}`", *(_cell(column.modules.get(module)) for column in columns)])
    rows.append(
        ["guest's time, s", *(_sum(o.seconds for o in c.modules.values()) for c in columns)]
    )
    rows.append(["CPU time here, s", *(_sum(o.cpu_s for o in c.modules.values()) for c in columns)])
    rows.append(["run on", *(_days(column) for column in columns)])
    text = _table(rows)
    figures = list(
        dict.fromkeys(
            label for c in columns for outcome in c.modules.values() for label in outcome.figures
        )
    )
    if figures:
        rows = [["figure", *(_upstream(column.version) for column in columns)]]
        for label in figures:
            found = [
                next((o.figures[label] for o in c.modules.values() if label in o.figures), None)
                for c in columns
            ]
            rows.append([label, *("–" if value is None else f"{value:,.0f}" for value in found)])
        text += "\n" + _table(rows)
    return text + _list("Failed", _failures(columns)) + _list("Skipped", _skips(columns))


def into_document(document: str, tables: str) -> str:
    """The document with the tables between the two marks.

    Raises:
        ValueError: if the marks are not there.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN!r} with {END!r} behind it")
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _failures(columns: Sequence[Column]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in columns:
        for outcome in column.modules.values():
            for name in outcome.failed:
                found.setdefault(f"`{name}`", []).append(_upstream(column.version))
    return found


def _skips(columns: Sequence[Column]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for column in columns:
        reasons: Counter[str] = Counter()
        for outcome in column.modules.values():
            reasons.update(outcome.skipped)
        for reason, count in reasons.items():
            found.setdefault(reason, []).append(f"{count} on {_upstream(column.version)}")
    return found


def _list(title: str, found: Mapping[str, Sequence[str]]) -> str:
    if not found:
        return ""
    lines = [f"* {what}: {', '.join(where)}" for what, where in sorted(found.items())]
    return f"\n{title}:\n\n" + "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body]) + "\n"


def _cell(outcome: Outcome | None) -> str:
    return "not run" if outcome is None else f"{outcome.cell()} ({outcome.commit})"


def _sum(values: Iterable[float]) -> str:
    return f"{sum(values):.0f}"


def _days(column: Column) -> str:
    days = sorted({outcome.date for outcome in column.modules.values()})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _upstream(version: str) -> str:
    return re.split(r"[-~+]", version, maxsplit=1)[0]


def _numbers(series: str) -> tuple[list[int], str]:
    return list(map(int, re.findall(r"\d+", series))), series
