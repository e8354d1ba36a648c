"""The eBPF data path under whole daemons: what it carries, what it leaves to user space, what
outlives the daemon."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import time

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from pyflannel.datapath.ebpf import bpf, gropair
from pyflannel.lab import Lab, LabSpec, bench

pytestmark = [pytest.mark.root, pytest.mark.slow]


def with_bpffs(name: str, **more) -> Lab:
    """A lab of two nodes with a BPF file system each; daemons not started."""
    lab = Lab(LabSpec(nodes=2, backend="udp", name=name, datapath="ebpf", **more))
    lab.create()
    lab.build()
    lab.configure()
    for number in (1, 2):
        lab.node(number).exec(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])
    return lab


def start(lab: Lab) -> None:
    lab.start_daemons()
    lab.wait_ready()
    lab.attach_pods()
    lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")


def network_status(lab: Lab, number: int) -> dict:
    done = lab.node(number).exec(["pyflannel", "status", "--json"])
    return json.loads(done.stdout)["network"]


def counters(lab: Lab, number: int) -> dict:
    return network_status(lab, number)["datapath"]["counters"]


def has_peers(lab: Lab, number: int, peers: int) -> bool:
    """Whether the daemon is up again and has heard of everybody."""
    done = lab.node(number).exec(["pyflannel", "status", "--json"], check=False)
    if done.returncode != 0:
        return False
    network = json.loads(done.stdout).get("network")
    return network is not None and network["peers"] == peers


@pytest.fixture(scope="module")
def lab():
    lab = with_bpffs("ebpf-test")
    try:
        start(lab)
        yield lab
    finally:
        lab.down()


def test_pods_reach_each_other_with_the_ttl_of_every_data_path(lab):
    matrix = lab.ping_all()
    assert matrix.ok
    assert set(matrix.ttls) == {60}


def test_the_first_packet_to_a_node_waits_for_its_neighbour(lab):
    """It is the kernel that asks who has the peer's address, and keeps the packet meanwhile."""
    ping = ["ping", "-c", "1", "-W", "2", lab.node(2).pod_address()]
    for _ in range(3):
        before = counters(lab, 1)
        lab.node(1).exec(["ip", "neigh", "flush", "dev", "eth0"])
        lab.node(1).exec(ping, pod=True)
        after = counters(lab, 1)
        assert after["tun_packets"] - before["tun_packets"] == 1


def test_packets_are_counted_though_no_daemon_sees_them(lab):
    before = counters(lab, 1)
    lab.node(1).exec(["ping", "-c", "5", "-i", "0.1", lab.node(2).pod_address()], pod=True)
    after = counters(lab, 1)
    assert after["tun_packets"] - before["tun_packets"] >= 5
    assert after["udp_packets"] - before["udp_packets"] >= 5


def test_what_has_no_peer_is_answered_by_user_space(lab):
    """ICMP network unreachable reaches the pod: the program has let the packet through to us."""
    before = counters(lab, 1)["icmp_unreachable"]

    def ask() -> int:
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asking.settimeout(5)
        with asking:
            asking.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
            asking.connect(("10.0.250.7", 9))
            asking.send(b"x")
            try:
                asking.recv(1)
            except OSError as error:
                return error.errno or 0
        return 0

    assert lab.node(1).pod.call(ask) == 101  # ENETUNREACH
    assert counters(lab, 1)["icmp_unreachable"] > before


def test_a_ttl_that_runs_out_is_told_by_user_space(lab):
    done = lab.node(1).exec(
        ["ping", "-c", "1", "-W", "2", "-t", "2", lab.node(2).pod_address()], pod=True, check=False
    )
    assert "Time to live exceeded" in done.stdout


def test_a_stranger_is_not_let_in_and_is_counted(lab):
    """The same checks as in user space: the switch is no peer."""
    node = lab.node(2)
    before = counters(lab, 2)
    inner = bytes.fromhex("4500001c000000004011") + bytes(2)
    inner += socket.inet_aton(lab.node(1).pod_address()) + socket.inet_aton(node.pod_address())
    inner += bytes.fromhex("0007000900080000")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(inner, (node.address, 8285))

    lab.switch.call(send)
    lab.wait(
        lambda: counters(lab, 2)["udp_unknown_sender"] == before["udp_unknown_sender"] + 1,
        5,
        what="the datagram is counted as a stranger's",
    )
    assert counters(lab, 2)["udp_packets"] == before["udp_packets"]


def strip(lab: Lab, number: int) -> str:
    return network_status(lab, number)["datapath"]["offloads"]["strip"]


