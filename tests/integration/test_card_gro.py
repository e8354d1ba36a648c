"""Segments joined at the card, under whole daemons: a FOU port for its GRO, and for nothing else.

This machine's kernel may have no FOU; then `make kernels` runs all but the last test.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyflannel.datapath.ebpf import cardplan
from pyflannel.kernel.limits import linux_version
from pyflannel.lab import Lab, LabSpec, Underlay, bench
from pyflannel.lab.nodes import Node
from tests.integration.test_ebpf_datapath import (
    QUIET,
    counters,
    has_peers,
    network_status,
    nudge,
    received,
    start,
    with_bpffs,
)
from tests.support.guests import has_fou, need_fou
from tests.support.unit import Manager, start_command
from tests.support.upstream import another_daemon, end

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

CONFIG = {"Network": "10.0.0.0/16", "Backend": {"Type": "udp", "CardGRO": True}}
PORT = 8285
JOINED_BYTES = 20_000
"""Mean size of what reaches the pod of a stream; a segment has 1,448 and less."""
UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
NATIVE = f"pyflanneld --datapath=native {QUIET}"
PYTHON = f"pyflanneld --datapath=python {QUIET}"


def can_join() -> bool:
    return linux_version() >= cardplan.FIRST_LINUX and has_fou()


def need_joining() -> None:
    need_fou()
    if not can_join():
        pytest.skip("this kernel's FOU ports break what they join; the last test is for it")


def make(name: str, **more: object) -> Lab:
    return with_bpffs(name, config=CONFIG, underlay=Underlay.PLAIN, **more)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    need_joining()
    made = make("card-gro")
    try:
        start(made)
        yield made
    finally:
        made.down()


def state(lab: Lab, number: int) -> str:
    found: str = network_status(lab, number)["datapath"]["offloads"]["card_gro"]
    return found


def fou_ports(node: Node) -> list[str]:
    return node.exec(["ip", "fou", "show"]).stdout.strip().splitlines()


def policies(node: Node) -> str:
    return node.exec(["ip", "xfrm", "policy", "list", "dir", "in"]).stdout


def come_back(lab: Lab, number: int, *arguments: str) -> None:
    lab.node(number).start_daemon(list(arguments))
    lab.wait(lambda: has_peers(lab, number, 1), 10, what="the peer")


def stream(lab: Lab, source: int, target: int) -> tuple[int, float, float]:
    """A TCP stream between pods.

    Returns:
        Packets that came to the second GRO, mean bytes of what reached the pod, Mbit/s.
    """
    second = received(lab, target, "flannelgro1", pod=False)[0] if state(lab, target) else 0
    before = received(lab, target)
    rate = bench.tcp(lab.node(source), lab.node(target), seconds=0.5).gbit_per_s * 1000
    after = received(lab, target)
    second = received(lab, target, "flannelgro1", pod=False)[0] - second
    return second, (after[1] - before[1]) / (after[0] - before[0]), rate


def test_a_stream_is_joined_before_the_programs_see_it(
    lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    assert [state(lab, number) for number in (1, 2)] == ["on", "on"]
    found = [stream(lab, 1, 2) for _ in range(3)]
    record_property("figure: TCP, underlay plain, CardGRO, Mbit/s", sorted(found)[1][2])
    second, mean, _ = found[-1]
    assert second < 100
    assert mean > JOINED_BYTES


def test_user_space_has_what_is_out_of_the_ordinary(lab: Lab) -> None:
    """Its socket is handed what the kernel would give the FOU port."""
    done = lab.node(1).exec(
        ["ping", "-c", "1", "-W", "2", "-t", "2", lab.node(2).pod_address()], pod=True, check=False
    )
    assert "Time to live exceeded" in done.stdout
    before = counters(lab, 2)
    lab.switch.call(lambda: send_forged(lab.node(2), b"\x45 is too short"))
    lab.switch.call(lambda: send_forged(lab.node(2), forged(lab.node(2).pod_address())))
    lab.wait(
        lambda: (
            counters(lab, 2)["udp_unknown_sender"] == before["udp_unknown_sender"] + 2
            or counters(lab, 2)["udp_malformed"] == before["udp_malformed"] + 1
        ),
        5,
        what="the datagrams are counted",
    )
    assert counters(lab, 2)["udp_packets"] == before["udp_packets"]


def forged(target: str | None) -> bytes:
    """A datagram for port 7 inside, as a stranger would send it to be undressed."""
    assert target is not None
    inner = bytes.fromhex("4500001d000000004011") + bytes(2)
    inner += socket.inet_aton("10.0.250.7") + socket.inet_aton(target)
    summed = sum(int.from_bytes(inner[at : at + 2], "big") for at in range(0, 20, 2))
    summed = (summed & 0xFFFF) + (summed >> 16)
    inner = inner[:10] + (~summed & 0xFFFF).to_bytes(2, "big") + inner[12:]
    return inner + bytes.fromhex("00070007000900002a")


def send_forged(node: Node, data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, (node.address, PORT))


def starts_without_loss(lab: Lab, number: int, how: int, *arguments: str) -> None:
    """Ends the daemon and starts another, under 50 pings a second from the other node's pod."""
    node, other = lab.node(number), lab.node(3 - number)
    pinging = other.pod.popen(
        ["ping", "-q", "-i", "0.02", "-c", "150", node.pod_address()], stdout=subprocess.PIPE
    )
    node.kill(how)
    node.wait_exit()
    come_back(lab, number, *arguments)
    out, _ = pinging.communicate(timeout=60)
    assert " 0% packet loss" in out, out


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_crash_and_a_restart_lose_no_packet(lab: Lab, how: int) -> None:
    starts_without_loss(lab, 2, how)
    assert state(lab, 2) == "on"
    assert len(fou_ports(lab.node(2))) == 1
    assert stream(lab, 1, 2)[1] > JOINED_BYTES


