"""The eBPF data path under whole daemons: what it carries, what it leaves to user space, what
outlives the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from pyflannel.datapath.ebpf import attachment, bpf, gropair
from pyflannel.datapath.ebpf.path import HOP, PREFIX, SETTINGS, ZERO_KEY
from pyflannel.datapath.ebpf.programs import OBJECT, PROGRAMS
from pyflannel.kernel.limits import linux_version
from pyflannel.lab import Lab, LabSpec, bench
from pyflannel.lab.nodes import Node
from tests.support.programs import verified_steps

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

WAY = attachment.probe()[0]
"""How programs are attached: by tcx, or as filters of tc on older kernels and when told so."""
PLACES = {
    "overlay_out": ("flannel0", "egress"),
    "underlay_in": ("eth0", "ingress"),
    "pair_in": ("flannelgro0", "ingress"),
    "gro_in": ("flannelgro1", "ingress"),
    "strip_out": ("flannelgro1", "egress"),
}


QUIET = "--probe-interval=0"
"""A probe is a packet like any other, and here single packets are counted."""


def with_bpffs(name: str, **more) -> Lab:
    """A lab of two nodes with a BPF file system each; daemons not started."""
    args = {"daemon_args": (QUIET,), **more}
    lab = Lab(LabSpec(nodes=2, backend="udp", name=name, datapath="ebpf", **args))
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
    done = lab.node(number).exec(["pyflannel", "status", "--json"], check=False)
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


@pytest.fixture(scope="module")
def mixed():
    """Node 1 in user space, node 2 with ebpf, on a veth pair as it comes."""
    lab = Lab(
        LabSpec(
            nodes=2,
            backend="udp",
            name="ebpf-mixed",
            datapath="ebpf",
            daemon_args=(QUIET,),
            node_commands={1: f"pyflanneld --datapath=native {QUIET}"},
        )
    )
    with lab:
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
        yield lab


@contextlib.contextmanager
def without_pair(lab: Lab, number: int, name: str = "flannelgro1") -> Iterator[None]:
    """A node's daemon finds one of its names taken, and does without."""
    node = lab.node(number)
    node.stop_daemon()
    # Where a BPF file system is mounted the pair outlives the daemon.
    node.exec(["ip", "link", "del", gropair.SENDER], check=False)
    node.exec(["ip", "link", "add", name, "type", "bridge"])
    try:
        node.start_daemon()
        lab.wait(lambda: has_peers(lab, number, 1), 10, what="the peer")
        yield
    finally:
        node.stop_daemon()
        node.exec(["ip", "link", "del", name])
        node.start_daemon()
        lab.wait(lambda: has_peers(lab, number, 1), 10, what="the peer")


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


@pytest.mark.parametrize("number", [1, 2])
def test_nothing_is_wrong_with_what_a_healthy_node_sends(lab, number):
    """The kernel has nothing of its own to say on flannel0."""
    found = lab.node(number).exec(["ip", "-6", "addr", "show", "dev", "flannel0"]).stdout
    assert found == ""
    assert counters(lab, number)["tun_malformed"] == 0


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


