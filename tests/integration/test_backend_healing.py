"""Every fault on a running node is repaired within two seconds, and packets flow again."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAdded, LeaseAttrs, LeaseRemoved
from tests.integration.backend_nodes import Node, Underlay, eventually, run
from tests.support.guests import need_devices
from tests.support.overlay import config

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

HEALED_WITHIN_S = 2.0


@pytest.fixture
def underlay() -> Iterator[Underlay]:
    with Underlay() as made:
        yield made


def pair(underlay: Underlay, backend: dict[str, object], state: Path, **options: bool):
    return underlay.pair(config(backend, **options), state)


def state_of(node: Node) -> dict[str, object]:
    """All that a backend keeps in the kernel, as the tools of iproute2 print it."""
    state: dict[str, object] = {"routes": node.ip("route")}
    link = node.ip("-o", "link", "show", "flannel.1", check=False)
    if node.config.backend_type == "vxlan":
        state["link"] = re.sub(r"^\d+: |state \w+", "", link)
        state["address"] = re.findall(
            r"inet \S+", node.ip("addr", "show", "flannel.1", check=False)
        )
        state["neighbours"] = node.ip("neigh", "show", "dev", "flannel.1", "nud", "permanent",
                                      check=False)  # fmt: skip
        state["fdb"] = sorted(line for line in node.bridge("fdb").splitlines() if "flannel" in line)
    return state


VTEP = "aa:bb:cc:dd:ee:01"


def empty_fdb(node):
    """Entry by entry: `bridge fdb flush` knows no vxlan devices on Linux 6.1."""
    for line in node.bridge("fdb", "show", "dev", "flannel.1").splitlines():
        node.bridge("fdb", "del", line.split()[0], "dev", "flannel.1", "self")


def rename(node: Node) -> None:
    """Before Linux 6.2 a device must be down for that; at once, or the daemon has it up again."""
    commands = "link set flannel.1 down\nlink set flannel.1 name other\n"
    argv = ["ip", "-n", node.ns, "-batch", "-"]
    subprocess.run(argv, input=commands, text=True, timeout=30, check=True)


def altered_fdb_entry(verb, attribute, value):
    """A fault: the peer's FDB entry, right but for one attribute that ours never have."""
    entry = ("dev", "flannel.1", "dst", "192.0.2.2", attribute, value, "self", "permanent")
    return lambda n: n.bridge("fdb", verb, peer_mac(n), *entry)


