"""The eBPF data path under whole daemons: what it carries, what it leaves to user space, what
outlives the daemon."""

from __future__ import annotations

import json
import signal
import socket
import subprocess

import pytest

from pyflannel.lab import Lab, LabSpec

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