def test_a_port_that_was_left_serves_on_and_is_known_again(lab: Lab) -> None:
    """And a stream through it is joined while no daemon runs."""
    node = lab.node(2)
    node.kill()
    node.wait_exit()
    left = fou_ports(node)
    assert len(left) == 1
    before = received(lab, 2)
    bench.tcp(lab.node(1), node, seconds=0.3)
    after = received(lab, 2)
    assert (after[1] - before[1]) / (after[0] - before[0]) > JOINED_BYTES
    come_back(lab, 2)
    assert fou_ports(node) == left
    assert state(lab, 2) == "on"


def hears(lab: Lab, node: Node) -> None:
    """A plain socket is bound to the port and hears what comes in, as any other program's would."""

    def bind() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as next_one:
            next_one.settimeout(5)
            next_one.bind((node.address, PORT))
            lab.switch.call(lambda: send_forged(node, b"for the next one"))
            assert next_one.recv(100) == b"for the next one"

    node.space.call(bind)


def test_a_stop_leaves_the_udp_port_to_the_next(lab: Lab) -> None:
    """To a release that knows nothing of this, say."""
    node = lab.node(2)
    node.stop_daemon()
    try:
        hears(lab, node)
        assert fou_ports(node) == []
        assert policies(node) == ""
    finally:
        come_back(lab, 2)
    assert state(lab, 2) == "on"


def test_flanneld_starts_right_after_the_unit_is_stopped(lab: Lab, tmp_path: Path) -> None:
    """Started with the unit's command and rights, and stopped as systemd stops the unit.

    Without upstream's binary (PYFLANNEL_UPSTREAM) a plain socket takes flanneld's place.
    """
    node = lab.node(2)
    node.stop_daemon()
    try:
        with Manager(tmp_path / "notify") as manager:
            with another_daemon(lab, 2, start_command(f"--datapath=ebpf {QUIET}")):
                node.start_daemon(env=manager.environment)
                lab.wait(lambda: has_peers(lab, 2, 1), 10, what="the peer")
            assert state(lab, 2) == "on"
            assert len(fou_ports(node)) == 1
            manager.stop(node)
        if not UPSTREAM:
            hears(lab, node)
        else:
            with another_daemon(lab, 2, UPSTREAM):
                node.start_daemon()
                lab.wait(node.is_ready, 30, what="flanneld is ready")
            assert f"{node.address}:{PORT}" in node.exec(["ss", "-Hlun"]).stdout
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
        assert fou_ports(node) == []
        assert policies(node) == ""
    finally:
        end(node)
        come_back(lab, 2)
    assert state(lab, 2) == "on"


@pytest.mark.parametrize("bolted", [True, False], ids=["bolted", "control"])
def test_nothing_gets_in_by_the_port_when_the_program_is_gone(lab: Lab, bolted: bool) -> None:
    """Where a device takes IP in IP from everybody; without the bolt it gets what is forged."""
    node = lab.node(2)
    node.kill()
    node.wait_exit()
    try:
        assert len(fou_ports(node)) == 1
        node.exec(["sh", "-c", "rm -r /sys/fs/bpf/pyflannel/*"])
        node.exec(["tc", "qdisc", "del", "dev", "eth0", "clsact"], check=False)
        node.exec(["sh", "-c", "ip link show tunl0 || ip link add tunl0 type ipip"])
        node.exec(["ip", "link", "set", "tunl0", "up"])
        if not bolted:
            node.exec(["ip", "xfrm", "policy", "flush"])
        before = received(lab, 2, "tunl0", pod=False)[0]
        blocked = xfrm_blocked(node)
        for _ in range(5):
            lab.switch.call(lambda: send_forged(node, forged(node.pod_address())))
        if bolted:
            lab.wait(lambda: xfrm_blocked(node) == blocked + 5, 5, what="all five are stopped")
        else:
            # The program that was detached may run for a moment yet.
            lab.wait(
                lambda: (
                    lab.switch.call(lambda: send_forged(node, forged(node.pod_address())))
                    or received(lab, 2, "tunl0", pod=False)[0] > before
                ),
                5,
                what="one gets in",
            )
        assert (received(lab, 2, "tunl0", pod=False)[0] == before) is bolted
    finally:
        node.exec(["ip", "link", "set", "tunl0", "down"], check=False)
        if not bolted:  # nothing tells whose port it is
            node.exec(["ip", "fou", "del", "port", str(PORT), "local", node.address, "dev", "eth0"])
        come_back(lab, 2)
    assert state(lab, 2) == "on"


