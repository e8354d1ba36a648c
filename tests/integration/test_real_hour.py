"""An hour of twenty daemons with churn: nothing is said above information, and nothing grows.

`make hour` runs it; `PYFLANNEL_HOUR_S` is its length, `PYFLANNEL_HOUR_NODES` the number of nodes.
Each round one node is restarted, in order or by SIGKILL, or leaves for good and comes back with a
new lease, as nodes of a cluster do all day; and leases come and go of nodes that never answer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pyflannel.cli import status
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(0)]

HOUR_S = float(os.environ.get("PYFLANNEL_HOUR_S", "3600"))
NODES = int(os.environ.get("PYFLANNEL_HOUR_NODES", "20"))
ROUND_S = 15.0
STEADY = 5
"""Nodes that are never restarted: theirs is the memory that is looked at."""
WARM_S = min(600.0, HOUR_S / 3)
"""Until caches and allocators have what they need."""
GROWTH_MIB = 1.0
"""An hour, of each daemon."""
SETTLED_S = 120.0
"""In which all peers must be up again behind the last round."""
STRANGERS = range(200, 230)
CALM = {"INFO", "DEBUG"}


def ask(node: Node) -> Mapping[str, Any]:
    """What the daemon says of itself, over its socket."""
    return status.ask(
        str(node.path("/run/flannel/pyflannel.sock")), str(node.path("/run/flannel/subnet.env"))
    )


def resident_mib(node: Node) -> float:
    text = Path(f"/proc/{node.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def stranger(number: int) -> tuple[str, str]:
    """Key and value of a lease whose node never answers."""
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}
    value = {"PublicIP": f"192.0.2.{number}", "BackendType": "vxlan", "BackendData": data}
    return f"/coreos.com/network/subnets/10.0.{number}.0-24", json.dumps(value)


class Hour:
    """The lab, and what is done to it."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab = lab
        self.rng = random.Random(seed)
        self.restless = lab.nodes[STEADY:]
        self.done: list[str] = []

    def turn(self) -> None:
        """One thing of a cluster's day."""
        node = self.rng.choice(self.restless)
        kind = self.rng.choice(["restart", "restart", "crash", "leave", "lease", "lease"])
        self.done.append(f"{kind} {node.name}")
        if kind == "lease":
            key, value = stranger(self.rng.choice(STRANGERS))
            if self.rng.random() < 0.5:
                self.lab.etcd.put(key, value)
            else:
                self.lab.etcd.delete(key)
            return
        if kind == "crash":
            node.kill(signal.SIGKILL)
        else:
            node.stop_daemon()
        if kind == "leave":
            subnet = node.subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0-")
            self.lab.etcd.delete(f"/coreos.com/network/subnets/{subnet}")
            node.exec(["pyflannel", "cleanup"])
            for device in ("veth0", "docker0"):  # the pod goes, and its bridge
                node.exec(["ip", "link", "delete", device])
        node.start_daemon()
        self.lab.wait(node.is_ready, 60, what=f"{node.name} is ready")
        if kind == "leave":
            node.attach_pod()

    def problems(self) -> dict[str, object]:
        """What is wrong, by node."""
        found = {node.name: ask(node)["problems"] for node in self.lab.nodes}
        return {name: wrong for name, wrong in found.items() if wrong}

    def loud(self) -> list[str]:
        """Log lines above information."""
        found = []
        for node in self.lab.nodes:
            for line in node.log().splitlines():
                entry = json.loads(line) if line.startswith("{") else {"level": "?", "": line}
                if str(entry.get("level", "?")).upper() not in CALM:
                    found.append(f"{node.name}: {line}")
        return found


def all_up(lab: Lab) -> bool:
    """Whether each node hears each other one; asked once a second."""
    time.sleep(1.0)
    for node in lab.nodes:
        seen = {peer["public_ip"]: peer["state"] for peer in ask(node)["peers"]}
        for other in lab.nodes:
            if other is not node and seen.get(other.address) != "up":
                return False
    return True


def test_an_hour_of_churn_is_quiet():
    need_devices("vxlan")
    seed = int(os.environ.get("PYFLANNEL_HOUR_SEED", str(random.randrange(10_000))))
    spec = LabSpec(nodes=NODES, name="hour", backend="vxlan", daemon_args=("--log-format=json",))
    with Lab(spec) as lab:
        hour = Hour(lab, seed)
        print(f"seed {seed}")
        begin = time.monotonic()
        steady = lab.nodes[:STEADY]
        warm: dict[str, float] = {}
        while (passed := time.monotonic() - begin) < HOUR_S:
            if not warm and passed >= WARM_S:
                warm = {node.name: resident_mib(node) for node in steady}
            hour.turn()
            assert hour.problems() == {}, hour.done[-5:]
            assert hour.loud() == [], hour.done[-5:]
            time.sleep(max(0.0, min(ROUND_S, HOUR_S - (time.monotonic() - begin))))
        lab.wait(lambda: all_up(lab), SETTLED_S, what="all peers up again")
        assert hour.problems() == {}
        assert hour.loud() == []
        grown = {node.name: resident_mib(node) - warm[node.name] for node in steady}
        print(f"{len(hour.done)} turns; grown since minute {WARM_S / 60:.0f}: {grown}")
        hours = max(1.0, (HOUR_S - WARM_S) / 3600)
        assert max(grown.values()) <= GROWTH_MIB * hours, grown
