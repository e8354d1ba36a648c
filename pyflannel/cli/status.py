"""`pyflannel status`: asks the daemon through its socket and prints what it says."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pyflannel.cli.common import Parser
from pyflannel.core.errors import EXIT_OK, EXIT_UNAVAILABLE, DeviceUnavailable, NotPermitted
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel.lock import is_held

TIMEOUT_S = 5.0
SOCKET_APPEARS_S = 3.0
"""The daemon makes its socket within half a second of its start, and again within a second when it
is deleted; the rest is for a busy machine."""
POLL_S = 0.02


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns 0 if the node is ready and 69 if it is not."""
    parser = Parser("pyflannel status", "This node, as its daemon sees it.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    default = os.environ.get("FLANNELD_STATUS_SOCKET") or DaemonOptions().status_socket
    parser.add_argument("--status-socket", metavar="PATH", default=default)
    given = parser.parse_args(argv)
    subnet_file = os.environ.get("FLANNELD_SUBNET_FILE") or DaemonOptions().subnet_file
    status = ask(given.status_socket, subnet_file)
    print(json.dumps(status, indent=2) if given.json else render(status))
    return EXIT_OK if status.get("ready") else EXIT_UNAVAILABLE


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
        raise NotPermitted("connect to", path, error.errno or 0, "are you root?") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DeviceUnavailable(
            "connect to", path, getattr(error, "errno", 0) or 0, "is pyflanneld running?"
        ) from error
    finally:
        connection.close()
    return answer


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


def render(status: Mapping[str, Any]) -> str:
    """For people: the phase, what is wrong, and then each section's plain values."""
    lines = [f"pyflanneld {status['version']}: {status['phase']}"]
    lines += [f"  PROBLEM {name}: {text}" for name, text in (status.get("problems") or {}).items()]
    for section in ("lease", "underlay", "network", "etcd", "rules", "files"):
        value = status.get(section)
        if isinstance(value, Mapping) and value:
            lines.append(f"{section}:")
            lines += _section(value, "  ")
    return "\n".join(lines)


def _section(values: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            if value:
                lines.append(f"{indent}{name}:")
                lines += _section(value, indent + "  ")
        elif value not in (None, "", [], 0):
            lines.append(f"{indent}{name}: {value}")
    return lines
