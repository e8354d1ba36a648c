"""Upstream's daemon and ours in one cluster, on one etcd and one overlay.

Needs upstream's binary: `PYFLANNEL_UPSTREAM=/path/to/flanneld`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.upstream import end

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
    ),
]

BACKENDS = {"udp": 60, "vxlan": 62, "host-gw": 62}
"""Backend and the TTL that is left of 64 at the other pod."""


def without_guard(table: str) -> str:
    """A listing of our table, without the chain that flannel has not."""
    return re.sub(r"\n\n?\tchain guard \{.*?\n\t\}", "", table, flags=re.DOTALL)


def ready(lab, number):
    lab.wait(lab.node(number).is_ready, 15, what=f"node {number} is ready")


@pytest.mark.parametrize("backend", BACKENDS)
class TestMixed:
    def spec(self, backend, **more):
        return LabSpec(
            nodes=3,
            backend=backend,
            name=f"mixed-{backend}",
            node_commands={2: UPSTREAM},
            **more,
        )

    def test_all_pairs_ping_and_the_stored_bytes_have_one_shape(self, backend):
        with Lab(self.spec(backend)) as lab:
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs")
            matrix = lab.ping_all()
            assert set(matrix.ttls) == {BACKENDS[backend]}
            assert not matrix.foreign_sources
            shapes = set()
            for stored in lab.etcd.leases():
                attrs = json.loads(stored.value)
                assert json.dumps(attrs, separators=(",", ":")) == stored.value
                data = attrs.get("BackendData")
                shapes.add((tuple(attrs), tuple(data) if data else None))
            assert len(shapes) == 1

    def test_ours_takes_upstreams_place_and_gives_it_back(self, backend):
        """The same subnet each time; where the kernel carries the packets, none is lost."""
        with Lab(self.spec(backend)) as lab:
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs")
            node, source = lab.node(2), lab.node(1)
            subnet = node.subnet_env()["FLANNEL_SUBNET"]
            keys = {stored.key: stored.value for stored in lab.etcd.leases()}
            pinging = source.pod.popen(
                ["ping", "-q", "-i", "0.02", "-c", "200", node.pod_address()],
                stdout=subprocess.PIPE,
            )
            end(node)
            ours = node.space.popen(
                [
                    "pyflanneld",
                    f"-etcd-endpoints={lab.etcd.endpoint}",
                    "-iface=eth0",
                    *(["--datapath=native"] if backend == "udp" else []),
                ],
                stderr=subprocess.STDOUT,
            )
            try:
                status = ["pyflannel", "status", "--json"]
                lab.wait(
                    lambda: node.exec(status, check=False).returncode == 0, 10, what="ours is ready"
                )
                out, _ = pinging.communicate(timeout=30)
                if backend != "udp":
                    assert " 0% packet loss" in out, out
                assert node.subnet_env()["FLANNEL_SUBNET"] == subnet
                assert {s.key: s.value for s in lab.etcd.leases()} == keys
                lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs with ours")
            finally:
                ours.terminate()
                ours.communicate(timeout=10)
            node.start_daemon()
            ready(lab, 2)
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs with upstream's again")
            assert node.subnet_env()["FLANNEL_SUBNET"] == subnet

    def test_each_follows_what_the_other_changes(self, backend):
        """A node of ours that moves to another subnet is followed by upstream's, and a node of
        upstream's that joins by ours."""
        with Lab(self.spec(backend)) as lab:
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs")
            node = lab.node(1)
            former = node.subnet_env()["FLANNEL_SUBNET"]
            key = f"{lab.spec.prefix}/subnets/{former.replace('.1/24', '.0-24')}"
            lab.etcd.put(key, '{"PublicIP":"192.0.2.99","PublicIPv6":null}')
            lab.wait(
                lambda: node.subnet_env()["FLANNEL_SUBNET"] != former, 10, what="another subnet"
            )
            lab.etcd.delete(key)
            node.attach_pod()
            lab.add_node(command=UPSTREAM)
            lab.wait(lambda: lab.ping_all().ok, 15, what="all pairs of four")


