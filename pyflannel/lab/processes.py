"""Processes of the lab, identified so that no other process can be mistaken for one of them.

The lab outlives the command that made it, so a later `down` ends processes that it has not started.
A pid does not identify them, because pids are reused. Two things do:

* a pid *and* the process's start time (`ProcessRef`), kept in the lab's state file;
* the variable `PYFLANNEL_LAB_ID` in the environment of everything the lab starts, the random id of
  the lab. Children of those processes inherit it. It also finds a process that was started just
  before a crash and is not in the state file yet.

Signals go through a pidfd that was opened *before* the check, so between the check and the signal
the pid cannot be reused.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from pyflannel.records import dataclass

LAB_ID_VARIABLE: Final = "PYFLANNEL_LAB_ID"
"""Environment variable that marks every process of a lab with the lab's id."""

_STAT_STATE: Final = 0
_STAT_START: Final = 19
"""Fields of `/proc/PID/stat` counted from the one after the command: state is field 3 of proc(5)
and start time field 22, so 0 and 19 from there."""

_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """Identifies one process: its pid with the time at which it started."""

    pid: int
    start: int
    """Clock ticks after boot, as the kernel counts them; only compared, never computed with."""

    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return ref_of(self.pid) == self

    def send(self, signum: int) -> bool:
        """Sends a signal to this process and to no other; tells whether it was still there."""
        with _pidfd(self.pid) as fd:
            if fd is None or not self.alive():
                return False
            try:
                signal.pidfd_send_signal(fd, signum)
            except ProcessLookupError:
                return False
            return True


def ref_of(pid: int) -> ProcessRef | None:
    """The name of the process that has this pid now, `None` if none runs under it."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in parentheses and may itself contain some: cut at the last one.
    fields = text.rpartition(")")[2].split()
    if fields[_STAT_STATE] in {"Z", "X"}:
        return None
    return ProcessRef(pid, int(fields[_STAT_START]))


def marked_with(lab_id: str) -> list[ProcessRef]:
    """Every process of the lab with this id, except ourselves and those we descend from.

    The exception is for `pyflannel lab exec … -- pyflannel lab down`.
    """
    mark = f"{LAB_ID_VARIABLE}={lab_id}".encode()
    kin = set(_ancestry())
    found: list[ProcessRef] = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in kin:
            continue
        ref = ref_of(int(entry.name))
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue  # gone, or another user's: in both cases not ours
        if ref is not None and mark in environment.split(b"\0"):
            found.append(ref)
    return found


def end_all(processes: Iterable[ProcessRef], *, grace_s: float) -> list[ProcessRef]:
    """Ends processes with SIGTERM, and after `grace_s` seconds with SIGKILL; returns those killed.

    Children of ours become zombies; their parent reaps them.
    """
    asked = [ref for ref in processes if ref.send(signal.SIGTERM)]
    for ref in asked:
        ref.send(signal.SIGCONT)  # a stopped process handles SIGTERM only after SIGCONT
    stubborn = wait_gone(asked, deadline=time.monotonic() + grace_s)
    for ref in stubborn:
        ref.send(signal.SIGKILL)
    # SIGKILL cannot be ignored; five seconds are for a very busy machine.
    wait_gone(stubborn, deadline=time.monotonic() + 5.0)
    return stubborn


def abandon(child: subprocess.Popen[str]) -> None:
    """Detaches a child: this process will end before it, and never wait for it."""
    # Popen checks this when it is collected, to warn that it was not waited for.
    child.returncode = 0


def wait_gone(processes: Iterable[ProcessRef], *, deadline: float) -> list[ProcessRef]:
    """Waits until all have ended; returns those that still run at `deadline` (monotonic clock)."""
    left = list(processes)
    for index, ref in enumerate(left):
        with _pidfd(ref.pid) as fd:
            if fd is None or not ref.alive():
                continue
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return [ref for ref in left[index:] if ref.alive()]
    return []


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _ancestry() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        try:
            text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        pid = int(text.rpartition(")")[2].split()[1])
