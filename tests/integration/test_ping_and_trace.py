"""`pyflannel ping` and `pyflannel trace` on nodes of a lab, well and with a fault."""

from __future__ import annotations

import json

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow]


def ask(node: Node, *words: str) -> tuple[int, dict]:
    done = node.exec(["pyflannel", *words, "--json"], check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


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
