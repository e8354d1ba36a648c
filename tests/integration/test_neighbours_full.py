"""A neighbour table that is full, on a node in a machine of its own: all namespaces share one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.guests import GUEST

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.guest,
    pytest.mark.skipif(not GUEST, reason="fills the neighbour table of the whole machine"),
]

BIN = Path(sys.executable).parent
LIMIT = 1024
"""The kernel's own (net/ipv4/arp.c)."""
PEERS = LIMIT + 100
NAMESPACE = "neighbour"
UNDERLAY = f"""
ip netns add {NAMESPACE}
ip link add under0 type veth peer name eth0 netns {NAMESPACE}
ip address add 192.0.2.1/24 dev under0
ip link set under0 up
ip route add default via 192.0.2.254 dev under0
sysctl -qw net.ipv4.ip_forward=1
ip -n {NAMESPACE} link set eth0 up
"""
PERMANENT = "ip -4 neigh show dev flannel.1 nud permanent 2>&1 || true"
READY_S = 60.0


def shell(script: str) -> str:
    return subprocess.run(["sh", "-ec", script], check=True, capture_output=True, text=True).stdout


def told(*words: str) -> dict:
    done = subprocess.run(
        [BIN / "pyflannel", *words, "--json"], check=False, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def codes() -> set[str]:
    """What the doctor finds on this node."""
    return {one["code"] for one in told("doctor")["findings"]}


@pytest.fixture
def node(tmp_path):
    """A node in the first namespace, with more peers than there may be neighbours to look for."""
    shell(UNDERLAY)
    peers = [
        {
            "Subnet": f"10.{128 + n // 256}.{n % 256}.0/24",
            "PublicIP": f"198.18.{n // 256}.{n % 256}",
        }
        for n in range(PEERS)
    ]
    own = {"Subnet": "10.140.0.0/24", "PublicIP": "192.0.2.1"}
    config = {"Network": "10.128.0.0/9", "Backend": {"Type": "vxlan"}}
    file = tmp_path / "network.json"
    file.write_text(json.dumps({"Config": config, "Nodes": [own, *peers]}))
    daemon = subprocess.Popen(
        [BIN / "pyflanneld", f"--static-network={file}", "--iface=under0", "--probe-interval=0"]
    )
    try:
        deadline = time.monotonic() + READY_S
        while len(shell(PERMANENT).splitlines()) < PEERS:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield
    finally:
        daemon.terminate()
        daemon.wait(20)
        subprocess.run([BIN / "pyflannel", "cleanup"], check=True)
        shell(f"ip link del under0; ip netns del {NAMESPACE}")


def test_it_is_told_with_a_remedy_that_helps_and_peers_do_not_count(node):
    assert codes() == set()
    batch = "\n".join(
        f"neigh add 203.0.{n // 256}.{n % 256} lladdr 02:00:00:00:00:01 dev under0 nud reachable"
        for n in range(LIMIT)
    )
    # The kernel makes room when it can, and not among what is newer than five seconds.
    filled = subprocess.run(
        ["ip", "-batch", "-"], input=batch, check=False, capture_output=True, text=True
    )
    new = ["ip", "neigh", "add", "203.0.9.9", "lladdr", "02:00:00:00:00:01", "dev", "under0"]
    new += ["nud", "reachable"]
    refused = subprocess.run(new, check=False, capture_output=True, text=True)
    assert "No buffer space" in filled.stderr + refused.stderr
    (found,) = told("doctor")["findings"]
    assert (found["code"], found["severity"]) == ("PF229", "error")
    # The daemon's own entries are kept for good, so its status has nothing to say of it.
    assert told("status")["problems"] == []
    shell(found["remedy"])
    assert codes() == set()
    assert subprocess.run(new, check=False).returncode == 0