def nudge(lab: Lab, number: int) -> None:
    """The daemon looks after its pair when something happens to it, and every 10 s."""
    lab.node(number).exec(["ip", "link", "set", "flannelgro0", "alias", str(time.monotonic())])


def received(lab: Lab, number: int, device: str = "eth0", *, pod: bool = True) -> tuple[int, int]:
    """Packets and bytes that an interface has received; a super packet is one."""
    command = ["ip", "-s", "-j", "link", "show", "dev", device]
    (link,) = json.loads(lab.node(number).exec(command, pod=pod).stdout)
    return link["stats64"]["rx"]["packets"], link["stats64"]["rx"]["bytes"]


def stream(lab: Lab) -> tuple[int, float]:
    """Sends a TCP stream from pod 1 to pod 2.

    Returns:
        How many segments were cut and joined on the way, and the mean size of what reached the pod.
    """
    segments, before = received(lab, 2, "flannelgro1", pod=False)[0], received(lab, 2)
    assert bench.tcp(lab.node(1), lab.node(2), seconds=0.5).gbit_per_s > 0.01
    cut, after = received(lab, 2, "flannelgro1", pod=False)[0] - segments, received(lab, 2)
    return cut, (after[1] - before[1]) / (after[0] - before[0])


def is_whole(lab: Lab) -> bool:
    """Whether super packets stay what they are from node to pod."""
    cut, mean_bytes = stream(lab)
    # The first segments of a stream are none, and nor is what the kernel says to a new device.
    return cut < 100 and mean_bytes > 8000


class TestSuperPackets:
    """What crosses a virtual underlay whole is not cut on its way to the pod (flannel.bpf.c)."""

    def test_they_reach_the_pod_whole(self, lab):
        assert strip(lab, 2) == "on"
        assert is_whole(lab)

    def test_a_firewall_in_the_way_costs_speed_and_nothing_else(self, lab):
        """Found by the test frame, told in the status, and found again when it is over."""
        node = lab.node(2)
        rule = ["-t", "raw", "{}", "PREROUTING", "-i", "flannelgro0", "-j", "DROP"]
        node.exec(["ip6tables", *(word.format("-A") for word in rule)])
        nudge(lab, 2)
        lab.wait(lambda: "does not come through" in strip(lab, 2), 5, what="the way is closed")
        assert not is_whole(lab)
        node.exec(["ip6tables", *(word.format("-D") for word in rule)])
        nudge(lab, 2)
        lab.wait(lambda: strip(lab, 2) == "on", 5, what="the way is open again")
        assert network_status(lab, 2)["repaired"]["strip"] >= 1
        assert is_whole(lab)

    @pytest.mark.parametrize(
        "fault",
        [
            "ip -6 route flush dev flannelgro0",
            "sysctl -qw net.ipv6.conf.flannelgro0.forwarding=0",
            "sysctl -qw net.ipv6.conf.flannelgro0.disable_ipv6=1",
        ],
    )
    def test_a_way_that_is_broken_is_mended(self, lab, fault):
        """Until then packets are cut, without a gap: the program looks before it sends."""
        lab.node(2).exec(fault.split())
        assert not is_whole(lab)
        nudge(lab, 2)
        lab.wait(lambda: is_whole(lab), 5, what="whole packets again")

    def test_a_pair_that_was_deleted_is_made_again(self, lab):
        node = lab.node(2)
        node.exec(["ip", "link", "del", "flannelgro0"])
        lab.wait(
            lambda: network_status(lab, 2)["repaired"].get("gro pair") == 1, 2, what="the pair"
        )
        assert strip(lab, 2) == "on", node.log()
        assert is_whole(lab)

    def test_nobody_else_gets_in_that_way(self, lab):
        """A packet from outside, dressed like ours, is undressed by the kernel and then dropped."""
        node = lab.node(2)
        target = lab.node(2).pod_address()
        listen = "import socket; s = socket.socket(type=2); s.bind(('', 7777)); print('up'); "
        listen += "print(s.recv(99).decode())"
        with node.pod.popen(["python3", "-uc", listen], stdout=subprocess.PIPE) as listening:
            assert listening.stdout.readline().strip() == "up"
            (link,) = json.loads(node.exec(["ip", "-j", "link", "show", "dev", "eth0"]).stdout)
            inner = IP(src=lab.node(1).pod_address(), dst=target) / UDP(dport=7777) / b"forged"
            frame = Ether(bytes(12) + b"\x81\x00\x00\x00\x08\x00") / inner
            forged = bytes(
                Ether(dst=link["address"])
                / IPv6(src="2001:db8::99", dst=str(gropair.STRIP_TO), nh=143)
                / bytes(frame)
            )

            def send() -> None:
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
                    wire.bind(("node2", 0))
                    wire.send(forged)

            before = received(lab, 2, "flannelgro0", pod=False)[0]
            lab.switch.call(send)
            lab.wait(
                lambda: received(lab, 2, "flannelgro0", pod=False)[0] > before,
                5,
                what="the forged packet has been undressed",
            )

            def send_honestly() -> None:
                with socket.socket(type=socket.SOCK_DGRAM) as sender:
                    sender.sendto(b"honest", (target, 7777))

            lab.node(1).pod.call(send_honestly)
            assert listening.stdout.readline().strip() == "honest"