def xfrm_blocked(node: Node) -> int:
    """`XfrmInPolBlock` of the node: what its policies have stopped."""
    table = node.exec(["cat", "/proc/net/xfrm_stat"]).stdout.split()
    return int(table[table.index("XfrmInPolBlock") + 1])


def test_what_others_take_away_is_put_back(lab: Lab) -> None:
    node = lab.node(2)
    node.exec(["ip", "fou", "del", "port", str(PORT), "local", node.address, "dev", "eth0"])
    node.exec(["ip", "xfrm", "policy", "flush"])
    nudge(lab, 2)
    lab.wait(lambda: len(fou_ports(node)) == 1, 20, what="the port is back")
    assert policies(node).count("action block") == 1
    assert network_status(lab, 2)["repaired"]["fou port"] == 1


def test_policies_of_ipsec_close_it_while_they_are_there(lab: Lab) -> None:
    node = lab.node(2)
    policy = ["dir", "in", "src", "198.51.100.1", "dst", "198.51.100.2", "proto", "tcp"]
    node.exec(["ip", "xfrm", "policy", "add", *policy, "action", "block"])
    nudge(lab, 2)
    lab.wait(lambda: fou_ports(node) == [], 20, what="the port is gone")
    assert "IPsec" in state(lab, 2)
    assert lab.ping_all().ok
    node.exec(["ip", "xfrm", "policy", "del", *policy])
    nudge(lab, 2)
    lab.wait(lambda: state(lab, 2) == "on", 20, what="it is open again")


@pytest.mark.parametrize("datapath", ["native", "python"])
def test_another_data_path_takes_a_port_that_was_left(lab: Lab, datapath: str) -> None:
    node = lab.node(2)
    starts_killed(lab, 2, f"--datapath={datapath}")
    try:
        assert fou_ports(node) == []
        assert policies(node) == ""
        assert "ebpf" in state(lab, 2)
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
    finally:
        node.stop_daemon()
        come_back(lab, 2)
    assert state(lab, 2) == "on"


def starts_killed(lab: Lab, number: int, *arguments: str) -> None:
    lab.node(number).kill()
    lab.node(number).wait_exit()
    come_back(lab, number, *arguments)


def test_ports_of_others_stay(lab: Lab) -> None:
    """Also one of our number: the kernel takes one of each, so it is a reason to do without."""
    node = lab.node(2)
    other = ["port", "9999", "ipproto", "4"]
    ours = ["port", str(PORT), "ipproto", "4", "local", "127.0.0.1"]
    node.exec(["ip", "fou", "add", *other])
    try:
        node.kill()
        node.wait_exit()
        done = json.loads(node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert f"FOU port {PORT} on {node.address}" in done["found"]
        assert done["failed"] == {}
        (left,) = fou_ports(node)
        assert "9999" in left
        assert policies(node) == ""
        node.exec(["ip", "fou", "add", *ours])
        come_back(lab, 2)
        assert "not ours" in state(lab, 2)
        node.stop_daemon()
        assert len(fou_ports(node)) == 2
    finally:
        for each in (other, ours):
            node.exec(["ip", "fou", "del", *each], check=False)
        come_back(lab, 2)
        lab.attach_pods()
    assert state(lab, 2) == "on"


@pytest.mark.parametrize("command", [NATIVE, PYTHON], ids=["native", "python"])
@pytest.mark.parametrize("underlay", [Underlay.PLAIN, Underlay.AS_IT_COMES], ids=str)
def test_beside_a_node_in_user_space(command: str, underlay: Underlay) -> None:
    """Its datagrams have checksums; joined, they are as good as those without."""
    need_joining()
    made = with_bpffs("card-mixed", config=CONFIG, underlay=underlay, node_commands={1: command})
    try:
        start(made)
        assert state(made, 2) == "on"
        for source, target in ((1, 2), (2, 1)):
            flow = bench.tcp(made.node(source), made.node(target), seconds=0.3)
            # Broken datagrams were seen to leave 0.006.
            assert flow.gbit_per_s > 0.02
        # As one datagram of 64 KB it would be too long for user space.
        dropped = counters(made, 2)
        assert dropped["udp_oversize"] == dropped["udp_malformed"] == 0
        large = ["ping", "-c", "3", "-i", "0.2", "-s", "4000", "-W", "2"]
        for source, target in ((1, 2), (2, 1)):
            made.node(source).exec([*large, made.node(target).pod_address()], pod=True)
    finally:
        made.down()


def test_where_it_cannot_be_had_the_status_says_why() -> None:
    if can_join():
        pytest.skip("this kernel has it")
    with Lab(LabSpec(nodes=2, name="card-none", datapath="ebpf", config=CONFIG)) as lab:
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
        wanted = "6.12" if linux_version() < cardplan.FIRST_LINUX else "modprobe fou"
        assert wanted in state(lab, 1)
        assert has_peers(lab, 1, 1)