VXLAN_FAULTS: dict[str, Callable[[Node], object]] = {
    "route deleted": lambda n: n.ip("route", "del", "10.5.2.0/24"),
    "route replaced": lambda n: n.ip("route", "replace", "10.5.2.0/24", "via", "192.0.2.9"),
    "route made a blackhole": lambda n: n.ip("route", "replace", "blackhole", "10.5.2.0/24"),
    "wrong route put before": lambda n: n.ip("route", "prepend", "10.5.2.0/24", "via", "192.0.2.9"),
    "route given an MTU": lambda n: n.ip(
        "route",
        "replace",
        "10.5.2.0/24",
        "via",
        "10.5.2.0",
        "dev",
        "flannel.1",
        "onlink",
        "mtu",
        "lock",
        "400",
    ),
    "route through a next hop object": lambda n: (
        n.ip("nexthop", "replace", "id", "7", "via", "10.5.2.0", "dev", "flannel.1", "onlink"),
        n.ip("route", "replace", "10.5.2.0/24", "nhid", "7"),
    ),
    "wrong route before one through a next hop object": lambda n: (
        n.ip("nexthop", "replace", "id", "8", "via", "10.5.2.0", "dev", "flannel.1", "onlink"),
        n.ip("route", "replace", "10.5.2.0/24", "nhid", "8"),
        n.ip("route", "prepend", "10.5.2.0/24", "via", "192.0.2.9"),
    ),
    "routes flushed": lambda n: n.ip("route", "flush", "dev", "flannel.1"),
    "neighbour deleted": lambda n: n.ip("neigh", "del", "10.5.2.0", "dev", "flannel.1"),
    "neighbour with wrong MAC": lambda n: n.ip(
        "neigh", "replace", "10.5.2.0", "lladdr", VTEP, "dev", "flannel.1"
    ),
    "fdb emptied": empty_fdb,
    "fdb entry with wrong destination": lambda n: n.bridge(
        "fdb", "replace", peer_mac(n), "dev", "flannel.1", "dst", "192.0.2.77", "self"
    ),
    "second destination in the fdb": lambda n: n.bridge(
        "fdb", "append", peer_mac(n), "dev", "flannel.1", "dst", "192.0.2.77", "self"
    ),
    "fdb entry with wrong port": altered_fdb_entry("replace", "port", "9999"),
    "fdb entry with wrong VNI": altered_fdb_entry("replace", "vni", "77"),
    "second port in the fdb": altered_fdb_entry("append", "port", "9999"),
    "stale fdb entry": lambda n: n.bridge(
        "fdb", "add", VTEP, "dev", "flannel.1", "dst", "192.0.2.77", "self", "permanent"
    ),
    "stale neighbour": lambda n: n.ip(
        "neigh", "add", "10.5.9.0", "lladdr", VTEP, "dev", "flannel.1", "nud", "permanent"
    ),
    "stale route": lambda n: n.ip(
        "route", "add", "10.5.9.0/24", "via", "10.5.9.0", "dev", "flannel.1", "onlink"
    ),
    "address deleted": lambda n: n.ip("-4", "addr", "flush", "dev", "flannel.1"),
    "another address inside the network": lambda n: n.ip(
        "addr", "add", "10.5.77.0/32", "dev", "flannel.1"
    ),
    "device down": lambda n: n.ip("link", "set", "flannel.1", "down"),
    "MAC changed": lambda n: n.ip("link", "set", "flannel.1", "address", VTEP),
    "MTU changed": lambda n: n.ip("link", "set", "flannel.1", "mtu", "1300"),
    "queue length changed": lambda n: n.ip("link", "set", "flannel.1", "txqueuelen", "77"),
    "device deleted": lambda n: n.ip("link", "del", "flannel.1"),
    "device renamed": rename,
    "device of another VNI in its place": lambda n: recreate(n, "id", "9"),
    "device that learns in its place": lambda n: recreate(n, "id", "1", "learning"),
    "underlay down and up": lambda n: (
        n.ip("link", "set", "eth0", "down"),
        n.ip("link", "set", "eth0", "up"),
    ),
    "underlay address removed and back": lambda n: (
        n.ip("-4", "addr", "flush", "eth0"),
        n.address(),
    ),
}


def peer_mac(node: Node) -> str:
    found = re.search(r"10\.5\.2\.0 lladdr (\S+)", node.ip("neigh", "show", "dev", "flannel.1"))
    assert found
    return found[1]


def recreate(node: Node, *how: str) -> None:
    node.ip("link", "del", "flannel.1")
    # The daemon may be quicker than we are.
    node.ip("link", "add", "flannel.1", "type", "vxlan", "dev", "eth0", "dstport", "8472", *how,
            check=False)  # fmt: skip


def test_vxlan_heals_every_fault(underlay: Underlay, tmp_path: Path) -> None:
    """One fault after the other on one node; every time the kernel's tables end up as before."""
    a, b = pair(underlay, {"Type": "vxlan"}, tmp_path)
    before = state_of(a)
    for name, break_it in VXLAN_FAULTS.items():
        break_it(a)
        took = eventually(lambda: a.pings(b) and b.pings(a), HEALED_WITHIN_S, f"ping after {name}")
        eventually(lambda: state_of(a) == before, HEALED_WITHIN_S - took, f"as before: {name}")
    repaired = a.driver.stats.repaired
    assert {"route", "neighbour", "fdb", "address", "link", "mac", "mtu", "device"} <= set(repaired)
    assert a.driver.stats.defects == 0


