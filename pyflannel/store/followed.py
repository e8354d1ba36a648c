"""A file that is followed: by static networks, and by the network config of Kubernetes' nodes.

It is looked at four times a second. A stat(2) follows symbolic links, so a file that is written
anew, one that is renamed over, and a link that is swapped (as ConfigMaps do it) all look the same:
another identity or time. Notifications are not used, because a directory that is replaced under a
link takes its watch along.

A file that is broken, or gone, changes nothing: what it said before stays in force, and the reason
is known. It is believed to be broken when it is so at two looks in a row, since one that is being
written in place is broken for a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

from pyflannel.aio.clock import Clock
from pyflannel.core.fields import Problem
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
from pyflannel.logs import get_logger
from pyflannel.records import dataclass
from pyflannel.store.configlog import log_problems

log = get_logger(__name__)

T = TypeVar("T")

LOOK_S: Final = 0.25
"""Between two looks at the file. A change is followed within two of them and the time to read it,
well within the second that is promised; four stat(2) calls a second cost nothing measurable."""


@dataclass(frozen=True, slots=True)
class _Identity:
    """Which file it was, and when it was written."""

    device: int
    inode: int
    size: int
    written_ns: int


class FollowedFile(Generic[T]):
    """A file and what it said last.

    Args:
        path: of the file.
        parse: what a text says, `None` if there is an error among the problems.
        clock: the time.
        name: what it is, for the log: `static network file`.
        remedy: the command that says what is wrong with it.
        most_bytes: more are an error.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[str], tuple[T | None, Sequence[Problem]]],
        clock: Clock,
        *,
        name: str,
        remedy: str,
        most_bytes: int,
    ) -> None:
        self.path = path
        self._parse = parse
        self._clock = clock
        self._name = name
        self._remedy = remedy
        self._most_bytes = most_bytes
        self._seen: _Identity | None = None
        self._suspect = ""
        self.value: T | None = None
        """What it said when it was right last."""
        self.generation = 0
        """How often it has said something else."""
        self.broken = ""
        """Why it cannot be used now; empty if it can."""
        self.since: float | None = None
        """When `broken` began or ended."""

    @property
    def doubt(self) -> str:
        """Why it cannot be used, also if that was seen only once."""
        return self.broken or self._suspect

    def look(self) -> bool:
        """Reads the file if it is another one than before; whether it says something else."""
        identity = _identify(self.path)
        if identity is not None and identity == self._seen and not self._suspect:
            return False
        content = read_text_if_exists(self.path, most_bytes=self._most_bytes)
        if not isinstance(content, FileText):
            reason = content.reason if isinstance(content, FileUnreadable) else "it is not there"
            self._doubt(reason)
            return False
        value, problems = self._parse(content.text)
        if value is None:
            self._doubt(str(next(problem for problem in problems if problem.is_error)))
            return False
        self._seen = identity
        self._suspect = ""
        recovered = bool(self.broken)
        self._set_state("")
        if recovered:
            log.info(f"{self._name} is right again", path=self.path)
        if value == self.value:
            return False
        self.value = value
        self.generation += 1
        log_problems(problems, str(self.path))
        return True

    def _doubt(self, reason: str) -> None:
        """Believes a failure when it is met twice in a row."""
        if self._suspect != reason:
            self._suspect = reason
            return
        if self.broken != reason:
            log.error(
                f"{self._name} cannot be used; what it said before stays in force"
                if self.value is not None
                else f"{self._name} cannot be used, waiting",
                path=self.path,
                reason=reason,
                remedy=self._remedy,
            )
        self._set_state(reason)

    def _set_state(self, broken: str) -> None:
        if self.since is None or bool(broken) != bool(self.broken):
            self.since = self._clock.time()
        self.broken = broken


def _identify(path: Path) -> _Identity | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Identity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
