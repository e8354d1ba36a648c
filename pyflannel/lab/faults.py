"""What can be done to a node behind its daemon's back, by name, and how to see that it is healed.

A fault is something that an operator, a network manager or a crash does, complete in itself:
nothing has to be undone by the tester. What belongs to the machine and not to the overlay (the
underlay's address, its default route) the fault itself puts back, as what manages the machine
would; the rest is the daemon's to restore.

`inject` does several faults to one node in one shell, so that they hit the daemon together;
`state` reads all that the overlay keeps on a node, in a form that is equal again once
everything has been healed. Interface indexes, counters and what the kernel adds by itself are left
out; whatever is not ours is left in, for a repair must not take it along.

Variables that a fault's shell lines may use (of the node itself, and of one peer):

| variable | what it is |
|---|---|
| `DEV`, `DEV6` | the overlay's device of each family; the underlay's where there is none |
| `NET`, `OWN`, `OWN_IP` | overlay network; our subnet; our underlay address with prefix length |
| `ROUTE`, `ROUTE6` | destination of a route that the overlay keeps |
| `VTEP`, `VTEP6`, `MAC`, `MAC6`, `PEER_IP` | a peer's VTEP addresses and MACs, underlay address |
| `NOBODY`, `NOBODY6` | underlay addresses that no host has |
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_interface
from typing import Any, Final

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import UsageError
from pyflannel.core.ip import Family
from pyflannel.core.kind import Kind, every
from pyflannel.lab import topology
from pyflannel.lab.nodes import Node
from pyflannel.lab.spaces import Space, ip_batch
from pyflannel.records import dataclass

NOBODY: Final = str(topology.underlay_address(250).ip)
"""Above the numbers of nodes (`topology.MAX_NODES`), below the switch's."""
NOBODY_V6: Final = str(topology.underlay_address_v6(250).ip)
STRANGE_MAC: Final = "02:00:00:00:ee:ee"

_VXLAN: Final = ("vxlan",)

RESTORE_UNDERLAY: Final = """
ip address replace $OWN_IP dev eth0
ip address replace $OWN_IP6 dev eth0 nodad
ip route replace default via $GATEWAY dev eth0
ip route replace ::/0 via $GATEWAY6 dev eth0
"""
"""What the manager of the machine's interface does when it comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is done to a node."""

    name: str
    script: str
    """Shell lines; see the module for the variables."""
    backends: Sequence[str] = ()
    """Of what they alone keep; empty if any backend may."""
    device: bool = False
    """Only where the overlay has a device."""
    peer_routes: bool = False
    """Only where each peer has a route."""
    repair: str = ""
    """Under which name the daemon's status counts the repair: one of `repaired` of its network, or
    `rules`, or `files`; empty where there may be nothing to repair."""
    dual_stack: bool = False
    """Only where the overlay has IPv6 as well."""
    manager: str = ""
    """Only where this traffic manager keeps the rules, `iptables` or `nftables`."""
    upheaval: bool = False
    """It takes other objects along (those of a whole device), so that faults after it in the same
    batch would find nothing to break: at most one of these in a batch, and last."""
    crash: bool = False
    """The daemon is killed in the middle of repairing it, and started again."""

    def fits(self, kind: Kind, *, dual_stack: bool, manager: str) -> bool:
        """Whether this fault can happen on such a node."""
        return (
            (not self.backends or kind.name in self.backends)
            and (bool(kind.devices) or not self.device)
            and (kind.route_per_peer or not self.peer_routes)
            and (dual_stack or not self.dual_stack)
            and self.manager in ("", manager)
        )


def _at_once(*commands: str) -> str:
    """Commands of ip(8) in one process: between two of them the daemon has no time to act."""
    return "ip -batch - <<END\n" + "".join(f"{command}\n" for command in commands) + "END"


def _instead_of_the_device(kind: str) -> str:
    """Puts another device in the place of the overlay's.

    Deleting one takes the kernel some milliseconds, in which the daemon may be quicker.
    """
    swap = _at_once("link del dev $DEV", f"link add dev $DEV {kind}")
    # As a condition: where a plain command fails, "set -e" would end it all at the first try.
    return f"for _ in 1 2 3 4 5 6 7 8 9 10; do\nif {swap}\nthen exit; fi\ndone\nfalse"