class TestOthersAtTheSameHook:
    """What is not ours goes on to the programs and filters behind ours: theirs is the verdict."""

    @pytest.fixture
    def closed(self, lab):
        """Answers whether node 1 hears nothing any more by its underlay, and pods still talk."""

        def ask() -> bool:
            ping = ["ping", "-c", "2", "-i", "0.2", "-W", "1"]
            node = lab.node(2)
            # The overlay's packets are taken before; a first one finds the neighbour.
            node.exec([*ping, lab.node(1).pod_address()], pod=True)
            return node.exec([*ping, lab.node(1).address], check=False).returncode == 1

        assert not ask()
        return ask

    def test_filters_of_tc(self, lab, closed):
        node = lab.node(1)
        node.exec(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
        drop = ["bpf", "da", "bytecode", "1,6 0 0 2"]  # BPF_RET | BPF_K, TC_ACT_SHOT
        node.exec(["tc", "filter", "add", "dev", "eth0", "ingress", *drop])
        try:
            assert closed()
        finally:
            node.exec(["tc", "qdisc", "del", "dev", "eth0", "clsact"])

    def test_programs_of_tcx(self, lab, closed):
        drop = struct.pack("<BxxxiB7x", 0xB7, 2, 0x95)  # r0 = TC_ACT_SHOT; exit
        found = []

        def attach() -> None:
            program = bpf.load_program("drop_all", drop, b"GPL\0", bpf.TCX_INGRESS)
            link = bpf.attach_tcx(program, socket.if_nametoindex("eth0"), bpf.TCX_INGRESS)
            found.extend((program, link))

        lab.node(1).space.call(attach)
        try:
            assert closed()
        finally:
            for fd in found:
                os.close(fd)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_daemon_loses_no_packet(lab, how):
    """Programs, maps and the device outlive it; 100 pings a second go on over both instants."""
    node = lab.node(1)
    subnet = node.subnet_env()["FLANNEL_SUBNET"]
    pinging = node.pod.popen(
        ["ping", "-q", "-i", "0.01", "-c", "300", lab.node(2).pod_address()],
        stdout=subprocess.PIPE,
    )
    if how is signal.SIGTERM:
        node.stop_daemon()
    else:
        node.kill(how)
        node.wait_exit()
    node.start_daemon()
    lab.wait(lambda: has_peers(lab, 1, 1), 10, what="node 1 knows its peer")
    out, _ = pinging.communicate(timeout=30)
    assert " 0% packet loss" in out, out
    assert node.subnet_env()["FLANNEL_SUBNET"] == subnet


def test_a_peer_that_left_while_the_daemon_was_down_is_forgotten(lab):
    """The map keeps its peers until the first snapshot, and no longer."""
    node = lab.node(1)
    key = "/coreos.com/network/subnets/10.0.99.0-24"
    lab.etcd.put(key, '{"PublicIP":"192.0.2.99","PublicIPv6":null}')
    lab.wait(lambda: has_peers(lab, 1, 2), 5, what="the new peer")
    node.stop_daemon()
    lab.etcd.delete(key)
    node.start_daemon()
    lab.wait(lambda: has_peers(lab, 1, 1), 10, what="the sweep")
    assert lab.ping_all().ok


def test_changing_to_another_data_path_leaves_nothing_of_this_one(lab):
    node = lab.node(1)
    node.stop_daemon()
    node.start_daemon(["--datapath=python"])
    lab.wait(lambda: has_peers(lab, 1, 1), 10, what="node 1 knows its peer")
    assert lab.ping_all().ok
    links = node.exec(["ip", "-o", "link"]).stdout
    assert "flannelgro" not in links
    assert "flannel0" in links
    pins = node.exec(["find", "/sys/fs/bpf/pyflannel", "-mindepth", "2"]).stdout
    assert pins == ""
