"""`--datapath auto` goes on to the next data path where the one that runs is slow."""

from __future__ import annotations

import subprocess

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.integration.test_ebpf_datapath import network_status

pytestmark = [pytest.mark.root, pytest.mark.slow]

FLOOD = ["ping", "-q", "-f", "-i", "0.0004"]
"""2,500 packets a second: more than what is taken for little, by far."""


def test_where_packets_leave_by_another_interface_user_space_takes_them_all() -> None:
    """Two nodes with a link of their own, beside the one that their default routes lead to."""
    with Lab(LabSpec(nodes=2, backend="udp", name="auto-leaves")) as lab:
        nodes = (lab.node(1), lab.node(2))
        assert network_status(lab, 1)["datapath"]["name"] == "ebpf"
        nodes[0].exec(["ip", "link", "add", "side1", "type", "veth", "peer", "name", "side2"])
        nodes[0].exec(["ip", "link", "set", "side2", "netns", str(nodes[1].daemon.pid)])
        for node, other, side in ((*nodes, "side1"), (*nodes[::-1], "side2")):
            node.exec(["ip", "link", "set", side, "up"])
            node.exec(["ip", "route", "add", f"{other.address}/32", "dev", side])
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
        flood = [*FLOOD, nodes[1].pod_address()]
        with nodes[0].pod.popen(flood, stdout=subprocess.DEVNULL) as pinging:
            try:
                lab.wait(
                    lambda: network_status(lab, 1)["datapath"]["name"] == "native",
                    90,
                    what="another data path",
                )
            finally:
                pinging.terminate()
        assert "took its slow path" in network_status(lab, 1)["datapath"]["why"]
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