HOST_GW_FAULTS: dict[str, Callable[[Node], object]] = {
    "route deleted": lambda n: n.ip("route", "del", "10.5.2.0/24"),
    "route replaced": lambda n: n.ip("route", "replace", "10.5.2.0/24", "via", "192.0.2.9"),
    "route made a blackhole": lambda n: n.ip("route", "replace", "blackhole", "10.5.2.0/24"),
    "wrong route put before": lambda n: n.ip("route", "prepend", "10.5.2.0/24", "via", "192.0.2.9"),
    "routes flushed": lambda n: n.ip("route", "flush", "10.5.0.0/16"),
    "underlay down and up": VXLAN_FAULTS["underlay down and up"],
    "underlay address removed and back": VXLAN_FAULTS["underlay address removed and back"],
    "underlay replaced by a new interface": lambda n: (n.unplug(), n.plug()),
}


def test_host_gw_heals_every_fault(underlay: Underlay, tmp_path: Path) -> None:
    """The same for host-gw, whose routes lie on an interface that is not ours."""
    a, b = pair(underlay, {"Type": "host-gw"}, tmp_path)
    before = state_of(a)["routes"]
    for name, break_it in HOST_GW_FAULTS.items():
        break_it(a)
        took = eventually(lambda: a.pings(b) and b.pings(a), HEALED_WITHIN_S, f"ping after {name}")
        eventually(
            lambda: state_of(a)["routes"] == before, HEALED_WITHIN_S - took, f"as before: {name}"
        )
    assert a.driver.stats.repaired["route"] >= 5
    assert a.driver.stats.defects == 0


@pytest.mark.parametrize("direct", [False, True])
def test_ipip_carries_packets_and_heals(direct: bool, underlay: Underlay, tmp_path: Path) -> None:
    """Where the kernel can: elsewhere the messages are held to upstream's and no more.

    The messages in tests/unit/kernel/test_pyroute.py, the backend in tests/contract.
    """
    need_devices("ipip")
    a, b = (
        underlay.node(config({"Type": "ipip", "DirectRouting": direct}), tmp_path) for _ in range(2)
    )
    for node in (a, b):
        node.start()
        node.drive()
    a.submit([LeaseAdded(b.lease)])
    b.submit([LeaseAdded(a.lease)])
    faults = (
        ("route", "flush", "10.5.0.0/16"),
        ("addr", "flush", "dev", "flannel.ipip"),
        ("link", "set", "flannel.ipip", "down"),
        ("link", "del", "flannel.ipip"),
    )
    for fault in faults:
        a.ip(*fault)
        eventually(lambda: a.pings(b) and b.pings(a), HEALED_WITHIN_S, f"ping after {fault}")


def test_vxlan_follows_a_replaced_underlay_with_the_same_mac(
    underlay: Underlay, tmp_path: Path
) -> None:
    """The kernel deletes the vxlan device with its parent; it returns, peers and MAC included."""
    a, b = pair(underlay, {"Type": "vxlan"}, tmp_path)
    before = state_of(a)
    a.unplug()
    a.plug()
    eventually(lambda: a.pings(b) and b.pings(a), HEALED_WITHIN_S, "ping after the replacement")
    eventually(lambda: state_of(a) == before, HEALED_WITHIN_S, "as before")
    assert a.network.own_attrs() == a.lease.attrs


