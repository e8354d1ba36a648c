"""`pyflannel doctor --cluster`: nodes compared, as each of them says."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pyflannel.cli import healthport, status
from pyflannel.cli.common import table
from pyflannel.core.errors import EXIT_OK, FlannelError, UsageError
from pyflannel.diagnose.cluster import (
    Witness,
    cluster_findings,
    matrix,
    own_problems,
)
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.codec import decode
from pyflannel.report.model import SCHEMA, Severity

EXIT_WRONG: Final = 1
ASK_S: Final = 20.0
"""For one node: a connection of ssh, and the command there."""
AT_ONCE: Final = 16


def port(text: str) -> int:
    """A TCP port, or 0 for none, for argparse.

    Raises:
        ValueError: it is none.
    """
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise ValueError(text)
    return number


def collect(socket: str, directory: str, via: str, health_port: int = 0) -> list[Witness]:
    """This node, and what the others let us read.

    Args:
        socket: of this node's daemon.
        directory: with a file `NODE.json` for each node, each what `status --json` printed there.
        via: a command with `{host}` in it that runs another one on a node, such as `ssh {host}`.
        health_port: of the others' daemons; 0 for not to ask them.

    Raises:
        UsageError: the directory is none, or the command has no place for the host.
    """
    if via and "{host}" not in via:
        raise UsageError(f"--via {shown(via)}: expected {{host}} in it, such as 'ssh {{host}}'")
    if directory:
        return _from(Path(directory))
    try:
        own = status.ask(socket, status.subnet_file())
    except FlannelError as error:
        return [Witness(name="this node", reason=str(error))]
    here = _witness("this node", own)
    peers = here.report.peers if here.report is not None else ()
    hosts = [peer.public_ip or peer.public_ipv6 or "" for peer in peers]
    if not via and not health_port:
        why = "not asked; --healthz-port PORT, --via 'ssh {host}' or --from DIR asks"
        return [here, *(Witness(name=host, reason=why) for host in hosts)]
    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        asked = pool.map(
            lambda host: _asked(via, host) if via else _heard(host, health_port), hosts
        )
        return [here, *asked]


def _heard(host: str, health_port: int) -> Witness:
    """A node by its health port."""
    try:
        found = healthport.ask(host, health_port)
    except healthport.NoAnswer as error:
        return Witness(name=host, reason=str(error))
    return Witness(name=host, report=found.report, codes=found.codes, complete=found.complete)


def _from(directory: Path) -> list[Witness]:
    if not directory.is_dir():
        raise UsageError(f"--from {directory}: there is no such directory")
    found = []
    for path in sorted(directory.glob("*.json")):
        try:
            answer = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            found.append(Witness(name=path.stem, reason=str(error)))
        else:
            found.append(_witness(path.stem, answer))
    if not found:
        raise UsageError(
            f"--from {directory}: no NODE.json there; each is what pyflannel status --json prints"
        )
    return found


def _asked(via: str, host: str) -> Witness:
    words = [word.replace("{host}", host) for word in shlex.split(via)]
    try:
        done = subprocess.run(
            [*words, "pyflannel", "status", "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_S,
            check=False,
        )
        return _witness(host, json.loads(done.stdout))
    except (OSError, subprocess.TimeoutExpired) as error:
        return Witness(name=host, reason=str(error))
    except ValueError:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return Witness(name=host, reason=lines[-1] if lines else "it answers nothing")


def _witness(name: str, answer: Any) -> Witness:  # noqa: ANN401 - JSON of others
    if not isinstance(answer, Mapping) or answer.get("schema") != SCHEMA:
        return Witness(name=name, reason="its answer is not what pyflannel status --json prints")
    try:
        return Witness(name=name, report=decode(answer))
    except (ValueError, TypeError) as error:
        return Witness(name=name, reason=f"its answer cannot be read: {error}")


def show(witnesses: Sequence[Witness], render: Any, *, as_json: bool) -> int:  # noqa: ANN401
    """Prints the comparison; returns the exit code.

    Args:
        witnesses: who was asked.
        render: makes a finding into lines for people.
        as_json: for programs.
    """
    found = cluster_findings(witnesses)
    own = own_problems(witnesses)
    silent = {each.name: each.reason for each in witnesses if each.report is None}
    wrong = any(one.severity is not Severity.INFO for one in found) or any(own.values())
    if as_json:
        answer = {
            "schema": SCHEMA,
            "subject": "cluster",
            "findings": [asdict(one) for one in found],
            "nodes": own,
            "unknown": silent,
            "matrix": matrix(witnesses),
        }
        print(json.dumps(answer, indent=2))
        return EXIT_WRONG if wrong else EXIT_OK
    for one in found:
        print(render(one))
    for name, codes in own.items():
        if codes:
            print(shown(f"{name} itself reports {', '.join(codes)}", MOST_IN_LOG))
    head, *rows = [[shown(cell, 24) for cell in row] for row in matrix(witnesses)]
    print(table(head, rows), end="")
    for name, reason in silent.items():
        print(shown(f"unknown: {name}: {reason}", MOST_IN_LOG))
    asked = len(witnesses) - len(silent)
    verdict = "something is wrong" if wrong else "nothing is wrong"
    print(f"{verdict} between the {asked} of {len(witnesses)} nodes that could be asked")
    return EXIT_WRONG if wrong else EXIT_OK
