"""The faults that can be injected into a node, by name.

A fault is something that an operator, a network manager or a crash does, behind the daemon's back.
It is complete: the tester undoes nothing. The fault itself restores what belongs to the machine and
not to the overlay (the underlay's address, its default route), as the machine's network manager
would. The daemon must restore the rest.

`injecting.py` injects them, `snapshot.py` checks that a node has healed.

Variables for a fault's shell lines (about the node itself, and one peer):

| variable | what it is |
|---|---|
| `DEV`, `DEV6` | the overlay's device of each family; the underlay's where there is none |
| `NET`, `OWN`, `OWN_IP` | overlay network; our subnet; our underlay address with prefix length |
| `ROUTE`, `ROUTE6` | destination of a route that the overlay keeps |
| `VTEP`, `VTEP6`, `MAC`, `MAC6`, `PEER_IP` | a peer's VTEP addresses and MACs, underlay address |
| `NOBODY`, `NOBODY6` | underlay addresses that no host has |
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import UsageError
from pyflannel.core.kind import Kind, every
from pyflannel.records import dataclass

STRANGE_MAC: Final = "02:00:00:00:ee:ee"

_VXLAN: Final = ("vxlan",)

RESTORE_UNDERLAY: Final = """
ip address replace $OWN_IP dev eth0
ip address replace $OWN_IP6 dev eth0 nodad
ip route replace default via $GATEWAY dev eth0
ip route replace ::/0 via $GATEWAY6 dev eth0
"""
"""What the machine's network manager does when the interface returns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a node."""

    name: str
    script: str
    """Shell lines; see the module for the variables."""
    backends: Sequence[str] = ()
    """The backends whose objects it changes; empty for all backends."""
    device: bool = False
    """Only if the overlay has a device."""
    peer_routes: bool = False
    """Only if each peer has a route."""
    repair: str = ""
    """The name under which the daemon's status counts the repair: one in `repaired` of its network,
    or `rules`, or `files`; empty if there may be nothing to repair."""
    dual_stack: bool = False
    """Only if the overlay has IPv6 as well."""
    manager: str = ""
    """Only if this traffic manager keeps the rules, `iptables` or `nftables`."""
    upheaval: bool = False
    """It also removes other objects (those of a whole device), so later faults of the same batch
    would find nothing to break. A batch has at most one such fault, the last."""
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
    """Commands of ip(8) in one process: between two the daemon has no time to act."""
    return "ip -batch - <<END\n" + "".join(f"{command}\n" for command in commands) + "END"


def _instead_of_the_device(kind: str) -> str:
    """Replaces the overlay's device by another.

    Deleting one takes the kernel some milliseconds, and the daemon may be faster.
    """
    swap = _at_once("link del dev $DEV", f"link add dev $DEV {kind}")
    # As a condition: if a plain command fails, "set -e" ends the shell at the first try.
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
        UsageError: there is no such backend, or it has no faults.
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
    """Distributes faults at random over batches of at most `size`.

    No two of a batch change the same kind of object, so that none hides another. At most one is an
    upheaval, and it comes last.
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
