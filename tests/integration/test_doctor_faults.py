"""Faults around the overlay on nodes of a lab: each is made, seen with its code, and undone."""

from __future__ import annotations

import json
import sys

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow]

QUIET = ("--probe-interval=0",)
"""Probes would see the same faults, a little later."""
DUAL = {
    "Network": "10.0.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10::/48",
    "Backend": {"Type": "vxlan"},
}


def codes(node: Node, *words: str) -> set[str]:
    done = node.exec(["pyflannel", "doctor", "--json", *words], check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["findings"]
    assert all(one["evidence"] and one["consequence"] for one in found if one["code"] > "PF2")
    assert done.returncode == any(one["severity"] != "info" for one in found)
    return {one["code"] for one in found}


@pytest.fixture(scope="module")
def lab():
    need_devices("vxlan")
    with Lab(LabSpec(nodes=2, name="faulty", config=DUAL, daemon_args=QUIET)) as made:
        made.wait(lambda: made.ping_all(count=1).ok, 20, what="all pods")
        yield made


def run(node: Node, script: str) -> None:
    node.exec(["sh", "-ec", script])


VPN = "ip link add vpn0 type bridge; ip link set vpn0 up; "
NO_VPN = "ip link del vpn0"
RA = "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra; "
MANAGED = "mkdir -p /run/NetworkManager/devices; printf '[device]\nmanaged=true\n' "
DIRECT = (
    "echo 1 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter; "
    "ip route add {there} via 192.0.2.2 dev eth0 table 77; "
)
NO_DIRECT = "echo 0 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter; "
FILL = """
import socket
want = int(open("/proc/sys/net/netfilter/nf_conntrack_max").read()) * 85 // 100
hosts = want // 40_000 + 1
for port in range(20_000, 20_000 + want // hosts + 1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.bind(("192.0.2.1", port))
        for host in range(100, 100 + hosts):
            sending.sendto(b"", (f"192.0.2.{host}", 9))
"""
"""A connection each: no host answers at these addresses, so each stays for half a minute."""
FAULTS = [
    (
        # The way there leads beside the tunnel, and what comes by the tunnel is checked against it.
        "PF211",
        DIRECT + "ip rule add to {there} lookup 77 pref 10",
        NO_DIRECT + "ip rule del pref 10; ip route flush table 77",
    ),
    (
        "PF227",
        "mount -t tmpfs -o size=512k none /var/lib/pyflannel",
        "umount /var/lib/pyflannel",
    ),
    (
        "PF202",
        "echo 0 >/proc/sys/net/ipv4/ip_forward",
        "echo 1 >/proc/sys/net/ipv4/ip_forward",
    ),
    (
        "PF212",
        "echo 0 >/proc/sys/net/ipv4/conf/docker0/forwarding",
        "echo 1 >/proc/sys/net/ipv4/conf/docker0/forwarding",
    ),
    (
        "PF213",
        "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
    ),
    (
        "PF215",
        RA + "ip -6 route add default via 2001:db8::99 dev eth0 proto ra metric 2000",
        "ip -6 route del default via 2001:db8::99 dev eth0",
    ),
    (
        "PF217",
        VPN + "ip route add {there} dev vpn0 table 77; ip rule add to {there} lookup 77 pref 10",
        f"ip rule del pref 10; {NO_VPN}",
    ),
    ("PF218", VPN + "ip route add 192.0.2.2/32 dev vpn0", NO_VPN),
    ("PF219", "ip rule add from 10.9.9.9 lookup 30400 pref 30400", "ip rule del pref 30400"),
    ("PF220", "ip link set docker0 mtu 1500", "ip link set docker0 mtu 1450"),
    (
        "PF222",
        "ip link add br9 type bridge; ip address add {here} dev br9; ip link set br9 up",
        "ip link del br9",
    ),
    ("PF223", "ip link add flannel.9 type vxlan id 9 dstport 9999", "ip link del flannel.9"),
    (
        "PF224",
        MANAGED + ">/run/NetworkManager/devices/$(ip -o link show flannel.1 | cut -d: -f1)",
        "rm -r /run/NetworkManager",
    ),
    (
        "PF230",
        "echo nameserver 10.0.250.53 >/run/resolv; mount --bind /run/resolv /etc/resolv.conf",
        "umount /etc/resolv.conf; rm /run/resolv",
    ),
    (
        "PF233",
        "iptables -t nat -I POSTROUTING -o flannel.1 -j MASQUERADE",
        "iptables -t nat -D POSTROUTING -o flannel.1 -j MASQUERADE",
    ),
    (
        "PF234",
        "iptables -t nat -I POSTROUTING -p udp --dport 8472 -j MASQUERADE",
        "iptables -t nat -D POSTROUTING -p udp --dport 8472 -j MASQUERADE",
    ),
    (
        "PF204",
        "ip6tables -I FORWARD -s fd00:10::/48 -j DROP",
        "ip6tables -D FORWARD -s fd00:10::/48 -j DROP",
    ),
    (
        "PF205",
        "ip6tables -I INPUT -p udp --dport 8472 -j DROP",
        "ip6tables -D INPUT -p udp --dport 8472 -j DROP",
    ),
]


@pytest.mark.parametrize(("code", "do", "undo"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_fault_is_seen_with_its_code_alone(lab, code, do, undo):
    node = lab.node(1)
    env, other = node.subnet_env(), lab.node(2).subnet_env()
    names = {
        "there": other["FLANNEL_SUBNET"].replace(".1/", ".0/"),
        "here": env["FLANNEL_SUBNET"].replace(".1/", ".200/"),
    }
    run(node, do.format(**names) if "{there}" in do or "{here}" in do else do)
    try:
        found = codes(node)
    finally:
        run(node, undo)
    assert found == {code}
    lab.wait(lambda: codes(node) == set(), 20, what="a node that is well again")


def test_ipv6_that_is_off_on_the_device_is_told_as_the_cause_of_what_the_daemon_says(lab):
    off = "/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6"
    run(lab.node(1), f"echo 1 >{off}")
    try:
        lab.wait(lambda: codes(lab.node(1)) == {"PF214", "PF132"}, 20, what="cause and effect")
    finally:
        run(lab.node(1), f"echo 0 >{off}")
    lab.wait(lambda: codes(lab.node(1)) == set(), 20, what="a node that is well again")


def test_a_cable_that_is_out_is_told_beside_what_the_daemon_says(lab):
    lab.node(1).unplug()
    try:
        lab.wait(lambda: "PF216" in codes(lab.node(1)), 20, what="the carrier")
    finally:
        lab.node(1).plug_in()
    lab.wait(lambda: codes(lab.node(1)) == set(), 40, what="a node that is well again")


def test_a_subnet_file_of_another_node_is_told(lab):
    node = lab.node(1)
    run(
        node,
        "sed s/FLANNEL_SUBNET=.*/FLANNEL_SUBNET=10.0.251.1\\\\/24/ "
        "/run/flannel/subnet.env >/run/other.env",
    )
    assert codes(node, "--subnet-file", "/run/other.env") == {"PF226"}


def test_firewalld_and_ufw_as_they_come_are_decided_for_both_versions(lab):
    """A rule set with the shape of firewalld's: what it drops is certain, nothing is a may."""
    node = lab.node(1)
    rules = """
table inet firewalld {
  chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept;
    icmpv6 type { nd-router-advert, nd-neighbor-solicit } accept
    meta nfproto ipv6 fib saddr . mark . iif oif missing drop
  }
  chain filter_INPUT { type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    ct state invalid drop
    meta l4proto { icmp, ipv6-icmp } accept
    udp dport 8472 accept
    tcp dport != 22 reject with icmpx admin-prohibited
  }
  chain filter_FORWARD { type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    ct state invalid drop
    ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
    fib daddr type { local, broadcast } drop
    ip saddr 10.0.0.0/16 ip daddr 10.0.0.0/16 accept
    ip6 saddr fd00:10::/48 accept
    reject with icmpx admin-prohibited
  }
}
"""
    node.exec(["nft", "-f", "-"], stdin=rules)
    try:
        assert codes(node) == set()
        assert lab.ping_all(count=1).ok
        run(node, "nft insert rule inet firewalld filter_FORWARD ip6 saddr fd00:10::/48 drop")
        assert codes(node) == {"PF204"}
    finally:
        run(node, "nft delete table inet firewalld")


def test_two_leases_with_one_address_are_told(lab):
    (other,) = [each for each in lab.etcd.leases() if '"192.0.2.2"' in each.value]
    key = "/coreos.com/network/subnets/10.0.250.0-24&fd00:10:0:fa::-64"
    lab.etcd.put(key, other.value)
    try:
        lab.wait(lambda: "PF225" in codes(lab.node(1)), 10, what="the second lease")
    finally:
        lab.etcd.delete(key)
    lab.wait(lambda: codes(lab.node(1)) == set(), 20, what="a node that is well again")


def test_rules_of_both_variants_of_iptables_are_told():
    with Lab(LabSpec(nodes=1, backend="host-gw", name="both", daemon_args=QUIET)) as lab:
        node = lab.node(1)
        rule = ["INPUT", "-p", "tcp", "-j", "ACCEPT"]
        made = node.exec(["iptables-legacy", "-A", *rule], check=False)
        if made.returncode != 0:
            pytest.skip(f"no legacy iptables here: {made.stderr}")
        assert codes(node) == {"PF235"}


def test_a_table_of_connections_that_fills_is_told():
    """A node's table is its own, the limit is everybody's: 222,000 of 262,144 by default."""
    with Lab(LabSpec(nodes=1, backend="host-gw", name="full", daemon_args=QUIET)) as lab:
        node = lab.node(1)
        # A rule that asks for the state of a connection is what makes the kernel keep it.
        run(node, "iptables -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT")
        assert codes(node) == set()
        node.exec([sys.executable, "-c", FILL])
        assert codes(node) == {"PF228"}


def test_containers_that_keep_the_former_mtu_are_told():
    need_devices("vxlan")
    with Lab(LabSpec(nodes=2, name="toolarge", backend="vxlan", daemon_args=QUIET)) as lab:
        assert codes(lab.node(1)) == set()
        run(lab.node(1), "ip link set eth0 mtu 1400")
        # The tunnel follows, and the bridge stays as docker made it.
        lab.wait(lambda: codes(lab.node(1)) == {"PF220"}, 20, what="the bridge's MTU")
