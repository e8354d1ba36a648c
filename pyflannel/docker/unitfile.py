"""systemd unit files as systemd reads them: drop-ins, resets, continued lines, variables.

As much of systemd.unit(5), systemd.syntax(7) and the "Command lines" section of systemd.service(5)
as it takes to tell how a service is started. A pure function of texts, so that another machine's
tree, or a node without a running systemd, can be judged as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from typing import Final

from pyflannel.records import dataclass

SEARCH_PATH: Final = (
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
)
"""Where units and their drop-in directories are looked for, the most important first
(systemd.unit(5), "Unit File Load Path", without generators)."""

_VARIABLE: Final = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<braced>\w+)\}|(?P<plain>\w+))", re.ASCII)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit with its drop-ins merged."""

    sources: tuple[str, ...] = ()
    """The files it was made of, in the order in which they count."""
    settings: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """Values by section and name, those before an empty assignment forgotten."""

    def values(self, section: str, name: str) -> tuple[str, ...]:
        """All values of a setting, in order."""
        return self.settings.get((section, name), ())

    @property
    def command_line(self) -> str:
        """Its `ExecStart=`, of which a service that stays has one; empty if it has none."""
        return (self.values("Service", "ExecStart") or ("",))[-1]

    @property
    def environment_files(self) -> tuple[str, ...]:
        """Paths of its `EnvironmentFile=` lines, without the `-` of optional ones."""
        return tuple(v.removeprefix("-") for v in self.values("Service", "EnvironmentFile"))

    def words(self, section: str, name: str) -> tuple[str, ...]:
        """The values of a setting that is a list of words, such as `After=`."""
        return tuple(word for value in self.values(section, name) for word in value.split())


def merge(texts: Sequence[tuple[str, str]]) -> Unit:
    """The unit that its file and its drop-ins make, given as path and text in order."""
    settings: dict[tuple[str, str], list[str]] = {}
    for _, text in texts:
        for section, name, value in _assignments(text):
            values = settings.setdefault((section, name), [])
            if value:
                values.append(value)
            else:
                values.clear()
    return Unit(
        sources=tuple(path for path, _ in texts),
        settings={key: tuple(values) for key, values in settings.items()},
    )


def drop_ins(directories: Sequence[Iterable[str]]) -> list[tuple[int, str]]:
    """Which files of drop-in directories count, and in which order.

    Args:
        directories: names in each directory, the most important directory first.

    Returns:
        Index of the directory and name: sorted by name over all, a name that several have taken
        from the first of them.
    """
    first: dict[str, int] = {}
    for index, names in enumerate(directories):
        for name in names:
            if name.endswith(".conf"):
                first.setdefault(name, index)
    return [(first[name], name) for name in sorted(first)]


def _assignments(text: str) -> Iterable[tuple[str, str, str]]:
    section = ""
    for line in _logical_lines(text):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif "=" in line:
            name, _, value = line.partition("=")
            yield section, name.strip(), value.strip()


def _logical_lines(text: str) -> Iterable[str]:
    pending = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue  # also between a line and its continuation
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = (pending + line).strip()
        pending = ""
        if whole:
            yield whole
    if pending.strip():
        yield pending.strip()


def environment(text: str) -> dict[str, str]:
    """What an `EnvironmentFile=` sets: assignments, comments, continued lines, one pair of quotes.

    Escapes and quotes within a value stay as they are: enough to tell what a variable is about.
    """
    found = {}
    for line in _logical_lines(text):
        name, equals, value = line.partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if equals:
            found[name.strip()] = value.strip()
    return found


def variables(command_line: str) -> dict[str, bool]:
    """The variables that a command line refers to: whether their value is split into words.

    `$NAME` as a word of its own is split at blanks; `${NAME}`, and `$NAME` inside a word, are not.
    """
    found: dict[str, bool] = {}
    for match in _VARIABLE.finditer(command_line):
        name = match["braced"] or match["plain"]
        if name is None:
            continue
        before = command_line[: match.start()]
        after = command_line[match.end() :]
        alone = (not before or before[-1].isspace()) and (not after or after[0].isspace())
        splits = match["plain"] is not None and alone
        found[name] = found.get(name, False) or splits
    return found