def _faults() -> Iterable[Fault]:
    yield from (
        # Routes.
        Fault(name="route deleted", repair="route", script="ip route del $ROUTE"),
        Fault(
            name="route made a blackhole",
            repair="route",
            script="ip route replace blackhole $ROUTE",
        ),
        Fault(
            name="route to another device",
            repair="route",
            script="ip route replace $ROUTE dev eth0",
        ),
        Fault(
            name="route to another gateway",
            repair="route",
            script="ip route replace $ROUTE via $NOBODY dev eth0",
        ),
        Fault(
            name="second route beside ours",
            repair="route",
            script="ip route append $ROUTE via $NOBODY dev eth0",
            peer_routes=True,
        ),
        Fault(
            name="wrong route before ours",
            repair="route",
            script="ip route prepend $ROUTE via $NOBODY dev eth0",
            peer_routes=True,
        ),
        Fault(
            name="route given an MTU",
            repair="route",
            script="ip route change $ROUTE $(ip route show $ROUTE | cut -d' ' -f2-) mtu lock 400",
            peer_routes=True,
        ),
        Fault(
            name="all routes deleted", repair="route", script="ip route flush root $NET proto boot"
        ),
        Fault(
            name="stale route left behind",
            repair="route",
            script="ip route add $STALE via ${STALE%/*} dev $DEV onlink",
            backends=_VXLAN,
        ),
        Fault(
            name="IPv6 route deleted",
            repair="route",
            script="ip -6 route del $ROUTE6",
            dual_stack=True,
        ),
        Fault(
            name="IPv6 route to another gateway",
            repair="route",
            script="ip -6 route del $ROUTE6\nip -6 route add $ROUTE6 via $NOBODY6 dev eth0",
            dual_stack=True,
        ),
        Fault(
            name="IPv6 route with a better metric",
            repair="route",
            script="ip -6 route add $ROUTE6 via $NOBODY6 dev eth0 metric 10",
            dual_stack=True,
        ),
        # Neighbours.
        Fault(
            name="neighbour deleted",
            repair="neighbour",
            script="ip neigh del $VTEP dev $DEV",
            backends=_VXLAN,
        ),
        Fault(
            name="neighbour with another MAC",
            repair="neighbour",
            script=f"ip neigh replace $VTEP lladdr {STRANGE_MAC} dev $DEV nud permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="neighbour no longer permanent",
            repair="neighbour",
            script="ip neigh replace $VTEP lladdr $MAC dev $DEV nud stale",
            backends=_VXLAN,
        ),
        Fault(
            name="all neighbours deleted",
            repair="neighbour",
            script="ip neigh flush dev $DEV nud permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="stale neighbour left behind",
            repair="neighbour",
            script=f"ip neigh add ${{STALE%/*}} lladdr {STRANGE_MAC} dev $DEV nud permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="IPv6 neighbour deleted",
            repair="neighbour",
            script="ip -6 neigh del $VTEP6 dev $DEV6",
            backends=_VXLAN,
            dual_stack=True,
        ),
        # FDB.
        Fault(
            name="FDB entry deleted",
            repair="fdb",
            script="bridge fdb del $MAC dev $DEV dst $PEER_IP self",
            backends=_VXLAN,
        ),
        Fault(
            name="FDB entry to another node",
            repair="fdb",
            script="bridge fdb replace $MAC dev $DEV dst $NOBODY self permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="FDB entry with another port",
            repair="fdb",
            script="bridge fdb replace $MAC dev $DEV dst $PEER_IP port 9999 self permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="stale FDB entry left behind",
            repair="fdb",
            script=f"bridge fdb append {STRANGE_MAC} dev $DEV dst $NOBODY self permanent",
            backends=_VXLAN,
        ),
        Fault(
            name="IPv6 FDB entry deleted",
            repair="fdb",
            script="bridge fdb del $MAC6 dev $DEV6 dst $PEER_IP6 self",
            backends=_VXLAN,
            dual_stack=True,
        ),
        # The device.
        Fault(
            name="second address in the overlay",
            repair="address",
            script="ip address add ${STALE%/*}/32 dev $DEV",
            device=True,
        ),
        Fault(
            name="MTU changed",
            repair="mtu",
            script="ip link set dev $DEV mtu 1300",
            device=True,
        ),
        Fault(
            name="queue length changed",
            repair="link",
            script="ip link set dev $DEV txqueuelen 77",
            device=True,
        ),
        Fault(
            name="address removed",
            repair="address",
            script="ip -4 address flush dev $DEV",
            device=True,
            upheaval=True,
        ),
        Fault(
            name="address exchanged",
            repair="address",
            script=_at_once(
                "address flush dev $DEV scope global", "address add ${STALE%/*}/32 dev $DEV"
            ),
            device=True,
            upheaval=True,
        ),
        Fault(
            name="device down",
            repair="link",
            script="ip link set dev $DEV down",
            device=True,
            upheaval=True,
        ),
        Fault(
            name="device renamed",
            repair="device",
            # Before Linux 6.2 a device that is up cannot be renamed.
            script=_at_once("link set dev $DEV down", "link set dev $DEV name other0"),
            backends=_VXLAN,
            upheaval=True,
        ),
        Fault(
            name="device down and up",
            repair="route",
            script="ip link set dev $DEV down\nip link set dev $DEV up",
            device=True,
            upheaval=True,
        ),
        Fault(
            name="device deleted",
            repair="device",
            script="ip link del dev $DEV",
            device=True,
            upheaval=True,
        ),
        Fault(
            name="MAC changed",
            repair="mac",
            script=f"ip link set dev $DEV address {STRANGE_MAC}",
            backends=_VXLAN,
            upheaval=True,
        ),
        Fault(
            name="device replaced by another kind",
            repair="device",
            script=_instead_of_the_device("type bridge"),
            backends=_VXLAN,
            upheaval=True,
        ),
        Fault(
            name="device replaced by one with another VNI",
            repair="device",
            script=_instead_of_the_device("type vxlan id 77 dev eth0 dstport 8472 nolearning"),
            backends=_VXLAN,
            upheaval=True,
        ),
        Fault(
            name="IPv6 address removed",
            repair="address",
            script="ip -6 address flush dev $DEV6",
            backends=_VXLAN,
            dual_stack=True,
            upheaval=True,
        ),
        Fault(
            name="IPv6 device down and up",
            repair="route",
            script="ip link set dev $DEV6 down\nip link set dev $DEV6 up",
            backends=_VXLAN,
            dual_stack=True,
            upheaval=True,
        ),
        Fault(
            name="IPv6 device deleted",
            repair="device",
            script="ip link del dev $DEV6",
            backends=_VXLAN,
            dual_stack=True,
            upheaval=True,
        ),
        # The underlay.
        Fault(
            name="underlay address away and back",
            script=f"ip address del $OWN_IP dev eth0\n{RESTORE_UNDERLAY}",
            upheaval=True,
        ),
        Fault(
            name="underlay address away for a while",
            script=f"ip address del $OWN_IP dev eth0\nsleep 0.4\n{RESTORE_UNDERLAY}",
            upheaval=True,
        ),
        Fault(
            name="underlay down and up",
            script=f"ip link set dev eth0 down\nip link set dev eth0 up\n{RESTORE_UNDERLAY}",
            upheaval=True,
        ),
        Fault(
            name="underlay down for a while",
            script="ip link set dev eth0 down\nsleep 0.4\nip link set dev eth0 up\n"
            f"{RESTORE_UNDERLAY}",
            upheaval=True,
        ),
        Fault(
            name="underlay MTU changed and back",
            script="ip link set dev eth0 mtu 1400\nsleep 0.3\nip link set dev eth0 mtu 1500",
            upheaval=True,
        ),
        # Rules.
        Fault(
            name="iptables rules flushed",
            repair="rules",
            manager="iptables",
            script="iptables -F FLANNEL-FWD",
        ),
        Fault(
            name="iptables masquerade flushed",
            repair="rules",
            manager="iptables",
            script="iptables -t nat -F FLANNEL-POSTRTG",
        ),
        Fault(
            name="jump into our chain deleted",
            repair="rules",
            manager="iptables",
            script="iptables -D FORWARD -m comment --comment 'flanneld forward' -j FLANNEL-FWD",
        ),
        Fault(
            name="iptables filter table flushed",
            repair="rules",
            manager="iptables",
            script="iptables -F",
        ),
        Fault(name="nft ruleset flushed", repair="rules", script="nft flush ruleset"),
        Fault(
            name="nft chain deleted",
            repair="rules",
            manager="nftables",
            script="nft delete table ip flannel-ipv4",
        ),
        # Files.
        Fault(name="subnet.env deleted", repair="files", script="rm /run/flannel/subnet.env"),
        Fault(name="docker_opts.env deleted", repair="files", script="rm /run/docker_opts.env"),
        Fault(
            name="/run/flannel deleted", repair="files", script="rm -r /run/flannel", upheaval=True
        ),
        # The daemon.
        Fault(
            name="kill -9 in the middle of programming",
            script="ip route flush root $NET proto boot",
            upheaval=True,
            crash=True,
        ),
    )


