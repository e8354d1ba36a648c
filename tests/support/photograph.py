"""A whole node photographed, and what others have on it, beside ours and in its way.

Used by the tests that hold the daemon to `docs/ownership.md`: what may differ between two
photographs is what that page lists.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.machine import ROOT

NETWORK, NETWORK6 = "10.0.0.0/16", "fd00:10::/48"
OWN_START, OWN6_START = "10.0.10.0", "fd00:10:0:10::"
PEERS = {
    # A peer that is carried, and those that others' objects are in the way of.
    "10.0.52.0/24": ("fd00:10:0:52::/64", "192.0.2.52"),
    "10.0.50.0/24": ("fd00:10:0:50::/64", "192.0.2.50"),
    "10.0.51.0/24": ("fd00:10:0:51::/64", "192.0.2.51"),
    "192.0.2.0/24": ("", "192.0.2.9"),  # outside the network
}

LAYERS = """
mount -t bpf bpf /sys/fs/bpf
mkdir -p /run/layers
mount -t tmpfs layers /run/layers
mkdir /run/layers/state /run/layers/etc /run/layers/etc.work /run/layers/var /run/layers/var.work
mount --bind /var/lib/pyflannel /run/layers/state
mount -t overlay etc -o lowerdir=/etc,upperdir=/run/layers/etc,workdir=/run/layers/etc.work /etc
mount -t overlay var -o lowerdir=/var,upperdir=/run/layers/var,workdir=/run/layers/var.work /var
mkdir -p /var/lib/pyflannel
mount --bind /run/layers/state /var/lib/pyflannel
"""
"""A BPF file system of the node's own, and layers over /etc and /var that catch what is written
there by the node alone: those of this machine are written to by others as well."""

FOREIGN = """
# Links, some with names like ours.
ip link add lan0 type bridge
ip link set lan0 up
ip link add flannel9 type veth peer name lan1
ip link add flannel.9 type bridge
ip link add flannel-v6.9 type bridge
ip link add vxfor type vxlan id 77 dstport 4789 dev eth0
ip link set vxfor up
# Addresses: in a peer's subnet, beside the overlay, elsewhere.
ip address add 10.0.51.1/24 dev lan0
ip address add 10.0.200.9/32 dev lan0
ip address add 198.51.100.1/24 dev lan0
ip -6 address add fd00:10:0:51::1/64 dev lan0 nodad
# Routes: to a peer's subnet by a routing daemon; into the network by an operator; other tables.
ip route add 10.0.50.0/24 via 192.0.2.254 proto bird
ip -6 route add fd00:10:0:50::/64 via 2001:db8::fe dev eth0 proto bird
ip route add 10.0.77.0/25 via 192.0.2.254
ip route add 10.0.78.0/24 via 192.0.2.254 proto static
ip route add 10.0.79.0/24 via 192.0.2.254 metric 7
ip route add 10.0.52.0/24 via 192.0.2.254 proto bgp metric 20
ip route add blackhole 10.0.98.0/24
ip route add 10.0.52.0/24 via 192.0.2.254 table 100
ip route add 203.0.113.0/24 nexthop via 192.0.2.254 nexthop via 192.0.2.253
ip -6 route add fd00:10:0:77::/80 via 2001:db8::fe dev eth0
ip -6 route add blackhole fd00:10:0:98::/64
ip nexthop add id 77 via 192.0.2.254 dev eth0
ip route add 10.0.76.0/24 nhid 77
ip route add 203.0.113.128/25 via 192.0.2.254 table local
ip rule add from 10.0.52.0/24 lookup 100 priority 500
ip -6 rule add from fd00:10::/48 lookup 100 priority 500
# Neighbours and FDB entries.
ip neigh add 10.0.51.7 lladdr 02:00:00:00:00:07 dev lan0 nud permanent
ip neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev eth0 nud permanent
ip -6 neigh add fd00:10:0:51::7 lladdr 02:00:00:00:00:07 dev lan0 nud permanent
ip neigh add proxy 192.0.2.66 dev eth0
ip -6 neigh add proxy 2001:db8::66 dev eth0
bridge fdb add 02:00:00:00:00:52 dev vxfor dst 192.0.2.52 self permanent
# Rules, some in the place of ours.
iptables -t nat -A POSTROUTING -s 198.51.100.0/24 -j ACCEPT
iptables -A FORWARD -s 198.51.100.0/24 -j ACCEPT
iptables -A FORWARD -s 10.0.0.0/16 -j ACCEPT
iptables -N FLANNEL-MINE
iptables -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-MINE
iptables -N FLANNEL-FWD
iptables -A FLANNEL-FWD -s 10.9.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT
iptables -A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
iptables -t nat -N FLANNEL-POSTRTG
iptables -t nat -A FLANNEL-POSTRTG -s 10.9.0.0/16 -j RETURN
iptables -t nat -A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
iptables -t mangle -A POSTROUTING -s 10.0.0.0/16 -j MARK --set-mark 0x4000
iptables -t raw -A PREROUTING -s 10.0.0.0/16 -j ACCEPT
ip6tables -t raw -A PREROUTING -s 2001:db8:1::/64 -j ACCEPT
iptables-legacy -A FORWARD -s 198.51.100.0/24 -j ACCEPT
ip6tables-legacy -A FORWARD -s 2001:db8:1::/64 -j ACCEPT
ip6tables -t nat -A POSTROUTING -s 2001:db8:1::/64 -j ACCEPT
ip6tables -A FORWARD -s 2001:db8:1::/64 -j ACCEPT
nft add table ip theirs
nft add chain ip theirs forward { type filter hook forward priority 10 \\; policy accept \\; }
nft add rule ip theirs forward ip saddr 10.0.0.0/16 accept
nft add table ip flannel-ipv4
nft add chain ip flannel-ipv4 forward { type filter hook forward priority filter \\; }
nft add rule ip flannel-ipv4 forward ip saddr 10.9.0.0/16 accept
nft add set ip flannel-ipv4 quarantine { type ipv4_addr \\; }
nft add chain ip flannel-ipv4 doorman { type filter hook input priority 0 \\; }
nft add rule ip flannel-ipv4 doorman ip saddr @quarantine drop
nft add table ip flannel-other
nft add table inet theirs
nft add set inet theirs nodes { type ipv4_addr \\; }
nft add element inet theirs nodes { 192.0.2.52 }
nft add table bridge theirs
nft add table netdev theirs
nft add table ip6 flannel-ipv6
nft add chain ip6 flannel-ipv6 forward { type filter hook forward priority filter \\; }
nft add rule ip6 flannel-ipv6 forward ip6 saddr fd00:9::/48 accept
# Queueing disciplines and filters.
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress bpf da bytecode '1,6 0 0 4294967295'
tc qdisc add dev lan0 root pfifo limit 77
# Programs, and what is pinned.
{python} -m tests.support.programs plant
mkdir /sys/fs/bpf/pyflannel /sys/fs/bpf/pyflannel/1
# IPsec.
ip xfrm policy add src 198.51.100.0/24 dst 203.0.113.0/24 dir out priority 9
# Files beside ours.
mkdir -p /run/flannel /var/lib/pyflannel
touch /run/flannel/other.env /run/flannel/subnet.env.bak /run/docker_opts /var/lib/pyflannel/notes
mkdir -p /etc/flannel /var/lib/flannel /run/systemd/system/docker.service.d
touch /etc/default/pyflannel /etc/flannel/net-conf.json /var/lib/flannel/notes
touch /run/systemd/system/docker.service.d/theirs.conf
ln -s /run/flannel/other.env /run/flannel/link.env
# Settings of others.
sysctl -qw net.ipv4.conf.eth0.rp_filter=2 net.ipv4.ip_forward=1 net.ipv6.conf.lan0.accept_ra=2
"""

ON_OURS = """
ip address add 172.31.0.1/32 dev {device}
ip -6 address add 2001:db8:31::1/128 dev {device} nodad
ip route add 172.31.7.0/24 dev {device}
ip route add 172.31.8.0/24 dev {device} proto static metric 3
ip -6 route add 2001:db8:317::/48 dev {device}
ip neigh add 172.31.7.7 lladdr 02:00:00:00:31:07 dev {device} nud permanent
bridge fdb add 02:00:00:00:31:07 dev {device} dst 192.0.2.77 self permanent
"""
"""What others may have on a device of ours, outside of the network; what the device can have."""
LEFT_OVER = "10.0.99.0/24"
"""A route to it through a device of ours is one to a peer that left while no daemon ran."""
DEVICES = ("flannel.1", "flannel-v6.1", "flannel0", "flannel.ipip")

PHOTOGRAPH = {
    "links": "ip -o -d link show",
    "addresses": "ip -o address show",
    "routes": "ip route show table all",
    "routes6": "ip -6 route show table all",
    "next hops": "ip nexthop show",
    "rules": "ip rule; ip -6 rule",
    "neighbours": "ip neigh show nud permanent; ip -6 neigh show nud permanent;"
    " ip neigh show proxy; ip -6 neigh show proxy",
    "fdb": "bridge fdb show",
    "nft": "nft -s list ruleset",
    "iptables": "iptables-save",
    "ip6tables": "ip6tables-save",
    "iptables-legacy": "iptables-legacy-save; ip6tables-legacy-save",
    "qdiscs": "tc qdisc show",
    "filters": "for d in $(ip -br link | sed 's/[@ ].*//'); do tc filter show dev $d ingress;"
    " tc filter show dev $d egress; done 2>/dev/null",
    "programs": f"{sys.executable} -m tests.support.programs show",
    "pins": "find /sys/fs/bpf -mindepth 1",
    "ipsec": "ip xfrm policy; ip xfrm state",
    "sysctls": "grep -r . /proc/sys/net 2>/dev/null; grep -H . /proc/sys/fs/file-max"
    " /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/bpf_stats_enabled"
    " /proc/sys/kernel/unprivileged_bpf_disabled /proc/sys/vm/overcommit_memory",
    "files": "find /run /var/lib/pyflannel /run/layers/etc /run/layers/var -xdev -not -path"
    " '/run/layers/*.work*' -printf '%y %m %p %l\\n';"
    " find /run /var/lib/pyflannel /run/layers/etc /run/layers/var -xdev -type f"
    " -exec sha256sum {} +",
}

VOLATILE = re.compile(
    r"/(dev-conf|random|nf_conntrack_count|gc_stale_time|file-nr)\b"
    r"|net/netfilter/nf_conntrack_count"
    r"|net/(ipv4|ipv6)/(tcp_fastopen_key|route/|neigh/.*/(retrans_time|base_reachable))"
    r"|/run/(utmp|xtables\.lock|lock)"
)


def photograph(node: Node) -> dict[str, set[str]]:
    found = {}
    for name, command in PHOTOGRAPH.items():
        lines = node.exec(["sh", "-c", f"cd {ROOT}; {command}\ntrue"]).stdout.splitlines()
        found[name] = {_tidy(name, line) for line in lines if not VOLATILE.search(line)} - {""}
    return found


def _tidy(name: str, line: str) -> str:
    line = line.rstrip()
    if name.startswith(("iptables", "ip6tables")):
        return "" if line.startswith("#") else re.sub(r" \[\d+:\d+\]$", "", line)
    # Counters, ages, and what says how a link is doing.
    line = re.sub(r"(valid_lft|expires) \S+( preferred_lft \S+)?", "", line)
    line = re.sub(r" (state|mode|linkdown|dead|qlen) ?\S*", "", line) if name == "links" else line
    line = re.sub(r"\b(numtxqueues|gso|gro|tso|hello_timer|\w*_timer)\w* .*", "", line)
    return re.sub(r" (linkdown|dead)\b", "", line).strip()


@dataclass(frozen=True, kw_only=True)
class Case:
    """A backend, and what of `docs/ownership.md` it may add."""

    backend: str
    added: str
    """A pattern that every line which is new must contain."""
    nftables: bool = False
    ipv6: bool = False
    datapath: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    """Further options of the daemon."""

    def __str__(self) -> str:
        words = [self.backend, self.datapath, "direct" if "DirectRouting" in self.settings else ""]
        words += ["dual" if self.ipv6 else "", "nftables" if self.nftables else "iptables"]
        return " ".join(filter(None, words))


RULES = (
    r"FLANNEL-(FWD|POSTRTG|GUARD)|10\.0\.0\.0/16|fd00:10::/48|10\.0\.10\.0/24|mark|flannel-ipv[46]"
)
RULES += r"|chain (postrtg|forward|guard)|type (nat|filter) hook|comment \"(chain|rules)|^\}$|^:"
FILES = r"/run/flannel/(subnet\.env|subnet\.env\.lock|pyflannel\.sock)\s*$"
FILES += r"|/run/docker_opts\.env(\.lock)?\s*$"
FILES += r"|/var/lib/pyflannel/(lease|vtep-mac)\.json$"
VXLAN = r"flannel(\.|-v6\.|/)1\b|vxlan id 1 "
PROGRAMS = r"(in|e)gress \d+ (overlay_out|underlay_in|pair_in|gro_in|strip_out)$"
TUN = "flannel0|tun type"
EBPF = rf"{TUN}|flannelgro|{PROGRAMS}|/sys/fs/bpf/pyflannel/\d+(/|$)"
WAYS = (
    Case(backend="udp", added=TUN, datapath="python"),
    Case(backend="udp", added=TUN, datapath="native"),
    Case(backend="udp", added=EBPF, datapath="ebpf"),
    Case(backend="vxlan", added=VXLAN),
    Case(
        backend="vxlan",
        added=rf"{VXLAN}|via (192\.0\.2\.|2001:db8::)52",
        settings={"DirectRouting": True},
    ),
    Case(backend="host-gw", added=r"via (192\.0\.2\.|2001:db8::)52"),
    Case(backend="ipip", added=r"flannel\.ipip"),
    Case(backend="alloc", added="^$"),
    Case(
        backend="extension",
        added="^$",
        settings={"SubnetAddCommand": "true", "SubnetRemoveCommand": "true"},
        args=("--allow-extension",),
    ),
)
"""Every backend and data path, without traffic manager and families."""
IPV4_ALONE = frozenset({"udp", "ipip"})
SILENT = frozenset({"alloc", "extension"})
"""Backends that have no objects for peers."""


def config(case: Case) -> dict[str, object]:
    made: dict[str, object] = {
        "Network": NETWORK,
        "SubnetLen": 24,
        "SubnetMin": OWN_START,
        "SubnetMax": OWN_START,
        "EnableNFTables": case.nftables,
        "Backend": {"Type": case.backend, **case.settings},
    }
    if case.ipv6:
        made |= {
            "EnableIPv6": True,
            "IPv6Network": NETWORK6,
            "IPv6SubnetMin": OWN6_START,
            "IPv6SubnetMax": OWN6_START,
        }
    return made


def put_peers(lab: Lab, case: Case) -> None:
    for number, (subnet, (subnet6, address)) in enumerate(PEERS.items()):
        key = subnet.replace("/", "-")
        value: dict[str, object] = {"PublicIP": address, "PublicIPv6": None}
        data = {"VNI": 1, "VtepMAC": f"0a:00:00:00:00:{number:02x}"}
        if case.backend != "udp":
            value["BackendType"] = case.backend
        if case.backend == "vxlan":
            value["BackendData"] = data
        if case.ipv6 and subnet6:
            key += f"&{subnet6.replace('/', '-')}"
            value["PublicIPv6"] = address.replace("192.0.2.", "2001:db8::")
            if case.backend == "vxlan":
                value["BackendV6Data"] = data
        lab.etcd.put(f"/coreos.com/network/subnets/{key}", json.dumps(value))


def is_settled(node: Node, case: Case) -> bool:
    done = node.exec(["pyflannel", "status", "--json"], check=False)
    if done.returncode not in (0, 1):  # 1: it works, with problems (the peers left out)
        return False
    status = json.loads(done.stdout)
    network = status["network"] or {}
    hole = "blackhole 10.0.10.0/24" in node.exec(["ip", "route"]).stdout
    peers = status["store"]["peers"] == len(PEERS) - 1
    if case.backend not in SILENT:
        peers = peers and network.get("peers") == len(PEERS) - 1
    return bool(status["ready"]) and hole and peers and not network.get("failing")


def strangers(before, now, pattern: str) -> dict[str, list[str]]:
    """Lines that are new and not ours."""
    ours = re.compile(f"{pattern}|{RULES}|{FILES}|blackhole 10.0.10.0/24|blackhole fd00:10:0:10::")
    new = {name: sorted(now[name] - before[name]) for name in now}
    return {
        name: left
        for name, lines in new.items()
        if (left := [line for line in lines if not ours.search(line)])
    }


def missing(before, now) -> dict[str, list[str]]:
    gone = {name: sorted(before[name] - now[name]) for name in before}
    return {name: lines for name, lines in gone.items() if lines}


def plant_on_ours(node: Node) -> None:
    """Others' objects on our devices."""
    for device in DEVICES:
        node.exec(["sh", "-s"], stdin=ON_OURS.format(device=device), check=False)


