"""`pyflannel doctor` on nodes of a lab: a healthy one is well, and a fault made there is named."""

from __future__ import annotations

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow]


def doctor(node: Node) -> tuple[int, list[dict]]:
    done = node.exec(["pyflannel", "doctor", "--json"], check=False)
    assert done.stdout, done.stderr
    return done.returncode, check_printed("doctor", done.stdout)["findings"]


def serious(node: Node) -> dict[str, dict]:
    return {one["code"]: one for one in doctor(node)[1] if one["severity"] != "info"}


def reaches(lab: Lab) -> bool:
    return lab.ping_all(count=1).ok


@pytest.mark.parametrize("backend", ["vxlan", "udp", "host-gw", "ipip", "alloc"])
def test_a_healthy_node_has_no_finding(backend):
    if backend in {"vxlan", "ipip"}:
        need_devices(backend)
    with Lab(LabSpec(nodes=2, backend=backend, name="well")) as lab:
        assert doctor(lab.node(1)) == (0, [])


def test_faults_of_a_node_are_named_and_gone_when_they_are():
    # Without probes: they see the same faults from outside, and a few seconds later.
    flags = ("--probe-interval=0",)
    with Lab(LabSpec(nodes=2, backend="vxlan", name="ill", daemon_args=flags)) as lab:
        node = lab.node(1)
        lab.wait(lambda: reaches(lab), 10, what="all pods")

        def nft(text: str) -> None:
            node.exec(["nft", "-f", "-"], stdin=text)

        node.exec(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
        code, found = doctor(node)
        assert (code, [one["code"] for one in found]) == (1, ["PF202"])
        assert not reaches(lab)
        node.exec(["sysctl", "-qw", "net.ipv4.ip_forward=1"])

        # As firewalld does it: a base chain of its own, behind the one that accepts.
        nft(
            "table inet theirs { chain forward_all { type filter hook forward priority filter + 10;"
            " ct state established,related accept; iifname eth1 accept; counter reject; }; }\n"
        )
        found = serious(node)
        assert set(found) == {"PF204"}
        assert found["PF204"]["evidence"] == ["nft inet theirs forward_all: reject"]
        assert not reaches(lab)
        nft("delete table inet theirs\n")

        node.exec(["iptables", "-I", "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"])
        found = serious(node)
        assert set(found) == {"PF205"}
        assert "--dport 8472 -j DROP" in found["PF205"]["evidence"][0]
        assert not reaches(lab)
        node.exec(["iptables", "-D", "INPUT", "-p", "udp", "--dport", "8472", "-j", "DROP"])

        # With our rules before it the policy of docker and of many a hardening guide does no harm.
        node.exec(["iptables", "-P", "FORWARD", "DROP"])
        assert reaches(lab)
        assert doctor(node) == (0, [])

        lab.etcd.stop()
        lab.wait(lambda: "PF102" in serious(node), 20, what="the store is missed")


def test_a_stopped_daemon_and_rules_of_legacy_iptables_are_named():
    flags = ("--probe-interval=0",)
    with Lab(LabSpec(nodes=2, backend="vxlan", name="legacy", daemon_args=flags)) as lab:
        node = lab.node(1)
        node.stop_daemon()
        assert set(serious(node)) == {"PF201"}
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="the daemon")
        made = node.exec(["iptables-legacy", "-P", "FORWARD", "DROP"], check=False)
        if made.returncode != 0:
            pytest.skip(f"no legacy iptables here: {made.stderr}")
        found = serious(node)
        assert set(found) == {"PF203"}
        assert found["PF203"]["evidence"] == [
            "policy drop of chain FORWARD in iptables-legacy filter"
        ]
        assert not reaches(lab)