FAULTS: Final[Mapping[str, Fault]] = {fault.name: fault for fault in _faults()}
"""All faults by name."""


def faults_for(backend: str, *, dual_stack: bool = False, manager: str = "iptables") -> list[Fault]:
    """The faults that can happen on a node with this backend.

    Raises:
        UsageError: there is no such backend, or its packets are none of our business.
    """
    kind = KINDS.get(backend)
    if kind is None or not kind.moves_packets:
        known = ", ".join(each.name for each in every(KINDS) if each.moves_packets)
        raise UsageError(f"no faults known for backend {backend!r}, only for {known}")
    return [
        fault
        for fault in FAULTS.values()
        if fault.fits(kind, dual_stack=dual_stack, manager=manager)
    ]


def batches(faults: Sequence[Fault], size: int, rng: random.Random) -> list[list[Fault]]:
    """Deals faults at random into batches of at most `size`.

    No two of a batch are about the same kind of thing, so that none hides another one; at most one
    is an upheaval, and that comes last.
    """
    waiting = rng.sample(faults, len(faults))
    dealt: list[list[Fault]] = []
    while waiting:
        batch: list[Fault] = []
        rest: list[Fault] = []
        for fault in waiting:
            alike = any(other.repair == fault.repair for other in batch)
            upset = fault.upheaval and any(other.upheaval for other in batch)
            (rest if len(batch) == size or alike or upset else batch).append(fault)
        waiting = rest
        dealt.append(sorted(batch, key=lambda fault: fault.upheaval))
    return dealt


