"""Whole daemons over a static network file: no etcd anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from pyflannel.lab import topology
from pyflannel.lab.cluster import Lab
from pyflannel.lab.topology import LabSpec

pytestmark = [pytest.mark.slow, pytest.mark.root]

PAGE = Path(__file__).parents[2] / "docs/static-network.md"
FOLLOWED_S = 2.0
"""A second for the file, and one for a busy machine."""


def status(node) -> dict:
    return json.loads(node.exec(["pyflannel", "status", "--json"], check=False).stdout)


@pytest.mark.parametrize("backend", ["vxlan", "udp", "host-gw"])
def test_nodes_find_each_other_by_a_file_alone(backend):
    with Lab(LabSpec(nodes=3, backend=backend, store="static", name=f"static-{backend}")) as lab:
        assert lab.ping_all(count=1, deadline=10).ok
        report = status(lab.node(1))
        assert report["store"]["kind"] == "static"
        assert report["problems"] == []
        assert report["lease"]["reservation"] is True
        assert len(report["peers"]) == 2


def test_the_pages_file_and_commands_work_as_they_stand_there(tmp_path):
    found = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    ((_, text), (_, start), (_, check)) = found
    (tmp_path / "network.json").write_text(text)
    start = start.replace("/etc/pyflannel", str(tmp_path))
    with Lab(LabSpec(nodes=1, name="static-page", start_daemons=False)) as lab:
        node = lab.node(1)
        node.exec(["sh", "-ec", f"cd {tmp_path}; {check}"])
        child = node.space.popen(
            ["sh", "-c", f"exec {start}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            lease = {"subnet": "10.244.1.0/24", "public_ip": "192.0.2.1"}
            env = node.path("/run/flannel/subnet.env")
            lab.wait(env.exists, 20, what="the lease of the file")
            assert status(node)["lease"].items() >= lease.items()
        finally:
            child.terminate()
            child.wait(20)


def test_the_file_is_followed_and_a_broken_one_changes_nothing():
    with Lab(LabSpec(nodes=2, backend="vxlan", store="static", name="static-follow")) as lab:
        assert lab.ping_all(count=1, deadline=10).ok
        first = lab.node(1)

        def routes() -> str:
            return first.exec(["ip", "route", "show", "dev", "flannel.1"]).stdout

        # A third node, which is only in the file.
        text = topology.static_file(lab.spec, (1, 2, 3))
        subnet = json.loads(text)["Nodes"][2]["Subnet"]
        lab.write_static(text)
        start = time.monotonic()
        lab.wait(lambda: subnet in routes(), FOLLOWED_S, what="the third node's route")
        print(f"followed after {time.monotonic() - start:.2f} s")

        before = routes()
        lab.write_static(text[:-10])
        lab.wait(lambda: status(first)["store"]["connected"] is False, 5, what="the report")
        asked = first.exec(["pyflannel", "status"], check=False)
        assert asked.returncode == 1
        assert topology.STATIC_FILE in "".join(asked.stdout.splitlines()[:4])
        assert routes() == before

        # A restart with a broken file waits, and what is there goes on.
        first.stop_daemon()
        first.start_daemon()
        lab.wait(lambda: "cannot be used, waiting" in first.log(), 10, what="the waiting daemon")
        assert routes() == before
        lab.write_static(topology.static_file(lab.spec, (1, 2)))
        lab.wait(lambda: first.is_ready() and subnet not in routes(), 10, what="the good file")
        assert lab.ping_all(count=1, deadline=10).ok


def test_what_is_made_from_etcd_carries_on_in_its_place():
    """The way from etcd to a file: one command, and the same subnets."""
    with Lab(LabSpec(nodes=2, backend="vxlan", name="static-from-etcd")) as lab:
        assert lab.ping_all(count=1, deadline=10).ok
        made = (
            lab.node(1)
            .exec(["pyflannel", "static", "from-etcd", f"--etcd-endpoints={lab.etcd.endpoint}"])
            .stdout
        )
        subnets = [node.subnet_env()["FLANNEL_SUBNET"] for node in lab.nodes]
        checked = lab.node(1).exec(["pyflannel", "static", "check", "-"], stdin=made)
        assert "2 nodes" in checked.stdout
        lab.write_static(made)
        for node in lab.nodes:
            node.stop_daemon()
            node.start_daemon([f"--static-network={topology.STATIC_FILE}"])
        for node in lab.nodes:
            lab.wait(node.is_ready, 10, what=node.name)
        lab.wait(lambda: status(lab.node(1))["store"]["kind"] == "static", 5, what="the file")
        assert [node.subnet_env()["FLANNEL_SUBNET"] for node in lab.nodes] == subnets
        assert lab.ping_all(count=1, deadline=10).ok
