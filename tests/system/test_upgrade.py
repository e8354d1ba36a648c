"""From the last package to this one and back, under traffic, with each backend.

Two nodes; the second is upgraded first, so that a mixed cluster is part of it, and taken back while
the first has the new one. What either package leaves (files, state, devices, pinned programs) the
other takes over.
"""

from __future__ import annotations

import json

import pytest

from tests.support.machine import ETCD, Site, pinging, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

BACKENDS = ("vxlan", "host-gw", "ipip", "udp", "udp native", "udp python")
DEVICES = {"vxlan": "flannel.1", "ipip": "flannel.ipip"}
BEYOND = {
    # A packet between two reads, on a machine with more to do than this.
    "udp native": 1,
    "udp python": 1,
}
"""Pings, a hundred a second, that an upgrade may lose beyond what a restart loses; else none."""
STATE = "/var/lib/pyflannel/lease.json"


@pytest.fixture(scope="module")
def site(former_package):
    """Two nodes with the former package."""
    with Site() as site:
        site.start_etcd()
        for _ in range(2):
            node = site.add_node()
            node.install(former_package)
        yield site


@pytest.fixture(params=BACKENDS)
def nodes(site, former_package, request):
    """Both run the former package with one backend, with a bridge in their subnets."""
    backend, _, datapath = request.param.partition(" ")
    if backend == "ipip":
        probe = site.nodes[0].run("ip", "link", "add", "probe", "type", "ipip", check=False)
        site.nodes[0].run("ip", "link", "del", "probe", check=False)
        if probe:
            pytest.skip(f"this kernel has no ipip: {probe}")
    for node in site.nodes:
        node.run("systemctl", "stop", "pyflannel")
        node.run("pyflannel", "cleanup", check=False)
        node.run("ip", "link", "del", "cni0", check=False)
        node.install(former_package)
    file = site.directory / "config.json"
    file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": backend}}))
    site.pyflannel("config", "set", file)
    options = f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_DATAPATH={datapath}\n"
    for node in site.nodes:
        node.write("/etc/default/pyflannel", options)
        node.run("systemctl", "start", "pyflannel", check=False)
        assert node.show("ActiveState") == "active", node.journal()
        node.bridge()
    return site.nodes


def identity(node, device):
    """What peers know a node by, and what its next start finds."""
    mac = node.read(f"/sys/class/net/{device}/address") if device else ""
    return node.subnet(), json.loads(node.read(STATE))["subnet"], mac


def lost_meanwhile(first, second, work):
    """How many of a hundred pings a second were lost while something was done."""
    with pinging(first, second) as counted:
        work()
    ((sent, received),) = counted
    assert sent > 50
    return sent - received


def test_an_upgrade_and_the_way_back_lose_no_more_than_a_restart(
    nodes, package, former_package, request
):
    backend = request.node.callspec.params["nodes"]
    device = DEVICES.get(backend)
    before = [identity(node, device) for node in nodes]
    first, second = nodes
    most = lost_meanwhile(first, second, lambda: second.run("systemctl", "restart", "pyflannel"))
    most += BEYOND.get(backend, 0)
    steps = ((second, package), (first, package), (second, former_package), (first, former_package))
    for node, which in steps:
        pid = node.main_pid()

        def change(node=node, which=which):
            node.install(which)
            until("another daemon is up", lambda: node.show("ActiveState") == "active")

        lost = lost_meanwhile(first, second, change)
        print(f"{backend}: {node.hostname} to {which.name}: {lost} lost, {most} allowed")
        assert node.main_pid() not in {0, pid}
        assert lost <= most, node.journal()
        assert [identity(each, device) for each in nodes] == before
        assert node.show("NRestarts") == "0", node.journal()
        assert "--bip=" in node.read("/run/docker_opts.env")