def test_dual_stack_vxlan_heals_a_lost_ipv6_device(underlay: Underlay, tmp_path: Path) -> None:
    a, b = pair(underlay, {"Type": "vxlan"}, tmp_path, ipv6=True)
    eventually(lambda: a.pings(b, ipv6=True), 3, "first IPv6 ping")
    # 1430 bytes with 40 of IPv6 and 8 of ICMP header: the largest packet that must fit.
    assert a.pings(b, ipv6=True, size=1430 - 48)
    for fault in (("link", "set", "flannel-v6.1", "down"), ("link", "del", "flannel-v6.1")):
        a.ip(*fault)
        eventually(lambda: a.pings(b, ipv6=True), HEALED_WITHIN_S, f"IPv6 ping after {fault}")
        assert a.pings(b)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_ipv6_alone_works_and_heals(backend: str, underlay: Underlay, tmp_path: Path) -> None:
    """No IPv4 in the overlay; the kernel's IPv6 has rules of its own (metrics, kept addresses)."""
    nodes = [
        underlay.node(config({"Type": backend}, ipv4=False, ipv6=True), tmp_path) for _ in range(2)
    ]
    for node in nodes:
        node.start()
        node.drive()
    underlay.introduce()
    a, b = nodes
    eventually(lambda: a.pings(b, ipv6=True), 3, "first ping")
    gateway = "2001:db8::99"
    for fault in (
        ("-6", "route", "del", "fd00:5:0:2::/64"),
        ("-6", "route", "replace", "fd00:5:0:2::/64", "via", gateway, "dev", "eth0"),
        ("-6", "route", "append", "fd00:5:0:2::/64", "via", gateway, "dev", "eth0"),
        ("-6", "route", "replace", "blackhole", "fd00:5:0:2::/64"),
    ):
        a.ip(*fault)
        eventually(lambda: a.pings(b, ipv6=True), HEALED_WITHIN_S, f"ping after {fault}")
        eventually(lambda: gateway not in a.ip("-6", "route"), HEALED_WITHIN_S, f"{fault} undone")
    assert a.driver.stats.defects == 0


def test_restart_keeps_the_device_and_drops_no_packet(underlay: Underlay, tmp_path: Path) -> None:
    """`kill -9` and a new start under a ping every 10 ms."""
    a, b = pair(underlay, {"Type": "vxlan"}, tmp_path)
    before, attrs = state_of(a), a.lease.attrs
    index = a.ip("-o", "link", "show", "flannel.1").split(":")[0]
    argv = ["ip", "netns", "exec", b.ns, "ping", "-n", "-i", "0.01", "-c", "100", "-W", "1"]
    ping = subprocess.Popen(
        [*argv, "-I", "10.5.2.1", "10.5.1.1"], stdout=subprocess.PIPE, text=True
    )
    a.kill()
    a.start(previous=attrs)
    a.drive()
    a.submit([LeaseAdded(b.lease)])
    eventually(lambda: a.driver.stats.passes["resync"] > 0, 2, "first pass")
    printed, _ = ping.communicate(timeout=20)
    assert " 0% packet loss" in printed
    assert a.lease.attrs == attrs
    assert a.ip("-o", "link", "show", "flannel.1").split(":")[0] == index
    assert state_of(a) == before
    assert a.driver.stats.changed == 0


def test_a_device_that_upstream_left_is_taken_over(underlay: Underlay, tmp_path: Path) -> None:
    """Made with iproute2 as upstream makes it: kept, MAC included (reference 6.1.2)."""
    node = underlay.node(config({"Type": "vxlan"}), tmp_path)
    node.ip("link", "add", "flannel.1", "address", VTEP.replace("aa", "0a", 1), "mtu", "1450",
            "txqueuelen", "0", "type", "vxlan", "id", "1", "dev", "eth0", "local", "192.0.2.1",
            "dstport", "8472", "nolearning", "ttl", "0")  # fmt: skip
    index = node.ip("-o", "link", "show", "flannel.1").split(":")[0]
    node.start()
    assert node.ip("-o", "link", "show", "flannel.1").split(":")[0] == index
    assert VTEP.replace("aa", "0a", 1) in str(node.lease.attrs.backend_data)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_peer_that_left_while_we_were_down_is_swept(
    backend: str, underlay: Underlay, tmp_path: Path
) -> None:
    """Also when the daemon was killed; an operator's routes beside ours stay."""
    a, b = pair(underlay, {"Type": backend}, tmp_path)
    foreign = "10.5.3.0/24 via 192.0.2.250 dev eth0 proto static"
    a.ip("route", "add", *foreign.split())
    a.kill()
    a.start()
    a.drive()
    time.sleep(0.2)
    assert a.pings(b), "nothing may be swept before the first snapshot"
    a.submit([], synced=True)
    eventually(lambda: "10.5.2.0" not in a.ip("route"), 2, "route swept")
    assert "10.5.2.0" not in a.ip("neigh")
    if backend == "vxlan":
        assert "dst" not in a.bridge("fdb", "show", "dev", "flannel.1")
    assert foreign in a.ip("route")


