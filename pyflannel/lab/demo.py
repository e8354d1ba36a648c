"""The walk-through: from a network config in etcd to containers that reach each other.

It shows the commands that really ran, where they ran, and what they printed. In between the lab
does only what docker would do with the options file. Each step has a headline with its time, the
commands and their output.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

import pyflannel
from pyflannel.core.errors import UsageError
from pyflannel.lab import bench, compare, healing, precheck
from pyflannel.lab.cluster import Lab
from pyflannel.lab.errors import LabError
from pyflannel.lab.processes import ref_of
from pyflannel.lab.program import program
from pyflannel.lab.stage import INDENT, Stage, pyflannel_says
from pyflannel.lab.state import all_labs
from pyflannel.lab.topology import DEMO_CONFIG, LabSpec

EXIT_UNANSWERED: Final = 1
"""A pod did not answer; the exit code of ping(8)."""

BULK_S: Final = 1.0
"""Seconds of bulk traffic by each way."""

_PICTURE: Final = """\
    pod1          pod2          pod3      containers, one per node
     |             |             |
  [docker0]     [docker0]     [docker0]   bridges, set up from docker_opts.env
   node1         node2         node3      a pyflanneld on each
     |             |             |
  ---+-------------+-------------+------  underlay 192.0.2.0/24, etcd is on it"""


def run(*, nodes: int = 3, datapath: str = "", picture: str = "", out: TextIO | None = None) -> int:
    """Shows the walk-through and always removes everything again.

    Args:
        nodes: how many.
        datapath: of the daemons; empty to let them choose.
        picture: a file for the output as SVG; empty for none.
        out: where it is shown; stdout if `None`.

    Returns:
        0 only if every pair of pods answered.
    """
    spec = LabSpec(name=f"demo-{os.getpid()}", nodes=nodes, config=DEMO_CONFIG, datapath=datapath)
    precheck.check(spec)
    if picture and not os.access(Path(picture).absolute().parent, os.W_OK):
        raise UsageError(f"--svg {picture}: no directory that can be written to")
    stage = Stage(out if out is not None else sys.stdout)
    _clear_up_after_the_killed()
    begin = time.monotonic()
    lab = Lab(spec)
    try:
        lab.create()
        good, verdict = _show(stage, lab)
    except LabError as error:
        error.add_note(lab.logs())
        raise
    finally:
        # A second Ctrl-C must not interrupt the removal.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        lab.down()
    took = time.monotonic() - begin
    stage.verdict(f"{verdict}. All gone again after {took:.1f} s.", good=good)
    name = program()
    stage.line("Your own to explore, and to break (docs/learn.md):")
    for rest in ("up --backend vxlan", "exec 1 -- ip route", "break --random --hide", "down"):
        stage.line(f"{INDENT}{name} lab {rest}")
    if picture:
        try:
            Path(picture).write_text(stage.picture(), encoding="utf-8")
        except OSError as error:
            raise LabError(f"--svg {picture}: {error.strerror}") from error
    return 0 if good else EXIT_UNANSWERED


def _show(stage: Stage, lab: Lab) -> tuple[bool, str]:
    stage.line(f"pyflannel {pyflannel.__version__} on Linux {platform.release()}\n")
    if lab.spec.nodes == _PICTURE.count("[docker0]"):
        stage.line(_PICTURE)
    with stage.step(
        f"{lab.spec.nodes} nodes in network namespaces, etcd on the switch between them"
    ):
        lab.build()

    with stage.step("The network config into etcd"):
        pyflannel_says(lab.switch, ["config", "set", "-"], stdin=lab.spec.config_text())
    stage.command("switch", "pyflannel config set - <<'.'")
    stage.output([*lab.spec.config_text().splitlines(), "."])

    with stage.step("A daemon on each node: it leases a subnet, and says where it is"):
        lab.start_daemons()
        lab.wait_ready()
    stage.command("node1", " ".join(_brief(lab.node(1).daemon_command())))
    stage.command("switch", "pyflannel leases")
    stage.output(pyflannel_says(lab.switch, ["leases"]))

    commands = [
        "cat /run/flannel/subnet.env",
        "cat /run/docker_opts.env",
        "ip -br address show dev flannel0",
        "ip route",
    ]
    with stage.step("What that gave node 1: two files, a device, a route"):
        printed = [lab.node(1).exec(shlex.split(command)).stdout for command in commands]
    for command, text in zip(commands, printed, strict=True):
        stage.command("node1", command)
        stage.output(_without_noise(text.splitlines()))

    with stage.step("Containers, on bridges set up from docker_opts.env: all ping all"):
        lab.attach_pods()
        matrix = lab.ping_all()
    stage.output(matrix.table())
    answered = len(matrix.results) - len(matrix.failures())
    if matrix.ttls == {60}:
        stage.output(["ttl=60: of 64, two kernels and two daemons on the way have taken one each"])

    healing.route_deleted(stage, lab, lab.node(1))
    good = matrix.ok
    good &= healing.daemon_killed(stage, lab, lab.node(lab.spec.nodes))
    good &= healing.etcd_away(stage, lab, lab.node(1))

    if lab.spec.nodes > 1:
        one, other = lab.node(1), lab.node(2)
        with stage.step("Bulk traffic from pod1 to pod2: ours, and what else there is"):
            bulk = bench.tcp(one, other, seconds=BULK_S)
            rates = compare.others(one, other, seconds=BULK_S)
        ours = compare.Rate(f"udp ({_datapath(lab)})", bulk.gbit_per_s)
        stage.output([f"TCP, Gbit/s: {', '.join(map(str, [ours, *rates]))}"])
        stage.output(
            [
                f"{BULK_S:g} s each; this machine's CPUs are both ends and all nodes: compare only",
                f"pod2 sees it come from {', '.join(bulk.seen_as)}",
            ]
        )
    return good, f"{answered} of {len(matrix.results)} pairs answered"


def _datapath(lab: Lab) -> str:
    command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "status", "--json"]
    # It exits with 1 if anything is wrong, which the demo shows by its pings.
    status = json.loads(lab.node(1).space.run(command, check=False).stdout)
    return str(status["network"]["datapath"]["name"])


def _brief(command: Sequence[str]) -> list[str]:
    # The program by its name, as a user types it.
    return [os.path.basename(command[0]), *command[1:]]  # noqa: PTH119 - text, not a file


def _without_noise(lines: Sequence[str]) -> list[str]:
    # Lifetimes, link layer and link-local addresses are left out.
    return [line for line in lines if not re.search(r"valid_lft|link/|fe80::", line)]


def _clear_up_after_the_killed() -> None:
    """Removes the labs of demos that were killed and could not do so."""
    for name in all_labs():
        match = re.fullmatch(r"demo-(\d+)", name)
        if match and ref_of(int(match[1])) is None:
            with suppress(LabError):
                Lab(LabSpec(name=name)).down()
