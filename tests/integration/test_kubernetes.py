"""Whole daemons in a Kubernetes cluster: an API server in a namespace, real devices, real pods."""

from __future__ import annotations

import pytest

from tests.support.kubelab import KubeLab

pytestmark = [pytest.mark.slow, pytest.mark.root]

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}


def test_two_nodes_from_nothing_to_pings_and_through_what_goes_wrong():
    with KubeLab("kube", CONFIG) as cluster:
        # Nothing is there yet: no node object, then no podCIDR.
        for number in (1, 2):
            cluster.start(number)
        cluster.lab.wait(
            lambda: "kubelet to register node n1" in cluster.log(1), 20, what="the reason"
        )
        cluster.control("create", "n1")
        cluster.control("create", "n2", "10.244.2.0/24")
        cluster.wait_subnet(2, "10.244.2.1/24")
        cluster.lab.wait(lambda: "--allocate-node-cidrs" in cluster.log(1), 20, what="the reason")
        assert cluster.subnet(1) == ""
        cluster.control("assign", "n1", "10.244.1.0/24")
        cluster.wait_subnet(1, "10.244.1.1/24")
        for node in cluster.lab.nodes:
            node.attach_pod()
        cluster.wait_pings()
        state = cluster.control()
        assert sorted(state["annotations"]["n1"]) == [
            "backend-data",
            "backend-type",
            "kube-subnet-manager",
            "public-ip",
        ]
        conditions = {c["type"]: c for c in state["nodes"]["n1"]["status"]["conditions"]}
        cluster.lab.wait(
            lambda: cluster.status(1).get("problems") == [], 10, what="a node that is fine"
        )
        assert conditions["Ready"]["status"] == "True"
        assert cluster.status(1)["store"]["kind"] == "kubernetes"

        # The API server stands still, then goes on: nothing changes.
        cluster.pause_server()
        assert cluster.lab.ping_all().ok
        cluster.resume_server()

        # Own annotations are taken away: they come back, and packets flow.
        before = cluster.control()["annotations"]["n2"]
        cluster.control(
            "annotate",
            "n2",
            "importer",
            backend_data=None,
            backend_type=None,
            kube_subnet_manager=None,
            public_ip=None,
        )
        cluster.lab.wait(
            lambda: cluster.control()["annotations"]["n2"] == before, 10, what="the repair"
        )
        assert cluster.lab.ping_all().ok

        # The node is deleted and registered again, with another podCIDR. No pod is on its bridge.
        for words in (
            "link add cni0 type bridge",
            "link set cni0 up",
            "address add 10.244.2.1/24 dev cni0",
            "address add 198.51.100.1/24 dev cni0",
        ):
            cluster.run(2, "ip", *words.split())
        cluster.control("delete", "n2")
        cluster.control("create", "n2", "10.244.9.0/24")
        cluster.wait_subnet(2, "10.244.9.1/24")
        on_bridge = cluster.run(2, "ip", "address", "show", "dev", "cni0")
        assert "10.244.2.1" not in on_bridge
        assert "198.51.100.1" in on_bridge, "that one is not ours"
        cluster.lab.node(2).attach_pod()
        cluster.wait_pings()
        routes = cluster.run(1, "ip", "route", "show", "dev", "flannel.1")
        assert "10.244.9.0/24" in routes
        assert "10.244.2.0/24" not in routes

        # A peer goes while the daemon is down: nothing of it is left after the start.
        assert cluster.stop(1) == 0
        cluster.control("delete", "n2")
        cluster.start(1)
        cluster.lab.wait(
            lambda: not cluster.run(1, "ip", "route", "show", "dev", "flannel.1").strip(),
            20,
            what="an empty table",
        )
        assert "02:" not in cluster.run(1, "bridge", "fdb", "show", "dev", "flannel.1")


def test_a_node_object_of_a_load_balancer_is_a_peer_and_a_wish_picks_the_address():
    """It has annotations, a podCIDR and a VTEP MAC, and no kubelet, VNI or condition."""
    with KubeLab("kube-wish", CONFIG, nodes=1) as cluster:
        cluster.control("create", "n1", "10.244.1.0/24")
        cluster.control("annotate", "n1", node_public_ip="203.0.113.5")
        cluster.control("create", "lb", "10.244.77.0/24")
        cluster.control(
            "annotate",
            "lb",
            kube_subnet_manager="true",
            backend_type="vxlan",
            backend_data='{"VtepMAC":"02:00:00:00:00:4d"}',
            public_ip="192.0.2.77",
        )
        cluster.start(1)
        cluster.wait_subnet(1, "10.244.1.1/24")
        cluster.lab.wait(
            lambda: "10.244.77.0/24" in cluster.run(1, "ip", "route", "show", "dev", "flannel.1"),
            10,
            what="the load balancer's route",
        )
        assert "02:00:00:00:00:4d" in cluster.run(1, "bridge", "fdb", "show", "dev", "flannel.1")
        assert cluster.control()["annotations"]["n1"]["public-ip"] == "203.0.113.5"

        def published() -> str:
            return cluster.control()["annotations"]["n1"]["public-ip"]

        # Another wish, then none, while it runs.
        for wish, comes in (("203.0.113.6", "203.0.113.6"), (None, "192.0.2.1")):
            cluster.control("annotate", "n1", node_public_ip=wish)
            cluster.lab.wait(lambda ip=comes: published() == ip, 15, what=f"{comes} as public IP")

        # Another MAC: flannel leaves the FDB entry of the former one for good.
        cluster.control("annotate", "lb", backend_data='{"VtepMAC":"02:00:00:00:00:4e"}')

        def entries() -> str:
            return cluster.run(1, "bridge", "fdb", "show", "dev", "flannel.1")

        cluster.lab.wait(lambda: "02:00:00:00:00:4e" in entries(), 10, what="the other MAC")
        assert "02:00:00:00:00:4d" not in entries()