def inject(
    node: Node, targets: Mapping[str, str], faults: Sequence[Fault], *, delay_s: float = 0.0
) -> list[str]:
    """Does faults to a node, all in one shell; returns the names of those that had an effect.

    A fault that finds nothing to break (what it is about has gone with another one) has none.

    Args:
        node: whose kernel state is broken.
        targets: what `aim` gave for it while all was well.
        faults: in this order.
        delay_s: for a crash: seconds between the damage and the end of the daemon.
    """
    lines = [f"{name}={shlex.quote(value)}" for name, value in targets.items()]
    for number, fault in enumerate(faults):
        # Not `( … ) && echo`: in there "set -e" would not count.
        lines.append(f"( set -e\n{fault.script}\n)\n[ $? = 0 ] && echo done {number}")
    crash = any(fault.crash for fault in faults)
    lines.append(f"sleep {delay_s:.3f}" if crash else "true")
    said = node.exec(["sh", "-s"], stdin="\n".join([*lines, "true\n"])).stdout
    if crash:
        node.kill()
        node.start_daemon()
    numbers = {int(line.split()[1]) for line in said.splitlines() if line.startswith("done ")}
    return [fault.name for number, fault in enumerate(faults) if number in numbers]


def replace_underlay(node: Node, switch: Space, *, mtu: int = 1500) -> None:
    """Takes the external interface away and puts another of the same name in its place.

    Args:
        node: whose interface.
        switch: the namespace at the other end of its cable.
        mtu: of the new cable.
    """
    node.exec(["ip", "link", "del", "dev", "eth0"])
    ip_batch(switch, topology.cable(node.number, node.space.holder.pid, mtu))
    ip_batch(node.space, topology.node_setup(node.number))