def received_ipv6(node: Node) -> int:
    """IPv6 packets that a node's own stack has received (RFC 4293, ipIfStatsInReceives)."""
    rows = dict(line.split() for line in node.exec(["cat", "/proc/net/snmp6"]).stdout.splitlines())
    return int(rows["Ip6InReceives"])


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

    def test_what_is_no_flow_of_them_takes_the_short_way_beside_them(self, lab):
        """Each packet on the SRv6 way is received as IPv6 first; the test frame is, every 10 s."""
        node, few = lab.node(2), 20
        before = received_ipv6(node)
        stream(lab)
        while_streaming = received_ipv6(node)
        assert while_streaming > before + 10 * few
        with (
            lab.node(1).pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            node.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        ):
            receiver.bind((str(node.pod_address()), 0))
            receiver.settimeout(5)
            for number in range(5 * few):
                sender.sendto(bytes([number]), receiver.getsockname())
                assert receiver.recv(1) == bytes([number])
        assert lab.ping_all(count=2 * few, deadline=10).ok
        assert received_ipv6(node) < while_streaming + few

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
            f"ip -6 route flush table {gropair.TABLE}",
            "ip -6 rule del iif flannelgro0",
            "sysctl -qw net.ipv6.conf.flannelgro0.forwarding=0",
            "sysctl -qw net.ipv6.conf.flannelgro0.disable_ipv6=1",
        ],
    )
    def test_a_way_that_is_broken_is_mended(self, lab, fault):
        """Until then packets are cut, without a gap: the program looks before it sends."""
        node = lab.node(2)
        os.kill(node.daemon.pid, signal.SIGSTOP)  # or it may have been mended before we look
        try:
            node.exec(fault.split())
            assert not is_whole(lab)
        finally:
            os.kill(node.daemon.pid, signal.SIGCONT)
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


