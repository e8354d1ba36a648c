"""`pyflannel ping` and `pyflannel trace` on nodes of a lab, well and with a fault."""

from __future__ import annotations

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow]


def ask(node: Node, *words: str) -> tuple[int, dict]:
    done = node.exec(["pyflannel", *words, "--json"], check=False)
    assert done.stdout, done.stderr
    return done.returncode, check_printed(words[0], done.stdout)


def outcomes(answer: dict) -> dict[str, str]:
    return {layer["ask"]: layer["outcome"] for layer in answer["layers"]}


@pytest.fixture(scope="module")
def lab():
    need_devices("vxlan")
    with Lab(LabSpec(nodes=2, backend="vxlan", name="reach")) as made:
        made.wait(lambda: made.ping_all(count=1).ok, 20, what="all pods")
        yield made


class TestPing:
    def test_every_layer_of_a_pod_answers(self, lab):
        code, said = ask(lab.node(1), "ping", lab.node(2).pod_address(), "--port", "80")
        assert code == 0
        assert set(outcomes(said).values()) == {"ok"}
        assert list(outcomes(said))[-1] == "TCP"

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            (("-p", "udp", "--dport", "8472"), "drops UDP port 8472"),
            (
                ("-p", "udp", "--dport", "8472", "-m", "length", "--length", "1300:9000"),
                "large ones",
            ),
        ],
    )
    def test_a_fault_is_named(self, lab, rule, words):
        lab.node(2).exec(["iptables", "-I", "INPUT", *rule, "-j", "DROP"])
        try:
            code, said = ask(lab.node(1), "ping", "192.0.2.2", "--count", "1")
        finally:
            lab.node(2).exec(["iptables", "-D", "INPUT", *rule, "-j", "DROP"])
        assert code == 1
        assert words in said["verdict"]["text"]

    def test_tcp_that_is_dropped_is_not_the_tunnel(self, lab):
        rule = ["FORWARD", "-p", "tcp", "-j", "DROP"]
        lab.node(2).exec(["iptables", "-I", *rule])
        try:
            code, said = ask(lab.node(1), "ping", lab.node(2).pod_address(), "--tcp")
        finally:
            lab.node(2).exec(["iptables", "-D", *rule])
        assert code == 1
        assert (outcomes(said)["pod"], outcomes(said)["TCP"]) == ("ok", "lost")

    def test_who_is_no_peer_ends_with_3(self, lab):
        done = lab.node(1).exec(["pyflannel", "ping", "10.99.99.99"], check=False)
        assert done.returncode == 3
        assert "known peers" in done.stderr


class TestTrace:
    def way(self, lab: Lab, number: int, *, back: bool = False) -> tuple[int, list[dict]]:
        """From pod 1 to pod 2, or back, as one node sees it."""
        pods = [node.pod_address() for node in lab.nodes]
        code, said = ask(lab.node(number), "trace", *(pods[::-1] if back else pods))
        return code, said["hops"]

    def test_both_halves_of_the_way_lead_through(self, lab):
        for number, back in ((1, False), (2, False), (1, True), (2, True)):
            code, hops = self.way(lab, number, back=back)
            assert code == 0, hops
            assert hops[-1]["outcome"] == "leaves"
            assert {hop["outcome"] for hop in hops[:-1]} == {"passes"}

    @pytest.mark.parametrize(
        ("number", "do", "undo", "place"),
        [
            (
                1,
                "sysctl -qw net.ipv4.ip_forward=0",
                "sysctl -qw net.ipv4.ip_forward=1",
                "forwarding",
            ),
            (
                1,
                "iptables -I FORWARD -d {there} -j DROP",
                "iptables -D FORWARD -d {there} -j DROP",
                "forward",
            ),
            (
                *(1, "iptables -I OUTPUT -p udp --dport 8472 -j DROP"),
                *("iptables -D OUTPUT -p udp --dport 8472 -j DROP", "outer output"),
            ),
            (
                *(2, "iptables -I INPUT -p udp --dport 8472 -j DROP"),
                *("iptables -D INPUT -p udp --dport 8472 -j DROP", "outer input"),
            ),
            (
                *(2, "iptables -t raw -I PREROUTING -i flannel.1 -j DROP"),
                *("iptables -t raw -D PREROUTING -i flannel.1 -j DROP", "prerouting"),
            ),
            (1, "ip rule add to {there} blackhole pref 5", "ip rule del pref 5", "route"),
        ],
    )
    def test_a_fault_ends_it_at_its_place(self, lab, number, do, undo, place):
        there, node = lab.node(2).pod_address(), lab.node(number)
        node.exec(do.format(there=there).split())
        try:
            code, hops = self.way(lab, number)
            other = self.way(lab, 3 - number)
        finally:
            node.exec(undo.format(there=there).split())
        assert (code, hops[-1]["outcome"], hops[-1]["place"]) == (1, "ends", place)
        assert other[0] == 0
