"""Which labs there are, and the state of the nodes of one of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypedDict

from pyflannel.core.options import DaemonOptions
from pyflannel.lab.errors import LabError
from pyflannel.lab.processes import ProcessRef
from pyflannel.lab.state import StateDirectory, all_labs

if TYPE_CHECKING:
    from pyflannel.lab.cluster import Lab
    from pyflannel.lab.nodes import Node

_ANSWER_S: Final = 10.0
"""Time for a daemon's status. It takes 0.3 s, most of it Python's start."""


class NodeState(TypedDict):
    """The state of one node."""

    node: str
    public_ip: str
    subnet: str | None
    pod: str | None
    daemon_pid: int | None
    state: str
    """`running`, or why not, in a few words."""
    problems: list[str]
    """The problems that the daemon itself reports."""


class LabEntry(TypedDict):
    """The state of a lab."""

    name: str
    nodes: int
    state: str
    """`up`, or why not."""
    directory: str


class LabsJson(TypedDict):
    """What `pyflannel lab list --json` prints."""

    labs: list[LabEntry]


class StatusJson(TypedDict):
    """What `pyflannel lab status --json` prints."""

    name: str
    nodes: list[NodeState]
    broken: list[str]
    hidden: int


def labs(base: Path | None = None) -> list[LabEntry]:
    """The labs that are up, or half up, each with its size, backend and directory."""
    found: list[LabEntry] = []
    for name in all_labs(base):
        directory = StateDirectory(name, base)
        try:
            state = directory.load()
        except LabError as error:
            found.append({"name": name, "nodes": 0, "state": str(error), "directory": ""})
            continue
        switch = state.processes.get("switch")
        alive = switch is not None and switch.alive()
        nodes = sum(role.startswith("node") for role in state.processes)
        found.append(
            {
                "name": name,
                "nodes": nodes,
                "state": "up" if alive else "broken off",
                "directory": str(directory.path),
            }
        )
    return found


def nodes(lab: Lab) -> list[NodeState]:
    """The state of each node of a lab. All daemons are asked at the same time."""
    asked = {node.number: _ask(node) for node in lab.nodes}
    return [_state(node, asked[node.number]) for node in lab.nodes]


Answer = Mapping[str, object]


def questions(lab: Lab, ask: Callable[[str], Answer]) -> dict[str, Callable[[], Answer]]:
    """How to ask the daemon of each node that is ours.

    Args:
        lab: which is up.
        ask: a daemon, by the path of its status socket.
    """
    paths = {
        each.name: each.path(DaemonOptions().status_socket) for each in lab.nodes if each.is_ours
    }
    return {name: partial(ask, str(path)) for name, path in paths.items()}


def _ask(node: Node) -> subprocess.Popen[str] | str:
    """The question under way, or why there is none."""
    daemon = node.daemon
    if daemon is None:
        return "its daemon does not run"
    if is_stopped(daemon):
        return "its daemon is stopped by a signal"
    if not node.is_ours:
        return "running"
    command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "status", "--json"]
    return node.space.popen(command, stderr=subprocess.PIPE)


def is_stopped(process: ProcessRef) -> bool:
    """Whether a process was stopped by SIGSTOP."""
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"


def _state(node: Node, asked: subprocess.Popen[str] | str) -> NodeState:
    state, problems = (asked, []) if isinstance(asked, str) else _answer(asked)
    daemon = node.daemon
    return {
        "node": node.name,
        "public_ip": node.address,
        "subnet": node.subnet_env().get("FLANNEL_SUBNET"),
        "pod": node.pod_address(),
        "daemon_pid": daemon.pid if daemon is not None else None,
        "state": state,
        "problems": problems,
    }


def _answer(asked: subprocess.Popen[str]) -> tuple[str, list[str]]:
    try:
        output, trouble = asked.communicate(timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        asked.kill()
        asked.communicate()
        return "its daemon does not answer", []
    try:
        return read_status(output)
    except (ValueError, KeyError, TypeError):
        return trouble.strip().rpartition("\n")[2] or "its daemon does not answer", []


def read_status(text: str) -> tuple[str, list[str]]:
    """State and problems, from what `pyflannel status --json` prints.

    Raises:
        ValueError, KeyError, TypeError: it is not such a text.
    """
    status = json.loads(text)
    problems = [
        "; ".join(filter(None, (str(problem["text"]).rstrip("."), str(problem["remedy"]))))
        for problem in status["problems"]
    ]
    if not status["ready"]:
        return "not ready", problems
    return ("running" if not problems else "running, with problems"), problems