def move_underlay(node: Node, host: int) -> str:
    """Gives the external interface the address with another host number; returns the address."""
    old, new = topology.underlay_address(node.number), topology.underlay_address(host)
    gateway = topology.underlay_address(topology.SWITCH_HOST).ip
    script = (
        f"ip address del {old} dev eth0\nip address add {new} dev eth0\n"
        f"ip route replace default via {gateway} dev eth0\n"
    )
    node.exec(["sh", "-e", "-s"], stdin=script)
    return str(new.ip)


def aim(node: Node, peer: Node) -> dict[str, str]:
    """What the scripts' variables are for a node and one of its peers, both of them whole."""
    config = node.network_config
    kind = KINDS.get(config.backend_type)
    assert kind is not None  # noqa: S101 - the config was parsed with these
    devices = kind.device_names(config)
    device, device6 = (devices.get(family, "") for family in (Family.V4, Family.V6))
    own, theirs = node.subnet_env(), peer.subnet_env()
    subnet = _network(theirs["FLANNEL_SUBNET"])
    found = {
        "DEV": device or "eth0",
        "NET": own["FLANNEL_NETWORK"],
        "OWN": _network(own["FLANNEL_SUBNET"]),
        "OWN_IP": str(topology.underlay_address(node.number)),
        "OWN_IP6": str(topology.underlay_address_v6(node.number)),
        "GATEWAY": str(topology.underlay_address(topology.SWITCH_HOST).ip),
        "GATEWAY6": str(topology.underlay_address_v6(topology.SWITCH_HOST).ip),
        "ROUTE": subnet if kind.route_per_peer else own["FLANNEL_NETWORK"],
        "VTEP": subnet.partition("/")[0],
        "PEER_IP": str(topology.underlay_address(peer.number).ip),
        "PEER_IP6": str(topology.underlay_address_v6(peer.number).ip),
        "NOBODY": NOBODY,
        "NOBODY6": NOBODY_V6,
        "STALE": _unleased(own["FLANNEL_NETWORK"]),
    }
    links = _macs(peer)
    found["MAC"] = links.get(device, "")
    if "FLANNEL_IPV6_SUBNET" in theirs:
        subnet6 = _network(theirs["FLANNEL_IPV6_SUBNET"])
        found |= {
            "DEV6": device6 or "eth0",
            "ROUTE6": subnet6,
            "VTEP6": subnet6.partition("/")[0],
            "MAC6": links.get(device6, ""),
        }
    return found


def _macs(node: Node) -> dict[str, str]:
    links = json.loads(node.exec(["ip", "-j", "link"]).stdout)
    return {link["ifname"]: link.get("address", "") for link in links}


def _network(interface: str) -> str:
    return str(ip_interface(interface).network)


def _unleased(network: str) -> str:
    """A /24 at the end of the network: the last one is the least likely to be leased."""
    last = ip_interface(network).network.broadcast_address
    return f"{last - 255}/24"


STATE_COMMANDS: Final = (
    ("links", "ip -j -d link show"),
    ("addresses", "ip -j address show"),
    ("routes", "ip -j route show table main"),
    ("routes6", "ip -j -6 route show table main"),
    ("neighbours", "ip -j neigh show nud permanent"),
    ("neighbours6", "ip -j -6 neigh show nud permanent"),
    ("fdb", "bridge -j fdb show"),
    ("iptables", "iptables-save 2>/dev/null"),
    ("ip6tables", "ip6tables-save 2>/dev/null"),
    ("nft4", "nft list table ip flannel-ipv4 2>/dev/null"),
    ("nft6", "nft list table ip6 flannel-ipv6 2>/dev/null"),
    ("files", "cat /run/flannel/subnet.env /run/docker_opts.env 2>/dev/null"),
)
"""What `state` reads, by name. Ours and the machine's, so that a repair that hurts the latter
shows as well."""

