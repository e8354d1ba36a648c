"""A pod cannot speak to peers' tunnel ports in its node's name."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

PORT, HEARS = 8285, 7777


@pytest.fixture(params=["", "--enable-nftables"], ids=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Node 2 masquerades as docker does by itself: ports stay what they are."""
    config = {
        "Network": "10.0.0.0/16",
        "EnableNFTables": bool(request.param),
        "Backend": {"Type": "udp"},
    }
    spec = LabSpec(nodes=2, name="tunnel-ports", backend="udp", config=json.dumps(config))
    with Lab(spec) as made:
        made.wait(lambda: made.ping_all().ok, 10, what="all pods reach each other")
        outside = ["-s", "10.0.0.0/16", "!", "-d", "10.0.0.0/16"]
        command = ["iptables", "-t", "nat", "-A", "POSTROUTING", *outside, "-j", "MASQUERADE"]
        made.node(2).exec(command)
        yield made


def test_what_a_pod_forges_does_not_arrive_and_the_rest_does(lab: Lab) -> None:
    node1, node2 = lab.node(1), lab.node(2)
    target, liar = node1.pod_address(), node2.pod_address()
    with (
        node1.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod,
        node1.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as host,
        node2.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for ears, address in ((pod, target), (host, node1.address)):
            ears.bind((address, HEARS))
            ears.settimeout(5)
        sender.bind(("", PORT))
        another = f"{liar.rpartition('.')[0]}.77"
        inner = IP(src=another, dst=target) / UDP(sport=9, dport=HEARS) / b"forged"
        sender.sendto(bytes(inner), (node1.address, PORT))
        # Other ports of nodes are open as ever, with the node's address; and so are pods.
        sender.sendto(b"to the node", (node1.address, HEARS))
        assert host.recvfrom(99) == (b"to the node", (node2.address, PORT))
        sender.sendto(b"to the pod", (target, HEARS))
        assert pod.recvfrom(99) == (b"to the pod", (liar, PORT))


def test_cleanup_takes_the_rule_away(lab: Lab) -> None:
    node = lab.node(2)

    def rules() -> str:
        return node.exec(["nft", "list", "ruleset"]).stdout

    assert "8285" in rules()
    node.stop_daemon()
    node.exec(["pyflannel", "cleanup"])
    assert "8285" not in rules()
    assert "GUARD" not in rules()
