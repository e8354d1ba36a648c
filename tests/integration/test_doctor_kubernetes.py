"""Kubernetes' faults on a node with a whole daemon: each is made, and seen with its code alone."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.kubelab import KubeLab

pytestmark = [pytest.mark.slow, pytest.mark.root]

CONFIG = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
CONFIGURATIONS = "/run/cni/net.d"
OURS = f"{CONFIGURATIONS}/10-flannel.conflist"
OTHERS = '{"name": "k", "plugins": [{"type": "calico", "ipam": {"type": "calico-ipam"}}]}'
PROXY = "iptables -t nat -N KUBE-SERVICES"
"""What kube-proxy makes first."""
BIN = "/run/opt/cni/bin"


@pytest.fixture(scope="module")
def cluster() -> Iterator[KubeLab]:
    with KubeLab("kubedoctor", CONFIG, nodes=1) as made:
        run(made, PROXY)
        made.control("create", "n1", "10.244.1.0/24")
        start(made)
        made.lab.wait(lambda: codes(made) == set(), 30, what="a node that is well")
        yield made


def start(cluster: KubeLab) -> None:
    cluster.start(1, f"--cni-conflist={OURS}", "--ip-masq", "--probe-interval=0")


def run(cluster: KubeLab, script: str) -> None:
    cluster.run(1, "sh", "-ec", script)


def codes(cluster: KubeLab) -> set[str]:
    """What `pyflannel doctor` finds wrong on node 1."""
    done = cluster.lab.node(1).exec(["pyflannel", "doctor", "--json"], check=False)
    found = json.loads(done.stdout)["findings"]
    assert all(one["evidence"] and one["consequence"] for one in found if one["code"] > "PF2")
    return {one["code"] for one in found if one["severity"] != "info"}


FAULTS = [
    (
        "PF245",
        f"printf '%s' '{OTHERS}' >{CONFIGURATIONS}/05-calico.conflist",
        f"rm {CONFIGURATIONS}/05-calico.conflist",
    ),
    (
        "PF247",
        "ip link add cni0 type bridge; ip address add 10.244.9.1/24 dev cni0; ip link set cni0 up",
        "ip link del cni0",
    ),
    ("PF248", "iptables -t nat -X KUBE-SERVICES", PROXY),
    (
        "PF249",
        "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables",
        "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
    ),
    (
        "PF246",
        f"mkdir -p {BIN}; touch {BIN}/bridge; mount --bind /run/opt /opt",
        "umount /opt",
    ),
]


@pytest.mark.parametrize(("code", "do", "undo"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_of_the_node_is_seen_with_its_code_alone(cluster, code, do, undo):
    run(cluster, do)
    try:
        found = codes(cluster)
    finally:
        run(cluster, undo)
    assert found == {code}
    cluster.lab.wait(lambda: codes(cluster) == set(), 20, what="a node that is well again")


def test_a_configuration_that_is_gone_is_seen_and_written_again(cluster):
    # The daemon puts it back, so it is taken out of the doctor's sight.
    run(cluster, f"mkdir -p /run/none; mount --bind /run/none {CONFIGURATIONS}")
    try:
        assert codes(cluster) == {"PF244"}
    finally:
        run(cluster, f"umount {CONFIGURATIONS}")


def test_rights_that_are_taken_away_are_seen_and_packets_flow_on(cluster):
    cluster.control("forbid", "watch", "nodes")
    cluster.lab.wait(lambda: codes(cluster) == {"PF243"}, 30, what="the refusal")
    cluster.control("allow", "watch", "nodes")
    cluster.lab.wait(lambda: codes(cluster) == set(), 30, what="a node that is well again")


def test_a_node_that_was_deleted_is_not_registered_by_itself(cluster):
    cluster.control("delete", "n1")
    cluster.lab.wait(lambda: codes(cluster) == {"PF242"}, 20, what="the missing node")
    # The kubelet is restarted, and the range comes later.
    cluster.control("create", "n1")
    cluster.lab.wait(lambda: codes(cluster) == {"PF241"}, 20, what="the missing podCIDR")
    cluster.control("assign", "n1", "10.244.1.0/24")
    cluster.lab.wait(lambda: codes(cluster) == set(), 30, what="a node that is well again")


def test_a_daemon_that_has_not_started_yet_says_what_it_waits_for(cluster):
    cluster.stop(1)
    cluster.control("delete", "n1")
    cluster.control("create", "n1")
    start(cluster)
    cluster.lab.wait(lambda: codes(cluster) == {"PF241"}, 20, what="the missing podCIDR")
    # Then it has one, and may not publish it.
    cluster.control("forbid", "patch", "nodes/status")
    cluster.control("assign", "n1", "10.244.1.0/24")
    cluster.lab.wait(lambda: codes(cluster) == {"PF243"}, 20, what="the refusal")
    cluster.control("allow", "patch", "nodes/status")
    cluster.lab.wait(lambda: codes(cluster) == set(), 30, what="a node that is well again")