NETWORK: Final = ("links", "addresses", "routes", "routes6", "neighbours", "neighbours6", "fdb")
"""The part that packets between nodes depend on."""
RULES: Final = ("iptables", "ip6tables", "nft4", "nft6", "files")
"""The rest: what stands at the border of the overlay, and what others read."""

State = Mapping[str, object]
"""By the names of `STATE_COMMANDS`; two are equal if nothing that counts differs."""

_MARK: Final = "=====next====="


def state(node: Node) -> State:
    """All that the overlay keeps on a node, read at once."""
    script = f"\necho; echo {_MARK}\n".join(command for _, command in STATE_COMMANDS)
    said = node.exec(["sh", "-s"], stdin=f"{script}\ntrue\n").stdout.split(_MARK)
    texts = {name: text.strip() for (name, _), text in zip(STATE_COMMANDS, said, strict=True)}
    found: dict[str, object] = {name: _tidy(name, text) for name, text in texts.items()}
    return found


def difference(before: State, now: State, *, only: Iterable[str] = ()) -> dict[str, object]:
    """What differs, by name: what is missing and what is too much.

    Args:
        before: as it should be.
        now: as it is.
        only: look at these names; all if empty.
    """
    found: dict[str, object] = {}
    for name in only or before:
        a, b = before[name], now[name]
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list):
            missing = [x for x in a if x not in b]
            extra = [x for x in b if x not in a]
            found[name] = {"missing": missing, "extra": extra}
        else:
            found[name] = {"missing": a, "extra": b}
    return found


def _tidy(name: str, text: str) -> object:
    match name:
        case "links":
            return sorted(map(_link, _rows(text)))
        case "addresses":
            return sorted(
                f"{link['ifname']} {a['local']}/{a['prefixlen']}"
                for link in _rows(text)
                for a in link.get("addr_info", ())
                # The kernel makes link-local ones as it likes.
                if a["scope"] != "link"
            )
        case "routes" | "routes6":
            return sorted(
                " ".join(f"{k}={_word(k, route[k])}" for k in _ROUTE_KEYS if k in route)
                for route in _rows(text)
                if route.get("protocol") not in ("kernel", "ra")
            )
        case "neighbours" | "neighbours6":
            return sorted(
                f"{row['dst']} {row['dev']} {row.get('lladdr')} {'/'.join(row['state'])}"
                for row in _rows(text)
            )
        case "fdb":
            return sorted(
                f"{row['mac']} {row['ifname']} {row['dst']} {row.get('state')}"
                f" {row.get('port', '')} {row.get('vni', '')}"
                for row in _rows(text)
                if "dst" in row
            )
        case "iptables" | "ip6tables":
            # Without counters, comments, and the chains and rules of others; in their order.
            return [
                line.partition(" [")[0]
                for line in text.splitlines()
                if "FLANNEL" in line or "flanneld" in line
            ]
        case _:
            return text.splitlines()


_ROUTE_KEYS: Final = (
    "type", "dst", "gateway", "dev", "protocol", "scope", "metric", "metrics", "nhid", "flags"
)  # fmt: skip


def _word(key: str, value: object) -> str:
    # "linkdown" and the like say how the device is doing, not what the route is.
    if key == "flags" and isinstance(value, list):
        return ",".join(f for f in value if f == "onlink")
    return str(value)


def _rows(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text) if text else []
    return [row for row in rows if row]


def _link(link: Mapping[str, object]) -> str:
    info = link.get("linkinfo")
    data = info.get("info_data") if isinstance(info, dict) else None
    kept = [link["ifname"], f"mtu {link['mtu']}", f"qlen {link.get('txqlen')}"]
    flags = link.get("flags")
    kept.append("up" if isinstance(flags, list) and "UP" in flags else "down")
    # The inner device of the eBPF data path is made anew with it, with whatever MAC.
    if link.get("link_type") == "ether" and not str(link["ifname"]).startswith("flannelgro"):
        kept.append(str(link.get("address")))
    if isinstance(data, dict):
        kept.append(json.dumps({k: v for k, v in sorted(data.items()) if k in _VXLAN_KEYS}))
    return " ".join(map(str, kept))


_VXLAN_KEYS: Final = ("id", "link", "local", "local6", "port", "learning")
