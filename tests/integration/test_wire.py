"""What is on the wire between two nodes, dissected with scapy; and what scapy's own make of it."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

IP_RECVTTL = 12
"""linux/in.h; Python has no name for it."""


@pytest.fixture(scope="module", params=["python", "native", "ebpf"])
def lab(request):
    spec = LabSpec(
        nodes=2,
        backend="udp",
        name=f"wire-{request.param}",
        datapath=request.param,
        # A probe is a datagram like any other, and here each one is looked at.
        daemon_args=("--probe-interval=0",),
    )
    with Lab(spec) as lab:
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods")
        yield lab


def layers():
    from scapy.layers.inet import ICMP, IP, UDP
    from scapy.layers.l2 import Ether

    return Ether, IP, UDP, ICMP


def capture(node, wanted: int, act) -> list[bytes]:
    """Frames to port 8285 that arrive at or leave a node while something is done."""
    opened = node.space.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    opened.settimeout(5)
    frames: list[bytes] = []

    def listen() -> None:
        while len(frames) < wanted:
            try:
                frame = opened.recv(65535)
            except TimeoutError:
                return
            if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == b"\x20\x5d":
                frames.append(frame)

    listening = threading.Thread(target=listen)
    listening.start()
    try:
        act()
    finally:
        listening.join()
        opened.close()
    return frames


def test_a_datagram_is_one_ip_packet_and_nothing_else(lab):
    """Port 8285 to 8285, DF, TTL 64 outside; inside the pod's own packet with TTL 62."""
    Ether, IP, UDP, ICMP = layers()
    source, target = lab.node(1), lab.node(2)

    def ping() -> None:
        command = ["ping", "-c", "2", "-i", "0.2", "-s", "100", target.pod_address()]
        source.exec(command, pod=True)

    frames = capture(target, 4, ping)
    requests = [Ether(f) for f in frames if Ether(f)[IP].src == source.address]
    assert requests
    for frame in requests:
        outer, udp = frame[IP], frame[UDP]
        assert (outer.dst, outer.ttl, str(outer.flags), outer.tos) == (target.address, 64, "DF", 0)
        assert (udp.sport, udp.dport) == (8285, 8285)
        inner = IP(bytes(udp.payload))
        assert (inner.src, inner.dst) == (source.pod_address(), target.pod_address())
        assert inner.ttl == 62
        assert len(inner) == udp.len - 8 == inner.len == 128
        assert inner[ICMP].type == 8
        again = inner.copy()
        del again.chksum
        assert IP(bytes(again)).chksum == inner.chksum


def datagram(source, target, packet: bytes) -> bytes:
    """A packet in a datagram from a node's backend port, which its daemon holds, to another's."""
    _, IP, UDP, _ = layers()
    outer = IP(src=source.address, dst=target.address, flags="DF") / UDP(sport=8285, dport=8285)
    return bytes(outer / packet)


def test_a_packet_that_scapy_makes_in_a_peers_name_is_delivered(lab):
    """From the peer's address, for its subnet: as upstream's daemon would send it."""
    _, IP, UDP, _ = layers()
    source, target = lab.node(1), lab.node(2)
    packet = bytes(
        IP(src=source.pod_address(), dst=target.pod_address(), ttl=33)
        / UDP(sport=4242, dport=4243)
        / b"made by hand"
    )
    taking = target.pod.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sending = source.space.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        taking.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        taking.bind((target.pod_address(), 4243))
        taking.settimeout(5)
        sending.sendto(datagram(source, target, packet), (target.address, 0))
        data, ancillary, _, peer = taking.recvmsg(100, 100)
        assert (data, peer) == (b"made by hand", (source.pod_address(), 4242))
        (ttl,) = (int.from_bytes(value[:4], "little") for _, _, value in ancillary)
        assert ttl == 31  # the receiving data path takes one, the kernel that forwards another
    finally:
        taking.close()
        sending.close()


@pytest.mark.parametrize(
    ("what", "counter"),
    [("foreign source", "udp_wrong_source"), ("foreign destination", "udp_wrong_destination")],
)
def test_a_peer_may_only_speak_for_itself_and_to_the_network(lab, what, counter):
    _, IP, UDP, _ = layers()
    source, target = lab.node(1), lab.node(2)
    mine, theirs = source.pod_address(), target.pod_address()
    addresses = {"foreign source": ("10.0.250.9", theirs), "foreign destination": (mine, "8.8.8.8")}
    src, dst = addresses[what]

    def count() -> int:
        status = json.loads(target.exec(["pyflannel", "status", "--json"]).stdout)
        return status["network"]["datapath"]["counters"][counter]

    before = count()
    sending = source.space.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    try:
        inner = bytes(IP(src=src, dst=dst) / UDP() / b"x")
        sending.sendto(datagram(source, target, inner), (target.address, 0))
    finally:
        sending.close()
    lab.wait(lambda: count() == before + 1, 5, what=f"{counter} counts it")