def test_direct_routing_is_decided_anew_when_the_underlay_changes(
    underlay: Underlay, tmp_path: Path
) -> None:
    """On the link: a plain route. When the peer is behind a gateway: the tunnel. And back."""
    a, b = pair(underlay, {"Type": "vxlan", "DirectRouting": True}, tmp_path)
    direct = "10.5.2.0/24 via 192.0.2.2 dev eth0"
    assert direct in a.ip("route")
    assert "dst" not in a.bridge("fdb", "show", "dev", "flannel.1")
    a.ip("route", "add", "192.0.2.2/32", "via", "192.0.2.1", "dev", "eth0", "onlink", check=False)
    a.ip("route", "replace", "192.0.2.2/32", "via", "192.0.2.77", "dev", "eth0")
    eventually(lambda: "dev flannel.1 onlink" in a.ip("route"), 2, "tunnelled")
    a.ip("route", "del", "192.0.2.2/32")
    eventually(lambda: direct in a.ip("route"), 2, "direct again")
    eventually(lambda: a.pings(b), 2, "ping")


def test_a_peer_off_the_link_holds_up_no_other(
    underlay: Underlay, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """host-gw: the kernel refuses its route, it is named once, and works when it can."""
    a, b = pair(underlay, {"Type": "host-gw"}, tmp_path)
    far = dataclasses.replace(
        b.lease,
        key=SubnetKey(IPv4Network("10.5.66.0/24")),
        attrs=LeaseAttrs(public_ip=IPv4Address("198.51.100.66"), backend_type="host-gw"),
    )
    a.submit([LeaseAdded(far)])
    eventually(lambda: "peer 10.5.66.0/24" in a.driver.stats.failing, 2, "named")
    assert a.pings(b)
    a.ip("addr", "add", "198.51.100.1/24", "dev", "eth0")
    eventually(lambda: not a.driver.stats.failing, 2, "programmed when its address is on the link")
    assert "10.5.66.0/24 via 198.51.100.66" in a.ip("route")
    a.submit([LeaseRemoved(far)])
    eventually(lambda: "10.5.66.0" not in a.ip("route"), 2, "removed")


def test_sysctls_of_the_device(underlay: Underlay, tmp_path: Path) -> None:
    a, _ = pair(underlay, {"Type": "vxlan"}, tmp_path)
    path = "/proc/sys/net/ipv6/conf/flannel.1/accept_ra"
    assert run("ip", "netns", "exec", a.ns, "cat", path).strip() == "0"


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_in_any_combination_heal(seed: int, underlay: Underlay, tmp_path: Path) -> None:
    """One to four faults at a time, at random from a fixed seed, on a node in use."""
    chance = random.Random(seed)
    a, b = pair(underlay, {"Type": "vxlan"}, tmp_path)
    before = state_of(a)
    for _ in range(8):
        names = chance.choices(sorted(VXLAN_FAULTS), k=chance.randint(1, 4))
        for name in names:
            # A fault may find its object already gone.
            with contextlib.suppress(AssertionError):
                VXLAN_FAULTS[name](a)
        took = eventually(
            lambda: a.pings(b) and b.pings(a), HEALED_WITHIN_S, f"ping after {', '.join(names)}"
        )
        eventually(lambda: state_of(a) == before, HEALED_WITHIN_S - took, f"as before: {names}")
    assert a.driver.stats.defects == 0
