"""The node follows its machine: another external interface, another MTU, another address.

Without a restart, and with the same subnet: the own lease is updated in place, the peers follow.
"""

from __future__ import annotations

import json
import time

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family
from pyflannel.lab import Lab, LabSpec, injecting
from pyflannel.lab.ping import ping_all
from tests.support.load import Stopwatch

pytestmark = [pytest.mark.root, pytest.mark.slow]

HEALED_S = 2.0
PUBLISHED_S = 1.0
"""The connections to etcd have lost their address as well; a time-out of theirs would show here."""
OVERHEAD = {"udp": 28, "vxlan": 50, "host-gw": 0}


def lease_values(lab: Lab) -> dict[str, dict[str, object]]:
    """The leases by key."""
    return {stored.key: json.loads(stored.value) for stored in lab.etcd.leases()}


class Followed:
    """A lab of three, whose first node changes; sees what must stay."""

    def __init__(self, lab: Lab, backend: str) -> None:
        self.lab, self.backend, self.node = lab, backend, lab.node(1)
        config = self.node.network_config
        self.device = KINDS.get(backend).device_names(config).get(Family.V4, "")
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        self.pods = {n.pod.name: (n.pod, n.pod_address()) for n in lab.nodes}
        self.pid = self.node.pid
        self.files = self.node.subnet_env()
        self.keys = set(lease_values(lab))

    def pings_within(self, seconds: float, what: str) -> None:
        """All pairs answer so soon."""
        start, watch = time.monotonic(), Stopwatch()
        assert ping_all(self.pods, count=2, deadline_s=15).ok, what
        took = time.monotonic() - start
        print(f"{self.backend}: {what}: all pairs after {took:.2f} s")
        assert took <= watch.within(seconds), f"{what}: all pairs only after {took:.1f} s"

    def same_node(self) -> None:
        """No restart, no other subnet, no other lease."""
        assert self.node.pid == self.pid
        assert self.node.subnet_env() == self.files
        assert set(lease_values(self.lab)) == self.keys

    def device_mtu(self) -> int:
        """MTU of the overlay's device."""
        shown = self.node.exec(["ip", "-j", "link", "show", self.device]).stdout
        return json.loads(shown)[0]["mtu"]


@pytest.mark.parametrize("backend", OVERHEAD)
def test_node_follows_its_machine(backend):
    datapath = "native" if backend == "udp" else ""
    spec = LabSpec(nodes=3, backend=backend, name=f"follow-{backend}", datapath=datapath)
    with Lab(spec) as lab:
        followed = Followed(lab, backend)
        node = followed.node

        injecting.replace_underlay(node, lab.switch)
        followed.pings_within(HEALED_S, "another interface of the same name")
        followed.same_node()

        node.exec(["ip", "link", "set", "dev", "eth0", "mtu", "1400"])
        start, watch = time.monotonic(), Stopwatch()
        if followed.device:
            expected = 1400 - OVERHEAD[backend]
            lab.wait(lambda: followed.device_mtu() == expected, 10, what="the device's MTU")
        print(f"{backend}: MTU followed after {time.monotonic() - start:.2f} s")
        assert time.monotonic() - start <= watch.within(HEALED_S)
        followed.pings_within(HEALED_S, "another MTU")
        followed.same_node()

        address = injecting.move_underlay(node, 77)
        start, watch = time.monotonic(), Stopwatch()

        def published() -> bool:
            return any(v["PublicIP"] == address for v in lease_values(lab).values())

        lab.wait(published, 10, what="the lease with the new address")
        print(f"{backend}: new address published after {time.monotonic() - start:.2f} s")
        assert time.monotonic() - start <= watch.within(PUBLISHED_S)
        followed.pings_within(HEALED_S, "another public address")
        followed.same_node()
        assert json.loads(node.exec(["pyflannel", "status", "--json"]).stdout)["problems"] == []


def test_nodes_that_move_at_the_same_time_find_each_other():
    """Each has to learn the others' new addresses over a watch that it had from its old one."""
    with Lab(LabSpec(nodes=3, backend="vxlan", name="follow-all")) as lab:
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        pods = {n.pod.name: (n.pod, n.pod_address()) for n in lab.nodes}
        moved = [injecting.move_underlay(node, 70 + node.number) for node in lab.nodes]
        start, watch = time.monotonic(), Stopwatch()
        assert ping_all(pods, count=2, deadline_s=25).ok
        took = time.monotonic() - start
        print(f"all pairs after {took:.2f} s")
        assert {value["PublicIP"] for value in lease_values(lab).values()} == set(moved)
        assert took <= watch.within(2 * HEALED_S)


def test_with_etcd_away_and_with_an_mtu_that_is_too_small_it_goes_on_following():
    """What cannot be published yet, or cannot be used for now, ends nothing and holds up nothing.

    Dual stack needs an MTU of 1350: 1280 for IPv6, and 70 around it.
    """
    config = {
        "Network": "10.0.0.0/16",
        "EnableIPv6": True,
        "IPv6Network": "fd00:10::/48",
        "Backend": {"Type": "vxlan"},
    }
    with Lab(LabSpec(nodes=2, config=config, name="follow-away")) as lab:
        followed = Followed(lab, "vxlan")
        node = followed.node

        def problem() -> str:
            done = node.exec(["pyflannel", "status", "--json"], check=False)
            problems = json.loads(done.stdout)["problems"] if done.stdout else []
            return "".join(p["text"] for p in problems if p["subject"] == "underlay")

        lab.etcd.stop()
        address = injecting.move_underlay(node, 77)
        shown = ["ip", "-d", "link", "show", "flannel.1"]
        lab.wait(
            lambda: f"local {address}" in node.exec(shown, check=False).stdout, 10, what="moved"
        )
        node.exec(["ip", "link", "set", "dev", "eth0", "mtu", "1400"])
        lab.wait(lambda: followed.device_mtu() == 1350, 10, what="the MTU followed as well")
        node.exec(["ip", "link", "set", "dev", "eth0", "mtu", "1300"])
        lab.wait(lambda: "IPv6 needs 1280" in problem(), 10, what="the problem in the status")
        node.exec(["ip", "link", "set", "dev", "eth0", "mtu", "1500"])
        lab.wait(lambda: not problem() and followed.device_mtu() == 1450, 10, what="usable again")
        lab.etcd.start()
        lab.wait(
            lambda: any(v["PublicIP"] == address for v in lease_values(lab).values()),
            10,
            what="the lease with the new address",
        )
        followed.pings_within(HEALED_S, "etcd is back")
        pods = {n.pod.name: (n.pod, n.pod_address(6)) for n in lab.nodes}
        assert ping_all(pods, count=1, deadline_s=10).ok
        followed.same_node()
