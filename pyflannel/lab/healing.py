"""The demo's faults: it injects each one and shows its effect and its repair."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from pyflannel.lab.ping import PingMatrix
from pyflannel.lab.stage import Stage, pyflannel_says

if TYPE_CHECKING:
    from pyflannel.lab.cluster import Lab
    from pyflannel.lab.nodes import Node

_ETCD_SILENT: Final = "PF102"


def route_deleted(stage: Stage, lab: Lab, node: Node) -> None:
    """Deletes the overlay's route on a node, and shows how its daemon puts it back."""
    network = node.subnet_env()["FLANNEL_NETWORK"]
    look = f"ip route show {network}"
    # In one shell that is already running, so that only the daemon is measured.
    script = (
        f"set -e\nbegin=$(date +%s%N)\nip route del {network}\n"
        f'until [ -n "$({look})" ]; do :; done\n'
        f"echo $(( ($(date +%s%N) - begin) / 1000 ))\n{look}"
    )
    with stage.step("That route is deleted, and the daemon puts it back"):
        took_us, *route = node.exec(["sh", "-s"], stdin=script).stdout.splitlines()
        lab.wait(lambda: bool(_last_repair(node)), what="the repair in the daemon's log")
    stage.command(node.name, f"ip route del {network}; sleep {int(took_us) / 1e6:.3f}; {look}")
    stage.output(route)
    stage.output([f"the daemon's log: {_last_repair(node)}"])


def _last_repair(node: Node) -> str:
    """What the daemon's log says of its last repair, after time and level; empty if nothing."""
    lines = [line for line in node.log(5).splitlines() if "repaired" in line]
    return lines[-1][lines[-1].index("repaired") :].replace('"', ":") if lines else ""


def daemon_killed(stage: Stage, lab: Lab, node: Node) -> bool:
    """Kills a daemon and starts it again as its unit would; whether all pods answer then."""
    before, pid = node.subnet_env(), node.pid
    with stage.step("A daemon is killed, and started again, as systemd would do"):
        begin = time.monotonic()
        node.kill()
        node.start_daemon()
        lab.wait(node.is_ready, what="subnet.env, written again")
        ready_s = time.monotonic() - begin
        matrix = lab.ping_all(count=1)
    same = "the same" if node.subnet_env() == before else "ANOTHER"
    stage.command(node.name, f"kill -9 {pid}")
    stage.output([f"ready again after {ready_s:.2f} s, with {same} subnet; {_answers(matrix)}"])
    return matrix.ok


def etcd_away(stage: Stage, lab: Lab, node: Node) -> bool:
    """Ends etcd and starts it again; whether all pods answer without it."""
    with stage.step("etcd goes away: packets flow on; and it comes back"):
        lab.etcd.kill()
        lab.wait(lambda: _ETCD_SILENT in _codes(node), what="the daemon's word that etcd is away")
        matrix = lab.ping_all(count=1)
        said = pyflannel_says(node.space, ["status"], check=False)
        lab.etcd.start()
        begin = time.monotonic()
        lab.wait(lambda: _ETCD_SILENT not in _codes(node), what="etcd, found again")
        found_s = time.monotonic() - begin
    stage.command(node.name, "pyflannel status")
    stage.output([line for line in said if _ETCD_SILENT in line])
    stage.output([f"{_answers(matrix)}. etcd is started, and found again after {found_s:.2f} s"])
    return matrix.ok


def _codes(node: Node) -> set[str]:
    """The codes of the problems that a node reports."""
    text = "".join(pyflannel_says(node.space, ["status", "--json"], check=False))
    return {problem["code"] for problem in json.loads(text)["problems"]}


def _answers(matrix: PingMatrix) -> str:
    return f"{len(matrix.results) - len(matrix.failures())} of {len(matrix.results)} pairs answer"