def send_bulk(source, target, address: str, size: int = 4 << 20) -> int:
    """How much of a TCP stream arrives at an address of the target space within five seconds."""
    with (
        target.socket(socket.AF_INET, socket.SOCK_STREAM) as server,
        source.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        ThreadPoolExecutor(1) as elsewhere,
    ):
        for each in (server, client):
            each.settimeout(5)
        server.bind((address, 0))
        server.listen()
        sending = elsewhere.submit(_send_all, client, server.getsockname(), size)
        received = 0
        with contextlib.suppress(TimeoutError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(5)
                while data := connection.recv(1 << 16):
                    received += len(data)
        with contextlib.suppress(OSError):
            sending.result()
    return received


def _send_all(client: socket.socket, target: tuple[str, int], size: int) -> None:
    client.connect(target)
    client.sendall(bytes(size))
    client.shutdown(socket.SHUT_WR)


@pytest.fixture
def nested(request):
    """A tunnel between pods 1 and 2: `nested(lab)` gives the address of its second end."""

    def make(lab: Lab) -> str:
        for number, other in ((1, 2), (2, 1)):
            pod = lab.node(number).pod
            request.addfinalizer(partial(pod.run, ["ip", "link", "del", "vx0"]))
            ends = [
                "remote",
                lab.node(other).pod_address(),
                "local",
                lab.node(number).pod_address(),
            ]
            tunnel = ["type", "vxlan", "id", "42", "dstport", "4789", *ends]
            pod.run(["ip", "link", "add", "vx0", *tunnel])
            pod.run(["ip", "addr", "add", f"198.18.0.{number}/24", "dev", "vx0"])
            pod.run(["ip", "link", "set", "vx0", "up"])
        return "198.18.0.2"

    return make


def test_a_routing_rule_for_the_tunnels_port_is_followed(lab):
    """As by a socket. Its route can be told from the other by what passes it."""
    node, other = lab.node(1), lab.node(2)
    ping = ["ping", "-c", "1", "-W", "2", "-M", "do", "-s", "1400", other.pod_address()]
    route = [f"{other.address}/32", "dev", "eth0", "mtu", "lock", "1400", "table", "77"]
    node.exec(["ip", "route", "add", *route])
    rule = ["ipproto", "udp", "dport", "8285", "lookup", "77"]
    assert node.exec(ping, pod=True, check=False).returncode == 0
    before = counters(lab, 1)["icmp_frag_needed"]
    node.exec(["ip", "rule", "add", *rule])
    try:
        assert node.exec(ping, pod=True, check=False).returncode == 1
        assert counters(lab, 1)["icmp_frag_needed"] > before
    finally:
        node.exec(["ip", "rule", "del", *rule])
        node.exec(["ip", "route", "del", *route])


def test_a_route_by_another_interface_is_followed(lab):
    """As by a socket: into a VPN, say. A less specific one by the external interface is no way."""
    node, other = lab.node(1), lab.node(2)
    node.exec(["ip", "link", "add", "vpn", "type", "veth", "peer", "name", "end"])
    try:
        for end in ("vpn", "end"):
            node.exec(["ip", "link", "set", end, "up"])
        node.exec(["ip", "route", "add", f"{other.address}/32", "dev", "vpn"])
        assert not lab.ping_all(count=2, deadline=2).ok
        assert received(lab, 1, "end", pod=False)[0] > 0
    finally:
        node.exec(["ip", "link", "del", "vpn"])
    lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")


def test_a_next_hop_of_ipv6_is_taken(lab):
    """As BGP makes them between unnumbered interfaces (RFC 8950)."""
    node, other = lab.node(1), lab.node(2)
    shown = other.exec(["ip", "-j", "-6", "addr", "show", "dev", "eth0", "scope", "link"]).stdout
    (gateway,) = (each["local"] for each in json.loads(shown)[-1]["addr_info"] if "local" in each)
    route = [f"{other.address}/32", "via", "inet6", gateway, "dev", "eth0"]
    node.exec(["ip", "route", "add", *route])
    try:
        node.exec(["ip", "neigh", "flush", "dev", "eth0"])
        before = counters(lab, 1)["tun_packets"]
        assert lab.ping_all(count=3, deadline=5).ok
        assert counters(lab, 1)["tun_packets"] - before >= 6
        assert is_whole(lab)
    finally:
        node.exec(["ip", "route", "del", *route])


@pytest.mark.parametrize("what", ["qdisc", "filter"])
def test_what_others_have_at_the_device_sees_what_goes_out(lab, what):
    """The programs would take packets before it: before a limit that an operator has set, say."""
    node = lab.node(1)

    def all_peers() -> str:
        return network_status(lab, 1)["datapath"]["offloads"]["all_peers"]

    def tc(*words: str) -> str:
        return node.exec(["tc", *words]).stdout

    if what == "qdisc":
        tc("qdisc", "add", "dev", "flannel0", "root", "pfifo", "limit", "100")
    else:
        if WAY == "tcx":
            tc("qdisc", "add", "dev", "flannel0", "clsact")
        at = ["dev", "flannel0", "egress", "pref", "50"]
        tc("filter", "add", *at, "bpf", "da", "bytecode", "1,6 0 0 4294967295")
    nudge(lab, 1)
    lab.wait(lambda: f"flannel0's {what}" in all_peers(), 5, what="it is noticed")
    before = counters(lab, 1)
    assert lab.ping_all(count=5, deadline=5).ok
    assert counters(lab, 1)["tun_packets"] >= before["tun_packets"] + 10
    if what == "qdisc":
        (shown,) = json.loads(tc("-s", "-j", "qdisc", "show", "dev", "flannel0", "root"))
        assert shown["packets"] >= 10
        tc("qdisc", "del", "dev", "flannel0", "root")
    else:
        tc("qdisc", "del", "dev", "flannel0", "clsact")
    nudge(lab, 1)
    lab.wait(lambda: all_peers() == "on", 5, what="the programs send again")
    before = counters(lab, 1)
    assert lab.ping_all(count=5, deadline=5).ok
    assert counters(lab, 1)["tun_packets"] >= before["tun_packets"] + 10


class TestMarks:
    """A packet's mark, which routing rules and firewalls go by, is not the datagram's."""

    def test_a_rule_for_what_pods_send_does_not_route_the_tunnel(self, mixed):
        """The datagrams of user space have no mark. The programs look the route up for some."""
        node = mixed.node(2)
        rule = [
            "-t",
            "mangle",
            "{}",
            "PREROUTING",
            "-i",
            "docker0",
            "-j",
            "MARK",
            "--set-mark",
            "7",
        ]
        node.exec(["iptables", *(word.format("-A") for word in rule)])
        node.exec(["ip", "route", "add", "10.0.0.0/16", "dev", "flannel0", "table", "77"])
        nowhere = ["via", "192.0.2.77", "dev", "eth0"]
        node.exec(["ip", "route", "add", "192.0.2.0/24", *nowhere, "table", "77"])
        node.exec(["ip", "rule", "add", "fwmark", "7", "lookup", "77"])
        try:
            assert mixed.ping_all(deadline=10).ok
        finally:
            node.exec(["ip", "rule", "del", "fwmark", "7"])
            node.exec(["ip", "route", "flush", "table", "77"])
            node.exec(["iptables", *(word.format("-D") for word in rule)])

    def test_a_firewalls_mark_for_ipv6_is_on_no_packet_of_pods(self, lab):
        node = lab.node(2)
        mark = ["-t", "mangle", "{}", "PREROUTING", "-j", "MARK", "--set-mark", "9"]
        count = ["-t", "mangle", "{}", "PREROUTING", "-i", "flannel0", "-m", "mark", "--mark", "9"]
        node.exec(["ip6tables", *(word.format("-A") for word in mark)])
        node.exec(["iptables", *(word.format("-A") for word in count)])
        try:
            before = received_ipv6(node)
            stream(lab)
            assert received_ipv6(node) > before + 200, "the SRv6 way was taken"
            shown = node.exec(["iptables", "-t", "mangle", "-nvxL", "PREROUTING"]).stdout
            (line,) = (each for each in shown.splitlines() if "mark match" in each)
            assert line.split()[0] == "0"
        finally:
            node.exec(["iptables", *(word.format("-D") for word in count)])
            node.exec(["ip6tables", *(word.format("-D") for word in mark)])


class TestTunnelsOfPods:
    """What is in a tunnel already when it comes: its marks leave no room for ours."""

    def test_are_carried_by_the_programs(self, lab, nested):
        address = nested(lab)
        before = counters(lab, 1)
        assert send_bulk(lab.node(1).pod, lab.node(2).pod, address) == 4 << 20
        after = counters(lab, 1)
        assert after["tun_send_error"] == before["tun_send_error"]
        # Cut to what fits the underlay, and counted by the piece.
        assert after["tun_packets"] - before["tun_packets"] > (4 << 20) / 1500

    def test_arrive_at_a_peer_in_user_space(self, mixed, nested):
        address = nested(mixed)
        assert send_bulk(mixed.node(2).pod, mixed.node(1).pod, "198.18.0.1") == 4 << 20
        assert send_bulk(mixed.node(1).pod, mixed.node(2).pod, address) == 4 << 20

    def test_without_a_pair_user_space_carries_them(self, mixed, nested):
        address = nested(mixed)
        with without_pair(mixed, 2):
            assert send_bulk(mixed.node(2).pod, mixed.node(1).pod, "198.18.0.1", 1 << 20) == 1 << 20
            assert send_bulk(mixed.node(1).pod, mixed.node(2).pod, address, 1 << 20) == 1 << 20


class TestStrangersOnTheThirdWay:
    """IPv6 packets encapsulated like ours come neither by the underlay nor from a pod."""

    PORT = 7777

    @pytest.fixture
    def heard(self, lab):
        """Sends a forged frame to node 2 and answers what arrives there, past its firewall."""
        node = lab.node(2)
        drop = ["-p", "udp", "--dport", str(self.PORT), "-j", "DROP"]
        firewall = [["INPUT", "-i", device, *drop] for device in ("eth0", "docker0")]
        for rule in firewall:
            node.exec(["iptables", "-I", *rule])
        ears = node.space.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ears.bind(("", self.PORT))
        ears.settimeout(5)

        def send(source, interface: str, gateway: str, link_layer: str) -> bytes:
            command = ["ip", "-j", "link", "show", "dev", gateway]
            (link,) = json.loads(node.exec(command).stdout)
            inner = IP(src="203.0.113.7", dst=node.address) / UDP(dport=self.PORT) / b"forged"
            frame = bytes(Ether(dst=link_layer, src="02:00:00:00:00:66") / inner)
            for outer in ("2001:db8::99", str(gropair.STRIP_FROM)):
                forged = IPv6(src=outer, dst=str(gropair.STRIP_TO), nh=143) / frame
                data = bytes(Ether(dst=link["address"]) / forged)

                def put(data: bytes = data) -> None:
                    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
                        wire.bind((interface, 0))
                        wire.send(data)

                source.call(put)
            # Behind them on the way: the kernel takes them in order.
            with node.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as honest:
                honest.sendto(b"honest", ("127.0.0.1", self.PORT))
            return ears.recv(99)

        yield send
        ears.close()
        for rule in firewall:
            node.exec(["iptables", "-D", *rule])

    @pytest.mark.parametrize("link_layer", ["ff:ff:ff:ff:ff:ff", "flannelgro0"])
    @pytest.mark.parametrize("by_hand", [False, True], ids=["", "with a route by hand"])
    def test_do_not_get_past_the_firewall(self, lab, heard, link_layer, by_hand):
        """Nor with a route like ours in the main table, which others may have."""
        node = lab.node(2)
        if link_layer == "flannelgro0":
            (link,) = json.loads(node.exec(["ip", "-j", "link", "show", "dev", link_layer]).stdout)
            link_layer = link["address"]
        route = f"{gropair.STRIP_TO} encap seg6local action End.DX2 oif flannelgro1 dev flannelgro0"
        if by_hand:
            node.exec(["ip", "-6", "route", "add", *route.split()])
        try:
            assert heard(lab.switch, "node2", "eth0", link_layer) == b"honest"
            assert heard(node.pod, "eth0", "docker0", link_layer) == b"honest"
        finally:
            if by_hand:
                node.exec(["ip", "-6", "route", "del", *route.split()])
        assert strip(lab, 2) == "on"
        assert is_whole(lab)

    def test_the_route_is_for_the_pair_alone(self, lab):
        node = lab.node(2)
        target = str(gropair.STRIP_TO)
        main = node.exec(["ip", "-6", "route", "show", "table", "main", target]).stdout
        assert "seg6local" not in main
        way = node.exec(["ip", "-6", "route", "get", target], check=False)
        assert "seg6local" not in way.stdout

    @pytest.mark.parametrize("end", [gropair.SENDER, gropair.RECEIVER])
    def test_the_pair_has_no_address(self, lab, end):
        assert lab.node(2).exec(["ip", "addr", "show", "dev", end]).stdout.count("inet") == 0

    def test_a_pair_that_got_addresses_loses_them(self, lab):
        """As an earlier release made it: the link-local address came before the setting."""
        node = lab.node(2)
        node.stop_daemon()
        node.exec(["ip", "addr", "add", "fe80::66/64", "dev", gropair.SENDER])
        node.start_daemon()
        lab.wait(lambda: has_peers(lab, 2, 1), 10, what="node 2 knows its peer")
        self.test_the_pair_has_no_address(lab, gropair.SENDER)
        assert strip(lab, 2) == "on"


class TestWhatIsTakenAway:
    """Programs, pins, maps and the pair are looked at, put right, and said."""

    @pytest.fixture
    def repaired(self, lab):
        """Harms something, and waits until it is put right under a name, and all is carried."""

        def check(what: str, harm: Callable[[], object]) -> None:
            before = network_status(lab, 2)["repaired"].get(what, 0)
            harm()
            nudge(lab, 2)
            lab.wait(
                lambda: network_status(lab, 2)["repaired"].get(what, 0) > before,
                5,
                what=f"the repair of {what}",
            )
            assert is_whole(lab)
            offloads = network_status(lab, 2)["datapath"]["offloads"]
            assert (offloads[WAY], offloads["gro"], offloads["strip"]) == ("on", "on", "on")
            assert not leaves_by_tun(lab)

        return check

    @pytest.mark.parametrize(
        "harm",
        [
            "ip link set flannelgro1 down",
            "ip link set flannelgro0 down",
            "ip link set flannelgro1 mtu 1500",
            "ip link set flannelgro0 mtu 1500",
            "ethtool -K flannelgro1 gro off",
            "ethtool -K flannelgro1 tx on",
            "ethtool -K flannelgro0 tso on",
        ],
    )
    def test_the_pair(self, lab, repaired, harm):
        repaired("gro pair", lambda: lab.node(2).exec(harm.split()))

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_a_program(self, lab, repaired, name):
        def detach() -> None:
            if WAY == "tcx":
                with_pinned(lab, f"link-{name}-*", bpf.detach)
            else:
                lab.node(2).exec(["tc", "filter", "del", "dev", *PLACES[name]])

        repaired(f"program {name}", detach)

    def test_a_pin(self, lab, repaired):
        """Nothing stops before the daemon does."""
        what, pattern = {
            "tcx": ("pin underlay_in", "link-underlay*"),
            "clsact": ("pin qdisc", "qdisc-*"),
        }[WAY]
        repaired(what, lambda: [pin.unlink() for pin in pins(lab, pattern)])

    def test_another_object_in_the_place_of_a_pin(self, lab, repaired):
        def confuse() -> None:
            (pin,) = pins(lab, "config-*")
            pin.unlink()
            with_pinned(lab, "counters-*", lambda fd: bpf.pin(fd, str(pin)))

        repaired("pin config", confuse)

    def test_all_pins_and_their_directory(self, lab, repaired):
        before = [pin.name for pin in pins(lab, "*")]

        def remove() -> None:
            for pin in pins(lab, "*"):
                pin.unlink()
            pin.parent.rmdir()

        repaired("pin peers", remove)
        assert [pin.name for pin in pins(lab, "*")] == before

    def test_the_peers(self, lab, repaired):
        def change(value: bytes | None, fd: int) -> None:
            peers = bpf.Map(os.dup(fd), "peers", bpf.MapDefinition(0, PREFIX.size, HOP.size, 0, 0))
            with contextlib.closing(peers):
                for key in list(peers.keys()):
                    peers.delete(key) if value is None else peers.set(key, value)

        for value in (None, HOP.pack(socket.inet_aton("192.0.2.99"), 0)):
            repaired("peers", partial(with_pinned, lab, "peers-*", partial(change, value)))

    def test_the_settings(self, lab, repaired):
        def erase(fd: int) -> None:
            definition = bpf.MapDefinition(0, len(ZERO_KEY), SETTINGS.size, 1, 0)
            with contextlib.closing(bpf.Map(os.dup(fd), "config", definition)) as config:
                config.set(ZERO_KEY, bytes(SETTINGS.size))

        repaired("settings", partial(with_pinned, lab, "config-*", erase))


def pins(lab: Lab, pattern: str) -> list[Path]:
    """What node 2 has pinned, seen from outside."""
    root = Path(f"/proc/{lab.node(2).space.holder.pid}/root/sys/fs/bpf/pyflannel")
    return sorted(root.glob(f"*/{pattern}"))


def with_pinned(lab: Lab, pattern: str, use: Callable[[int], object]) -> None:
    """Does something with the one object that is pinned under a name like this."""
    (pin,) = pins(lab, pattern)
    fd = bpf.get_pinned(str(pin))
    assert fd is not None
    try:
        use(fd)
    finally:
        os.close(fd)


def leaves_by_tun(lab: Lab) -> bool:
    """Whether what node 2 sends passes user space: flannel0 counts it then."""

    def counted() -> int:
        command = ["ip", "-s", "-j", "link", "show", "dev", "flannel0"]
        (link,) = json.loads(lab.node(2).exec(command).stdout)
        return link["stats64"]["tx"]["packets"]

    before = counted()
    lab.node(2).exec(["ping", "-c", "3", "-i", "0.1", lab.node(1).pod_address()], pod=True)
    return counted() - before >= 3


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
        if WAY == "tcx":
            node.exec(["tc", "qdisc", "add", "dev", "eth0", "clsact"])
        drop = ["prio", "100", "bpf", "da", "bytecode", "1,6 0 0 2"]  # BPF_RET | BPF_K, TC_ACT_SHOT
        node.exec(["tc", "filter", "add", "dev", "eth0", "ingress", *drop])
        try:
            assert closed()
        finally:
            node.exec(["tc", "filter", "del", "dev", "eth0", "ingress", "prio", "100"])
            if WAY == "tcx":
                node.exec(["tc", "qdisc", "del", "dev", "eth0", "clsact"])

    @pytest.mark.skipif(WAY != "tcx", reason="where programs of tcx are first in any case")
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
    # The programs have counted since long before; what is told is since the daemon's start.
    sent = to_peer(lab, 1)
    assert sent <= 300
    node.exec(["ping", "-q", "-i", "0.01", "-c", "20", lab.node(2).pod_address()], pod=True)
    assert to_peer(lab, 1) == sent + 20


def to_peer(lab: Lab, number: int) -> int:
    """Packets that a node's only peer was sent."""
    (peer,) = json.loads(lab.node(number).exec(["pyflannel", "peers", "--json"]).stdout)
    packets: int = peer["packets_out"]
    return packets


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
    assert "flannelgro" not in node.exec(["ip", "-6", "rule"]).stdout
    pins = node.exec(["find", "/sys/fs/bpf/pyflannel", "-mindepth", "2"]).stdout
    assert pins == ""
    assert "clsact" not in node.exec(["tc", "qdisc"]).stdout


class TestBesideUserSpace:
    """Node 1 reads and writes bytes, node 2 is ours; the veth between them finishes no checksum."""

    @staticmethod
    def talk(lab: Lab) -> None:
        for source, target in ((1, 2), (2, 1)):
            sent = bench.tcp(lab.node(source), lab.node(target), seconds=0.3)
            assert sent.gbit_per_s > 0.01, f"{source} to {target}: {sent}"

    def test_tcp_both_ways(self, mixed):
        self.talk(mixed)

    def test_pods_behind_devices_that_finish_no_checksum(self, mixed):
        """Then the kernel does on the last stretch, and must know where the checksum is."""
        node = mixed.node(2)
        links = json.loads(node.exec(["ip", "-j", "link", "show", "master", "docker0"]).stdout)
        (port,) = [link["ifname"] for link in links]
        node.exec(["ethtool", "-K", port, "tx", "off"])
        node.exec(["ethtool", "-K", "eth0", "tx", "off"], pod=True)
        try:
            self.talk(mixed)
        finally:
            node.exec(["ethtool", "-K", port, "tx", "on"])
            node.exec(["ethtool", "-K", "eth0", "tx", "on"], pod=True)

    def test_a_datagram_for_an_unleased_address_is_answered(self, mixed):
        """It goes back into flannel0, where the kernel finishes checksums for the TUN's reader."""
        source, node = mixed.node(1), mixed.node(2)
        before = counters(mixed, 2)
        inner = bytes(
            IP(src=source.pod_address(), dst="10.0.250.7", ttl=9) / UDP(dport=9) / bytes(16)
        )
        source.stop_daemon()  # so that its port is free for us
        try:
            with source.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.bind((source.address, 8285))
                sender.sendto(inner, (node.address, 8285))
        finally:
            source.start_daemon()
            mixed.wait(lambda: has_peers(mixed, 1, 1), 10, what="the peer")
        mixed.wait(
            lambda: counters(mixed, 2)["tun_no_route"] == before["tun_no_route"] + 1,
            5,
            what="the datagram is back and has no peer",
        )
        assert counters(mixed, 2)["udp_packets"] == before["udp_packets"] + 1

    def test_a_peer_that_changes_its_data_path(self, mixed):
        """The program is not told; it sees the difference."""
        node = mixed.node(1)
        for datapath in ("ebpf", "native"):
            node.stop_daemon()
            node.start_daemon([f"--datapath={datapath}"])
            for number in (1, 2):
                mixed.wait(lambda n=number: has_peers(mixed, n, 1), 10, what="the peer")
            assert network_status(mixed, 1)["datapath"]["name"] == datapath
            self.talk(mixed)

    @pytest.mark.parametrize("name", ["flannelgro0", "flannelgro1"])
    def test_without_a_pair_user_space_finishes_the_packets(self, mixed, name):
        """Another program's device with the name of one end is not touched."""
        with without_pair(mixed, 2, name):
            offloads = network_status(mixed, 2)["datapath"]["offloads"]
            assert offloads["finish"].startswith("off (no veth pair")
            self.talk(mixed)
            found = mixed.node(2).exec(["ip", "-d", "link", "show", name]).stdout
            assert "bridge" in found
            assert "mtu 1500 " in found
            assert "state DOWN" in found


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_verifier_is_soon_through(name):
    """It runs twice at each start, and nothing else does meanwhile: 10,000 steps take 5 ms.

    The verifiers of older kernels tell fewer states apart from others, and take more.
    """
    shipped = bpf.BpfObject(
        resources.files("pyflannel.datapath.ebpf").joinpath(OBJECT).read_bytes()
    )
    with contextlib.ExitStack() as stack:
        fds = {}
        for each, definition in shipped.maps.items():
            fds[each] = bpf.Map.create(each, definition).fd
            stack.callback(os.close, fds[each])
        code = shipped.instructions(f"tcx/{name}", fds)
        most = 10_000 if linux_version() >= (6, 12) else 25_000
        assert 10 < verified_steps(code, shipped.license) < most


def test_cleanup_finds_what_a_killed_daemon_left_without_bpffs():
    """No pin tells of it then: the pair goes by its name, the rule by what it says."""
    spec = LabSpec(nodes=1, backend="udp", name="ebpf-killed", datapath="ebpf")
    with Lab(spec) as lab:
        node = lab.node(1)
        lab.wait(
            lambda: "flannelgro0" in node.exec(["ip", "-6", "rule"]).stdout, 10, what="the pair"
        )
        node.kill()
        node.wait_exit()
        planned = json.loads(node.exec(["pyflannel", "cleanup", "--dry-run", "--json"]).stdout)
        assert "rule iif flannelgro0" in planned["found"]
        done = json.loads(node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert done["failed"] == {}
        assert "flannelgro0" not in node.exec(["ip", "-6", "rule"]).stdout
        again = json.loads(node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert again["found"] == []


@pytest.mark.parametrize("datapath", ["ebpf", "native", "python"])
def test_no_sender_speaks_as_the_node_itself_though_all_are_accepted(datapath):
    """Upstream's way, `--udp-accept any`: its kernel drops such packets as martians."""
    spec = LabSpec(
        nodes=1,
        backend="udp",
        name=f"martians-{datapath}",
        datapath=datapath,
        daemon_args=("--udp-accept=any", QUIET),
    )
    with Lab(spec) as lab:
        node = lab.node(1)
        target = node.pod_address()
        own = [node.address, node.subnet_env()["FLANNEL_SUBNET"].split("/")[0], "10.0.200.1"]
        with (
            node.pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears,
            lab.switch.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            ears.bind((target, 7777))
            ears.settimeout(5)
            for source in own:
                inner = IP(src=source, dst=target) / UDP(sport=9, dport=7777) / source.encode()
                sender.sendto(bytes(inner), (node.address, 8285))
            assert ears.recv(99) == b"10.0.200.1"
