"""`python -m bench.breaks`: what pyflannel says of ten ordinary breaks, and after how long.

Each break is made in a lab of its own, on one node. From then on the nodes are watched: the codes
in `pyflannel status` (asked over the socket, four times a second), those of `pyflannel doctor` (a
process, each few seconds), the marks of `pyflannel leases`, and log lines above information. What
was there before the break is left out. Printed is a table in Markdown, with the seconds after which
each was first seen, on which node; a dash where nothing was said within `--seconds`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from pyflannel.cli import status
from pyflannel.core.errors import FlannelError
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.errors import LabError
from pyflannel.lab.nodes import Node
from pyflannel.lab.topology import ETCD_ENDPOINT
from pyflannel.lab.trouble import break_it

WARM_S = 30.0
"""For the first answers of all probes, large ones too."""
POLL_S = 0.25
DOCTOR_EVERY_S = 4.0
QUIET = ("DEBUG", "INFO")


@dataclass(frozen=True, slots=True)
class Break:
    """One of the table's rows."""

    name: str
    do: Callable[[Lab], None]
    backend: str = "vxlan"
    datapath: str = ""
    args: tuple[str, ...] = ()
    seconds: float = 0.0
    """To watch at least."""


@dataclass(slots=True)
class Seen:
    """What was said, with the seconds until then."""

    status: dict[str, float] = field(default_factory=dict)
    doctor: dict[str, float] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    log: dict[str, float] = field(default_factory=dict)


def shell(node: Node, script: str) -> None:
    """Runs shell lines on a node."""
    node.exec(["sh", "-ec", script])


def trouble(name: str, number: int = 2) -> Callable[[Lab], None]:
    """One of the lab's own."""

    def do(lab: Lab) -> None:
        break_it(lab, name, number)

    return do


def another_chain(lab: Lab) -> None:
    """As firewalld does it: a base chain of its own that lets nothing be forwarded."""
    shell(
        lab.node(2),
        "nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD "
        "{ type filter hook forward priority filter + 10; policy accept; }'; "
        "nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
    )


def other_bridge(lab: Lab) -> None:
    """docker0 as a docker without our options makes it."""
    shell(
        lab.node(2),
        "ip address flush dev docker0; ip address add 172.17.0.1/16 dev docker0",
    )


def same_address(lab: Lab) -> None:
    """Node 2 publishes node 1's address, by a wrong DHCP answer or a cloned machine."""
    shell(
        lab.node(2),
        "ip address delete 192.0.2.2/24 dev eth0; ip address add 192.0.2.1/24 dev eth0; "
        "ip route replace default via 192.0.2.254 dev eth0",
    )


def dead(lab: Lab) -> None:
    """The machine is off: no daemon, no kernel that answers."""
    lab.node(2).kill()
    lab.node(2).unplug()


def etcd_down(lab: Lab) -> None:
    """Its process is gone."""
    lab.etcd.stop()


BREAKS = (
    Break(
        "firewall drops 8285 (udp, native)",
        trouble("firewall drops the overlay"),
        backend="udp",
        datapath="native",
    ),
    Break("firewall drops 8472 (vxlan)", trouble("firewall drops the overlay")),
    Break(
        "FORWARD policy DROP, no rules of ours",
        lambda lab: shell(lab.node(2), "iptables -P FORWARD DROP"),
        args=("--iptables-forward-rules=false",),
    ),
    Break("ip_forward off", trouble("forwarding off")),
    Break("another nft chain drops", another_chain),
    Break(
        "path MTU smaller than the device says",
        trouble("narrow underlay"),
        # Every tenth probe is a large one, and three of them must be lost.
        seconds=240.0,
    ),
    Break("docker0 in another subnet", other_bridge),
    Break("node 2 takes node 1's public IP", same_address),
    Break("peer's cable out", trouble("cable pulled")),
    Break("peer dead", dead),
    Break("etcd down", etcd_down),
    Break("etcd frozen", lambda lab: lab.etcd.pause()),
)


