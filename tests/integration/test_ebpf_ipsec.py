"""Policies of IPsec (xfrm) between the nodes, under whole daemons with the eBPF data path.

What BPF programs send and take passes xfrm by, so its peers are left to user space.
"""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec, bench
from pyflannel.lab.nodes import Node
from tests.integration.test_ebpf_datapath import network_status, nudge

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

KEYS = ["auth", "hmac(sha256)", "0x" + 32 * "11", "enc", "cbc(aes)", "0x" + 16 * "22"]
ETH_P_ALL = 3
ETH_P_IP = 0x0800


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    spec = LabSpec(nodes=2, backend="udp", name="ipsec", datapath="ebpf")
    with Lab(spec) as made:
        made.wait(lambda: made.ping_all().ok, 10, what="all pods reach each other")
        xfrm(made.node(1), "policy")  # loads it, of which the daemons hear when they look
        for number in (1, 2):
            nudge(made, number)
        made.wait(lambda: all(listens(made, each) for each in (1, 2)), 15, what="they listen")
        yield made


def listens(lab: Lab, number: int) -> bool:
    """Whether the daemon hears of changes of policies."""
    process = lab.node(number).daemon.pid
    rows = Path(f"/proc/{process}/net/netlink").read_text().splitlines()[1:]
    # Columns: socket, protocol, port, groups, …
    return any(row.split()[1] == "6" and row.split()[3] == "00000008" for row in rows)


def all_peers(lab: Lab, number: int) -> str:
    return network_status(lab, number)["datapath"]["offloads"]["all_peers"]