class TestRules:
    """Rules of the one are those of the other: neither doubles, adds to, or takes away."""

    @staticmethod
    def iptables(node) -> list[str]:
        lines = [
            line
            for command in ("iptables-save", "ip6tables-save")
            for line in node.exec([command]).stdout.splitlines()
        ]
        ours = [line for line in lines if "FLANNEL" in line or "flanneld" in line]
        # Of the tunnel ports; flannel has no such rule (docs/differences.md).
        return [line for line in ours if "FLANNEL-GUARD" not in line]

    def test_iptables_rules_are_the_same_from_both_daemons(self):
        spec = LabSpec(
            nodes=1,
            backend="vxlan",
            name="rules-mixed",
            node_commands={1: UPSTREAM},
            start_daemons=False,
        )
        with Lab(spec) as lab:
            node = lab.node(1)
            node.start_daemon(["-ip-masq"])
            ready(lab, 1)
            lab.wait(lambda: len(self.iptables(node)) > 6, 10, what="upstream's rules")
            upstreams = self.iptables(node)
            end(node)
            ours = [
                "pyflanneld",
                f"-etcd-endpoints={lab.etcd.endpoint}",
                "-iface=eth0",
                "-ip-masq",
            ]
            status = ["pyflannel", "status"]
            for damage in (None, "iptables -t nat -F FLANNEL-POSTRTG", "iptables -F FLANNEL-FWD"):
                if damage:
                    node.exec(damage.split())
                child = node.space.popen(ours, stderr=subprocess.STDOUT)
                try:
                    lab.wait(
                        lambda: node.exec(status, check=False).returncode == 0, 10, what="ours"
                    )
                    lab.wait(lambda: self.iptables(node) == upstreams, 5, what="same rules")
                finally:
                    child.terminate()
                    child.communicate(timeout=10)
            node.start_daemon(["-ip-masq"])
            ready(lab, 1)
            skip = len(node.log())
            lab.wait(lambda: self.iptables(node) == upstreams, 10, what="the same rules again")
            assert "rror" not in node.log()[skip:]

    @pytest.mark.parametrize("ours_first", [True, False])
    def test_the_nftables_table_is_handed_over(self, ours_first):
        """Upstream's own rules in it are of another order; who runs has his own."""
        spec = LabSpec(
            nodes=1,
            name="nft-mixed",
            config={
                "Network": "10.0.0.0/16",
                "EnableNFTables": True,
                "Backend": {"Type": "vxlan"},
            },
            node_commands={1: UPSTREAM},
            start_daemons=False,
        )

        def table(node) -> str:
            listed = node.exec(["nft", "-s", "list", "table", "ip", "flannel-ipv4"], check=False)
            return listed.stdout

        with Lab(spec) as lab:
            node = lab.node(1)

            def run_ours() -> str:
                argv = ["pyflanneld", f"-etcd-endpoints={lab.etcd.endpoint}", "-iface=eth0"]
                child = node.space.popen([*argv, "-ip-masq"], stderr=subprocess.STDOUT)
                try:
                    status = ["pyflannel", "status"]
                    lab.wait(
                        lambda: node.exec(status, check=False).returncode == 0, 10, what="ours"
                    )
                    lab.wait(lambda: "masquerade" in table(node), 5, what="our table")
                    return table(node)
                finally:
                    child.terminate()
                    child.communicate(timeout=10)

            def run_upstreams() -> str:
                node.start_daemon(["-ip-masq"])
                ready(lab, 1)
                lab.wait(lambda: "masquerade" in table(node), 10, what="upstream's table")
                found = table(node)
                end(node)
                return found

            if ours_first:
                first, second, again = run_ours(), run_upstreams(), run_ours()
            else:
                first, second, again = run_upstreams(), run_ours(), run_upstreams()
            # What flannel does not know stays in its table; docs/migrating-from-flannel.md says so.
            assert without_guard(again) == without_guard(first)
            assert second.count("masquerade") <= first.count("masquerade") + 1