def problems(node: Node) -> set[str]:
    """The codes of a node's status; empty if its daemon is gone."""
    try:
        answer = status.ask(
            str(node.path("/run/flannel/pyflannel.sock")), str(node.path("/run/flannel/subnet.env"))
        )
    except FlannelError:
        return set()
    return {f"{each['code']} on {node.name}" for each in answer["problems"]}


def findings(node: Node) -> set[str]:
    """The codes of a node's doctor."""
    done = node.exec(["pyflannel", "doctor", "--json"], check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return set()
    return {f"{each['code']} on {node.name}" for each in found["findings"]}


def leases(node: Node) -> set[str]:
    """What `pyflannel leases` says beside its list, or why there is none."""
    asked = ["pyflannel", "leases", f"--etcd-endpoints={ETCD_ENDPOINT}"]
    done = node.exec(asked, check=False, timeout=90.0)
    said = {line.removeprefix("pyflannel: ") for line in done.stderr.splitlines() if line}
    return said if done.returncode == 0 else {f"exit {done.returncode}: {'; '.join(said)}"}


def loud(node: Node) -> list[str]:
    """Messages above information."""
    found = []
    for line in node.log().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if str(entry.get("level", "")).upper() not in QUIET:
            found.append(f"{entry.get('code') or entry.get('event')} on {node.name}")
    return found


def watch(lab: Lab, broken: Break, seconds: float) -> Seen:
    """Makes the break and writes down what is said."""
    nodes = lab.nodes
    before = {
        "status": set().union(*map(problems, nodes)),
        "doctor": set().union(*map(findings, nodes)),
        "log": {line for node in nodes for line in loud(node)},
    }
    seen = Seen()
    begin = time.monotonic()
    broken.do(lab)
    asked = begin - DOCTOR_EVERY_S

    def note(found: dict[str, float], new: Iterable[str], known: set[str]) -> None:
        for each in new:
            if each not in known:
                found.setdefault(each, time.monotonic() - begin)

    while time.monotonic() - begin < seconds:
        for node in nodes:
            note(seen.status, problems(node), before["status"])
            note(seen.log, loud(node), before["log"])
        if time.monotonic() - asked >= DOCTOR_EVERY_S:
            asked = time.monotonic()
            for node in nodes:
                note(seen.doctor, findings(node), before["doctor"])
        time.sleep(POLL_S)
    note(seen.leases, leases(lab.node(1)), set())
    return seen


def cell(found: dict[str, float], most: int = 4) -> str:
    """What was seen, the first ones first."""
    rows = sorted(found.items(), key=lambda each: each[1])
    texts = [f"{name} ({after:.1f} s)" for name, after in rows[:most]]
    more = [f"{len(rows) - most} more"] if len(rows) > most else []
    return "; ".join([*texts, *more]).replace("|", "\\|") or "–"


def main() -> int:
    """Runs the breaks that were asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.breaks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=25.0, help="to watch each (default 25)")
    parser.add_argument("--only", metavar="TEXT", default="", help="those with TEXT in their name")
    given = parser.parse_args()
    print("| broken | status | leases | doctor | log |\n|---|---|---|---|---|")
    for number, broken in enumerate(BREAKS):
        if given.only not in broken.name:
            continue
        spec = LabSpec(
            name=f"break{number}",
            nodes=3,
            backend=broken.backend,
            datapath=broken.datapath,
            daemon_args=("--log-format=json", *broken.args),
        )
        with Lab(spec) as lab:
            time.sleep(WARM_S)
            try:
                seen = watch(lab, broken, max(given.seconds, broken.seconds))
            except LabError as error:
                print(f"| {broken.name} | {error} | | | |", flush=True)
                continue
            parts = (seen.status, seen.leases, seen.doctor, seen.log)
            print(f"| {broken.name} | {' | '.join(map(cell, parts))} |", flush=True)
            lab.etcd.resume()
    return 0


if __name__ == "__main__":
    sys.exit(main())