def xfrm(node: Node, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return node.exec(["ip", "xfrm", *words], check=check)


def between(node: Node, other: Node, direction: str) -> list[str]:
    """A policy's selector: the datagrams of two nodes."""
    source, target = (node, other) if direction == "out" else (other, node)
    return ["src", source.address, "dst", target.address, "dir", direction]


def reaches(lab: Lab) -> bool:
    return lab.ping_all(count=1, deadline=1).ok


@pytest.mark.parametrize("direction", ["out", "in"])
def test_what_a_policy_blocks_the_programs_do_not_carry(lab: Lab, direction: str) -> None:
    node, other = lab.node(1), lab.node(2)
    selector = between(node, other, direction)
    xfrm(node, "policy", "add", *selector, "action", "block")
    try:
        lab.wait(lambda: not reaches(lab), 3, what="the policy is heeded")
        assert all_peers(lab, 1) == "off (policies of IPsec are for 1 of 1 peers)"
        assert all_peers(lab, 2) == "on"
    finally:
        xfrm(node, "policy", "del", *selector)
    lab.wait(lambda: reaches(lab), 3, what="the programs carry the peer again")
    assert all_peers(lab, 1) == "on"


def test_policies_that_are_for_others_change_nothing(lab: Lab) -> None:
    node, other = lab.node(1), lab.node(2)
    with_mark = [*between(node, other, "out"), "mark", "7", "mask", "0xff"]
    xfrm(node, "policy", "add", *with_mark, "tmpl", "proto", "esp", "mode", "transport")
    to_none = ["src", node.address, "dst", "198.51.100.0/24", "dir", "out"]
    xfrm(node, "policy", "add", *to_none, "action", "block")
    try:
        for _ in range(5):
            assert reaches(lab)
        assert all_peers(lab, 1) == "on"
    finally:
        xfrm(node, "policy", "del", *with_mark)
        xfrm(node, "policy", "del", *to_none)


def test_a_policy_that_was_there_first_is_heeded_from_the_first_packet(lab: Lab) -> None:
    node, other = lab.node(1), lab.node(2)
    selector = between(node, other, "out")
    node.kill()
    node.wait_exit()
    xfrm(node, "policy", "add", *selector, "action", "block")
    try:
        node.start_daemon()
        lab.wait_ready()
        lab.wait(lambda: all_peers(lab, 1).startswith("off"), 5, what="the peer is known")
        assert not reaches(lab)
    finally:
        xfrm(node, "policy", "del", *selector)
    lab.wait(lambda: reaches(lab), 5, what="all pods reach each other")


def test_auto_takes_user_space_where_most_peers_have_policies() -> None:
    with Lab(LabSpec(nodes=2, backend="udp", name="ipsec-auto")) as lab:
        node, other = lab.node(1), lab.node(2)
        selector = between(node, other, "out")
        if network_status(lab, 1)["datapath"]["name"] != "ebpf":
            pytest.skip("`auto` takes another data path on this kernel")
        xfrm(node, "policy", "add", *selector, "action", "block")
        lab.wait(
            lambda: network_status(lab, 1)["datapath"]["name"] == "native", 15, what="another path"
        )
        assert "policies of IPsec are for 1 of 1 peers" in network_status(lab, 1)["datapath"]["why"]
        xfrm(node, "policy", "del", *selector)
        lab.wait(lambda: reaches(lab), 10, what="all pods reach each other")


@contextlib.contextmanager
def encrypted(lab: Lab) -> Iterator[None]:
    """Real ESP between the nodes, in transport mode, which a socket's datagrams go through."""
    nodes = (lab.node(1), lab.node(2))
    for node in nodes:
        for source, target, spi in ((*nodes, "0x11"), (*nodes[::-1], "0x12")):
            ends = ["src", source.address, "dst", target.address]
            state = ["state", "add", *ends, "proto", "esp", "spi", spi, "mode", "transport"]
            if xfrm(node, *state, *KEYS, check=False).returncode:
                pytest.skip("this kernel has no ESP")
    try:
        template = ["tmpl", "proto", "esp", "mode", "transport"]
        for node, other in (nodes, nodes[::-1]):
            for direction in ("out", "in"):
                xfrm(node, "policy", "add", *between(node, other, direction), *template)
        yield
    finally:
        for node in nodes:
            xfrm(node, "policy", "flush")
            xfrm(node, "state", "flush")


def on_the_wire(lab: Lab) -> list[int]:
    """Protocols of the packets between the nodes while pods send small ones and a stream."""
    with lab.switch.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as ear:
        assert lab.ping_all(count=10, deadline=5).ok
        assert bench.tcp(lab.node(1), lab.node(2), seconds=0.3).gbit_per_s > 0.001
        return [frame[23] for frame in _drain(ear)]


def test_what_ipsec_encrypts_is_never_on_the_wire_in_plain(lab: Lab) -> None:
    with encrypted(lab):
        lab.wait(
            lambda: all(all_peers(lab, each).startswith("off") for each in (1, 2)),
            5,
            what="both programs stand aside",
        )
        lab.wait(lambda: reaches(lab), 5, what="all pods reach each other")
        protocols = on_the_wire(lab)
    assert protocols.count(socket.IPPROTO_ESP) >= 40, protocols
    assert protocols.count(socket.IPPROTO_UDP) == 0, protocols
    lab.wait(lambda: reaches(lab), 5, what="all pods reach each other")


def test_the_native_data_path_goes_through_ipsec_as_well() -> None:
    """With IPsec on the way the kernel refuses many datagrams at once (net/ipv4/udp.c, EIO)."""
    spec = LabSpec(nodes=2, backend="udp", name="ipsec-native", datapath="native")
    with Lab(spec) as lab, encrypted(lab):
        lab.wait(lambda: reaches(lab), 5, what="all pods reach each other")
        protocols = on_the_wire(lab)
        assert protocols.count(socket.IPPROTO_ESP) >= 40, protocols
        assert protocols.count(socket.IPPROTO_UDP) == 0, protocols


def _drain(ear: socket.socket) -> list[bytes]:
    """Frames of IPv4 that came, but for those of TCP, which are etcd's."""
    found = []
    end = time.monotonic() + 0.5
    while time.monotonic() < end and select.select([ear], [], [], 0.1)[0]:
        found.append(ear.recv(2048))
    datagrams = (frame for frame in found if frame[12:14] == ETH_P_IP.to_bytes(2))
    return [frame for frame in datagrams if frame[23] != socket.IPPROTO_TCP]
