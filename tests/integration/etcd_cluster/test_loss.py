"""A way to etcd that loses a fifth of its packets in either direction."""

from __future__ import annotations

import json
import signal

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

LOSS = """
add table inet loss
add chain inet loss in { type filter hook input priority -300; }
add chain inet loss out { type filter hook output priority -300; }
add rule inet loss in tcp sport 2379 numgen random mod 5 0 counter drop
add rule inet loss out tcp dport 2379 numgen random mod 5 0 counter drop
"""
PREFIX = "/coreos.com/network"
PEER = json.dumps(
    {
        "PublicIP": "192.0.2.99",
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:99"},
    }
)


def test_a_node_starts_follows_and_holds_over_a_lossy_link():
    with Lab(LabSpec(nodes=2, backend="vxlan", name="loss")) as lab:
        node = lab.node(1)
        for command in filter(None, LOSS.splitlines()):
            node.exec(["nft", command])
        node.kill(signal.SIGKILL)
        node.wait_exit()
        subnet = node.subnet_env()["FLANNEL_SUBNET"]
        node.start_daemon()
        lab.wait(lambda: json_of(node).get("ready"), 60, what="ready, with a fifth lost")
        assert node.subnet_env()["FLANNEL_SUBNET"] == subnet
        key = f"{PREFIX}/subnets/10.0.200.0-24"
        lab.etcd.put(key, PEER, ttl=600)
        lab.wait(lambda: "10.0.200.0/24" in routes(node), 30, what="a peer that comes")
        lab.etcd.delete(key)
        lab.wait(lambda: "10.0.200.0/24" not in routes(node), 30, what="a peer that goes")
        assert lab.ping_all(count=1).ok
        status = json_of(node)
        assert status["lease"]["held"] is True
        dropped = node.exec(["nft", "list", "table", "inet", "loss"]).stdout
        assert "packets 0" not in dropped, dropped


def routes(node) -> str:
    return node.exec(["ip", "route"]).stdout


def json_of(node) -> dict[str, object]:
    done = node.exec(["pyflannel", "status", "--json"], check=False)
    return json.loads(done.stdout) if done.stdout else {}