def restart_among_others(lab: Lab, node: Node, case: Case) -> None:
    """What others have on our devices is there after a restart, and after a look at everything."""
    kept = ("addresses", "routes", "routes6", "neighbours", "fdb")
    node.stop_daemon()
    plant_on_ours(node)
    device = next(name for name in DEVICES if name in node.exec(["ip", "-br", "link"]).stdout)
    # What goes in the end, so that it is known when everything was looked at.
    node.exec(["ip", "route", "add", LEFT_OVER, "dev", device])
    planted = photograph(node)
    _none({"nothing is planted": [name for name in kept[:2] if not _planted(planted[name])]})
    node.start_daemon()
    lab.wait(lambda: is_settled(node, case), 20, what="everything in place again")
    lab.wait(
        lambda: LEFT_OVER not in node.exec(["ip", "route"]).stdout, 20, what="the end of leftovers"
    )
    now = photograph(node)
    _none(
        {f"restarted, gone: {name}": sorted(_planted(planted[name] - now[name])) for name in kept}
    )


def _planted(lines: set[str]) -> set[str]:
    return {line for line in lines if re.search(r"172\.31\.|2001:db8:31|:31:07", line)}


def life_changes_nothing(case: Case, *, restart: bool = False) -> None:
    """Photographs a node before a start, while the daemon runs, after its stop and a clean-up.

    Args:
        case: what the daemon is given.
        restart: with a restart in between, among objects on our own devices, where these stay.
    """
    spec = LabSpec(
        nodes=1,
        config=config(case),
        name=f"whole-{str(case).replace(' ', '-')}",
        datapath=case.datapath,
        start_daemons=False,
        daemon_args=(
            *("--ip-masq", "--ip-blackhole-route", "--iptables-resync=1"),
            *case.args,
        ),
    )
    with Lab(spec) as lab:
        (node,) = lab.nodes
        node.exec(["sh", "-e", "-s"], stdin=LAYERS)
        for line in filter(None, (x.partition("#")[0].strip() for x in FOREIGN.splitlines())):
            node.exec(["sh", "-c", f"cd {ROOT}; {line.replace('{python}', sys.executable)}"])
        put_peers(lab, case)
        lab.wait(
            lambda: "tentative" not in node.exec(["ip", "address"]).stdout, 10, what="addresses"
        )
        before = photograph(node)
        _none({"sees nothing": [name for name, lines in before.items() if not lines]})
        node.start_daemon()
        lab.wait(lambda: is_settled(node, case), 20, what="everything in place")
        if restart and case.datapath not in ("python", "native"):
            restart_among_others(lab, node, case)
        for moment in ("running", "stopped"):
            if moment == "stopped":
                node.stop_daemon()
            now = photograph(node)
            _none(
                {f"{moment}, gone: {name}": lines for name, lines in missing(before, now).items()}
            )
            new = strangers(before, now, case.added)
            _none({f"{moment}, not ours: {name}": lines for name, lines in new.items()})
        done = json.loads(node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        _none({"cleanup": list(done["failed"])})
        clean = photograph(node)
        _none({f"cleaned, gone: {name}": lines for name, lines in missing(before, clean).items()})
        _none({f"cleaned, left: {name}": lines for name, lines in missing(clean, before).items()})


def _none(found: dict[str, list[str]]) -> None:
    """Fails with what was found, in full."""
    said = "\n".join(f"{name}\n  " + "\n  ".join(lines) for name, lines in found.items() if lines)
    assert not said, said
