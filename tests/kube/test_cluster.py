"""Whole daemons, a real API server and a real controller manager; upstream's daemon on one node.

Without `PYFLANNEL_UPSTREAM` all nodes are ours.
"""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.support.kubelab import KubeLab

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.skipif(
        not os.environ.get("PYFLANNEL_KUBE"), reason="a real API server: `make kube` builds it"
    ),
]

UPSTREAM = [2] if os.environ.get("PYFLANNEL_UPSTREAM") else []
CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


def ready(cluster: KubeLab, number: int, *, but: str = "") -> str:
    """The subnet of a node that has one, another than that."""
    cluster.lab.wait(
        lambda: cluster.subnet(number) not in {"", but}, 40, what=f"a subnet of node {number}"
    )
    cluster.lab.node(number).attach_pod()
    return cluster.subnet(number)


def test_a_cluster_from_registration_to_pings_through_all_that_happens_to_its_api(tmp_path):
    with KubeLab("kube-real", CONFIG, upstream=UPSTREAM, real=tmp_path) as cluster:
        for number in (1, 2):
            cluster.control("create", f"n{number}")  # as a kubelet: the range comes later
            if number in UPSTREAM:
                # Which ends when it has none yet.
                cluster.lab.wait(
                    lambda: cluster.control()["nodes"]["n2"]["spec"].get("podCIDR"),
                    40,
                    what="the podCIDR of node 2",
                )
            cluster.start(number)
        first = ready(cluster, 1)
        ready(cluster, 2)
        cluster.wait_pings(40)
        state = cluster.control()
        assert state["annotations"]["n1"]["kube-subnet-manager"] == "true"
        assert sorted(state["annotations"]["n1"]) == sorted(state["annotations"]["n2"])
        for name in ("n1", "n2"):
            conditions = {c["type"]: c for c in state["nodes"][name]["status"]["conditions"]}
            assert conditions["NetworkUnavailable"]["status"] == "False"
            assert conditions["Ready"]["status"] == "True"

        # The node is deleted and registered again: another podCIDR, by the controller manager.
        cluster.control("delete", "n1")
        cluster.control("create", "n1")
        second = ready(cluster, 1, but=first)
        cluster.wait_pings(40)
        assert cluster.control()["annotations"]["n1"] == state["annotations"]["n1"]

        # Under a ping each 20 ms: the API server restarts, and is away for a while.
        address = cluster.lab.node(2).pod_address()
        pinging = cluster.lab.node(1).pod.popen(
            ["ping", "-q", "-i", "0.02", "-w", "300", address], stdout=subprocess.PIPE
        )
        try:
            cluster.control("restart")
            cluster.control("stop")
            cluster.control("create", "n7", "10.244.77.0/24")
            peer = {
                "kube_subnet_manager": "true",
                "backend_type": "vxlan",
                "backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:00:4d"}',
                "public_ip": "192.0.2.77",
            }
            cluster.control("annotate", "n7", "test", **peer)
            cluster.control("start")

            def routes() -> str:
                return cluster.run(1, "ip", "route", "show", "dev", "flannel.1")

            cluster.lab.wait(lambda: "10.244.77.0/24" in routes(), 30, what="the new peer's route")

            # etcd is put back to a state in which that node is another one.
            cluster.control("backup")
            cluster.control("delete", "n7")
            cluster.lab.wait(lambda: "10.244.77.0/24" not in routes(), 30, what="its end")
            cluster.control("put_back")
            cluster.lab.wait(lambda: "10.244.77.0/24" in routes(), 60, what="its return")
        finally:
            pinging.send_signal(2)
            out, _ = pinging.communicate(timeout=10)
        assert " 0% packet loss" in out, out[-300:]
        assert cluster.subnet(1) == second
