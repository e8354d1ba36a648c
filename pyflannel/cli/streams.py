"""The standard streams as a program may find them: open, closed, full, or without a reader."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from pyflannel.core.errors import EXIT_UNAVAILABLE


def make_whole() -> bool:
    """Puts /dev/null in the place of closed standard streams; whether stdout was open.

    Otherwise the next file or socket that is opened gets number 1 or 2, and is written to by
    whatever prints.
    """
    was_open = True
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            was_open = was_open and number != 1
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - as long as the process
    return was_open


class OutputFailed(Exception):
    """Nothing more can be written to stdout.

    Not an `OSError`, so that it is not mistaken for one of another file.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class _Output(io.TextIOWrapper):
    """stdout, whose failures can be told from those of other files."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            raise OutputFailed(error) from error

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            raise OutputFailed(error) from error


def watch_output() -> None:
    """From now on a failure of stdout is an `OutputFailed`."""
    former = sys.stdout
    if isinstance(former, io.TextIOWrapper) and not isinstance(former, _Output):
        settings = (former.encoding, former.errors, None, former.line_buffering)
        direct = former.write_through
        sys.stdout = _Output(former.detach(), *settings, write_through=direct)


def write_bytes(data: bytes) -> None:
    """Writes to stdout what is not text, or not to be changed.

    Raises:
        OutputFailed: it cannot be written.
    """
    sys.stdout.flush()
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputFailed(error) from error


def finish(program: str, work: Callable[[], int]) -> int:
    """Does some work and writes out what it printed; the exit code.

    A reader who has seen enough (`… | head`) is no failure. After one stdout leads nowhere, so that
    the interpreter's own attempt at the end succeeds.
    """
    code = 0
    try:
        try:
            code = work()
        except SystemExit as end:  # argparse, after --help
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
    except OutputFailed as failed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        if not isinstance(failed.error, BrokenPipeError):
            why = failed.error.strerror
            print(f"{program}: write to standard output: {why}", file=sys.stderr)
            return EXIT_UNAVAILABLE
    return code
