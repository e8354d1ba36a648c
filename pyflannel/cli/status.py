"""`pyflannel status`: asks the daemon through its socket and prints what it says."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pyflannel.cli import unit
from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core.errors import EXIT_OK, DeviceUnavailable, NotPermitted
from pyflannel.core.options import DaemonOptions
from pyflannel.foreign import MOST_IN_LOG
from pyflannel.foreign import shown as escaped
from pyflannel.kernel.lock import is_held
from pyflannel.report.codec import decode
from pyflannel.report.model import SCHEMA
from pyflannel.report.paint import painted, wanted
from pyflannel.report.text import page, verdict

TIMEOUT_S = 5.0
SOCKET_APPEARS_S = 3.0
"""The daemon makes its socket within half a second of its start, and again within a second when it
is deleted; the rest is for a busy machine."""
POLL_S = 0.02
WATCH_S = 2.0
LEAST_WATCH_S = 0.1
CLEAR = "\x1b[H\x1b[2J"
"""Cursor home, erase the screen (ECMA-48 CUP, ED)."""


ABOUT = """The verdict comes first, then what is wrong, then part by part.

Colours on a terminal only (NO_COLOR=1: none). With --watch and --json one object a line.

Exit code 0 if all is fine, 1 if the node works with problems, 3 if it is not ready, or there is no
daemon, or it may not be asked."""
EXIT_PROBLEMS = 1
EXIT_NOT_READY = 3


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    given = branch().parser.parse_args(argv)
    if given.watch is None:
        return show(given)
    while True:
        if sys.stdout.isatty() and not given.json:
            print(CLEAR, end="")
        show(given)
        sys.stdout.flush()
        time.sleep(given.watch)


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel status",
        "this node, as its daemon sees it",
        ABOUT,
        examples=(
            "pyflannel status",
            "pyflannel status --watch 5",
            "pyflannel status --json",
        ),
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch",
        metavar="SECONDS",
        nargs="?",
        type=seconds,
        const=WATCH_S,
        help=f"again and again, every {WATCH_S:g} s, until Ctrl-C",
    )
    add_socket_option(parser)
    return Branch(parser)


def seconds(text: str) -> float:
    """A positive number of seconds, for argparse.

    Raises:
        ValueError: it is none.
    """
    value = float(text)
    if not LEAST_WATCH_S <= value < float("inf"):
        raise ValueError(text)
    return value


def show(given: argparse.Namespace) -> int:
    """Asks once and prints the answer; returns the exit code."""
    try:
        shown = ask(given.status_socket, subnet_file())
    except (DeviceUnavailable, NotPermitted) as error:
        print(f"pyflannel: {escaped(error, MOST_IN_LOG)}", file=sys.stderr)
        return EXIT_NOT_READY
    if shown.get("schema") != SCHEMA:
        return _other_release(shown)
    report = decode(shown)
    if given.json:
        print(json.dumps(shown, indent=None if given.watch else 2))
    else:
        terminal = sys.stdout.isatty()
        paint = wanted(os.environ, terminal=terminal)
        print(painted(page(report)) if paint else page(report))
    if not report.ready:
        return EXIT_NOT_READY
    return EXIT_PROBLEMS if verdict(report) is not None else EXIT_OK


def add_socket_option(parser: Parser) -> None:
    """Gives a command the option that names the daemon to ask."""
    parser.add_argument(
        "--status-socket", metavar="PATH", default=socket_path(), help="the daemon's"
    )


def socket_path() -> str:
    """The daemon's socket, unless the command line names one."""
    return os.environ.get("FLANNELD_STATUS_SOCKET") or DaemonOptions().status_socket


def subnet_file() -> str:
    """The subnet file of the daemon, by which it is known whether it lives."""
    return os.environ.get("FLANNELD_SUBNET_FILE") or DaemonOptions().subnet_file


def _other_release(answer: Mapping[str, Any]) -> int:
    """A daemon from before an upgrade: its answer is printed as it came."""
    print(json.dumps(answer, indent=2))
    version = escaped(answer.get("version", "unknown"), 40)
    print(
        f"pyflannel: the daemon is of another release ({version}), its status is shown as it "
        "came; restart pyflanneld",
        file=sys.stderr,
    )
    if not answer.get("ready"):
        return EXIT_NOT_READY
    return EXIT_PROBLEMS if answer.get("problems") else EXIT_OK


def ask(path: str, subnet_file: str = "") -> dict[str, Any]:
    """The daemon's status.

    Args:
        path: its status socket.
        subnet_file: of a daemon that may have started just now: if it lives, its socket is waited
            for.

    Raises:
        DeviceUnavailable: no daemon answers there.
        NotPermitted: the socket may not be opened.
    """
    connection = http.client.HTTPConnection("localhost", timeout=TIMEOUT_S)
    try:
        connection.sock = _connect(path, subnet_file)
        connection.request("GET", "/status")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
    except PermissionError as error:
        raise NotPermitted(
            "connect to",
            path,
            error.errno or 0,
            "only root may ask, and the group that --status-group of pyflanneld names",
        ) from error
    except (FileNotFoundError, ConnectionRefusedError) as error:
        hint = _why_nobody(path)
        raise DeviceUnavailable("connect to", path, error.errno or 0, hint) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DeviceUnavailable(
            "connect to", path, getattr(error, "errno", 0) or 0, "what answers is not pyflanneld"
        ) from error
    finally:
        connection.close()
    return answer


def _why_nobody(path: str) -> str:
    """Why no daemon listens there, and the way out."""
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return "it is not a socket; --status-socket names the daemon's"
    except OSError:
        pass  # the usual case: it is not there
    return unit.describe() or "is pyflanneld running?"


def _connect(path: str, subnet_file: str) -> socket.socket:
    deadline = time.monotonic() + SOCKET_APPEARS_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(TIMEOUT_S)
        try:
            sock.connect(path)
            return sock
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            late = time.monotonic() >= deadline
            if late or not subnet_file or not is_held(subnet_file):
                raise
        except BaseException:
            sock.close()
            raise
        time.sleep(POLL_S)
