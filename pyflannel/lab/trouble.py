"""Faults of a lab that stay until an operator repairs them, and their repair.

`faults` has the faults that a daemon repairs by itself in a fraction of a second. This module has
those that no daemon can repair, because they are in the underlay, in a firewall, or end the daemon.
`break_it` injects one fault of either kind. `heal` undoes all of the second kind and waits until
the daemons have repaired the first. A record in the lab's directory lets `heal` say which faults
there were, also hidden ones.
"""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from pyflannel.core.errors import UsageError
from pyflannel.lab import faults, injecting, topology
from pyflannel.lab.errors import LabError
from pyflannel.lab.faults import FAULTS, RESTORE_UNDERLAY
from pyflannel.lab.nodes import READY_S, Node
from pyflannel.lab.ping import PingMatrix
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

if TYPE_CHECKING:
    from pyflannel.lab.cluster import Lab

_TABLE: Final = "pyflannel_lab"
"""The nftables table, of family inet, with the rules that break something on a node."""

_PORTS: Final = "8285, 8472"
"""Ports of the overlay's packets: upstream's defaults of udp and vxlan."""

_NARROW: Final = 1300
"""MTU of the narrow cable: below what the overlay's packets have on a cable of 1500."""

_RECORD: Final = "broken.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """A fault that stays until `heal`; its text says what happened."""

    name: str
    summary: str
    node: str = ""
    """Shell lines for the node."""
    switch: str = ""
    """Shell lines for the switch; `$NODE` is the port of the node."""
    daemon: int = 0
    """Signal for the node's daemon."""
    etcd: int = 0
    """Signal for etcd."""
    backends: Sequence[str] = ()
    """Only with these backends; empty for all."""


def _drop(chain: str, rule: str) -> str:
    return (
        f"nft 'add table inet {_TABLE}'\n"
        f"nft 'add chain inet {_TABLE} {chain} {{ type filter hook {chain} priority 10; }}'\n"
        f"nft 'add rule inet {_TABLE} {chain} {rule} counter drop'"
    )


TROUBLES: Final = {
    trouble.name: trouble
    for trouble in (
        Trouble(
            name="cable pulled",
            summary="the node's underlay cable is out at the switch",
            switch="ip link set dev $NODE down",
        ),
        Trouble(
            name="narrow underlay",
            summary=f"the cable to the node takes only {_NARROW} bytes, without an ICMP error",
            switch=f"ip link set dev $NODE mtu {_NARROW}",
        ),
        Trouble(
            name="forwarding off",
            summary="a sysctl.conf has turned IP forwarding off",
            node="sysctl -q -w net.ipv4.ip_forward=0",
        ),
        Trouble(
            name="firewall drops the overlay",
            summary="a firewall on the node drops packets from other nodes",
            node=_drop("input", f"udp dport {{ {_PORTS} }}"),
            backends=("udp", "vxlan"),
        ),
        Trouble(
            name="firewall drops the pods",
            summary="a firewall on the node drops packets to its pod",
            node=_drop("forward", 'oifname "docker0"'),
        ),
        Trouble(name="daemon killed", summary="the node's daemon is gone", daemon=signal.SIGKILL),
        Trouble(
            name="daemon frozen",
            summary="the node's daemon runs but does nothing",
            daemon=signal.SIGSTOP,
        ),
        Trouble(name="etcd frozen", summary="etcd runs but does not answer", etcd=signal.SIGSTOP),
    )
}
"""The faults that stay, by name."""


@dataclass(frozen=True, slots=True)
class Broken:
    """One injected fault, as recorded in the lab's directory."""

    node: int
    name: str
    hidden: bool = False

    def __str__(self) -> str:
        trouble = TROUBLES.get(self.name)
        if trouble is not None and trouble.etcd:
            return self.name
        return f"{topology.node_name(self.node)}: {self.name}"


def slug(name: str) -> str:
    """The name as one word for a command line: `FDB entry deleted` is `fdb-entry-deleted`."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


_BY_SLUG: Final = {slug(name): name for name in (*TROUBLES, *FAULTS)}


def slugs() -> list[str]:
    """Every fault as one word."""
    return list(_BY_SLUG)


def named(text: str) -> str:
    """The fault of this name, written with blanks or dashes, in upper or lower case.

    Raises:
        UsageError: there is none; with a guess.
    """
    name = _BY_SLUG.get(slug(text))
    if name is None:
        near = did_you_mean(slug(text), _BY_SLUG)
        hint = f"did you mean {near}? " if near else ""
        raise UsageError(f"no fault {text!r}; {hint}`pyflannel lab break --list` has them all")
    return name


def listing(names: Iterable[str] | None = None) -> list[str]:
    """All faults for people, first those that stay."""
    wanted = list(_BY_SLUG.values()) if names is None else list(names)
    width = max(map(len, map(slug, TROUBLES)))
    lines = ["Stay until `pyflannel lab heal`, or until you repair them:"]
    lines += [f"  {slug(n):<{width}}  {TROUBLES[n].summary}" for n in wanted if n in TROUBLES]
    lines += ["", "The daemon repairs these by itself; its log says how:"]
    return [*lines, *(f"  {slug(n)}" for n in wanted if n in FAULTS)]


def fitting(backend: str, *, with_etcd: bool) -> list[str]:
    """The names of the faults that stay and are possible in such a lab."""
    return [
        trouble.name
        for trouble in TROUBLES.values()
        if (not trouble.backends or backend in trouble.backends) and (with_etcd or not trouble.etcd)
    ]


def choose(lab: Lab, rng: random.Random) -> tuple[str, int]:
    """A fault that stays, and its node."""
    names = fitting(_backend(lab), with_etcd=lab.spec.store == "etcd")
    return rng.choice(names), rng.choice([node.number for node in lab.nodes])


def break_it(lab: Lab, name: str, number: int, *, hidden: bool = False) -> Broken:
    """Injects one fault into a lab.

    Args:
        lab: which is up.
        name: of `TROUBLES` or `faults.FAULTS`.
        number: of its node.
        hidden: `lab status` does not tell what it was.

    Raises:
        UsageError: this lab cannot have this fault.
        LabError: there was nothing to break, or it failed.
    """
    node = lab.node(number)
    broken = Broken(number, name, hidden)
    if name in TROUBLES:
        if name not in fitting(_backend(lab), with_etcd=lab.spec.store == "etcd"):
            raise UsageError(f"{slug(name)}: not in a lab with backend {_backend(lab)}")
        _remember(lab, [*recorded(lab), broken])
        _do(lab, node, TROUBLES[name])
    else:
        _inject(lab, node, name)
        _remember(lab, [*recorded(lab), broken])
    return broken


def recorded(lab: Lab) -> list[Broken]:
    """The faults injected since the last `heal`."""
    try:
        rows = json.loads((lab.path / _RECORD).read_text(encoding="utf-8"))
        return [Broken(int(row["node"]), str(row["name"]), bool(row["hidden"])) for row in rows]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"{lab.path / _RECORD}: not a list of faults: {error!r}") from error


def heal(lab: Lab, *, deadline: float = READY_S) -> PingMatrix | None:
    """Undoes all of `TROUBLES` on every node, and waits until all pods answer.

    Returns:
        The answers of the pods, also if some are missing; `None` for a lab without pods.
    """
    if lab.spec.store == "etcd":
        lab.etcd.resume()
        if lab.etcd.process is None or not lab.etcd.process.alive():
            lab.etcd.start()
    restarted = [node for node in lab.nodes if _mend(lab, node)]
    for node in restarted:
        lab.wait(node.is_ready, deadline, what=f"{node.name}'s subnet.env")
        node.attach_pod()
    _remember(lab, [])
    if not all(node.pod_address() for node in lab.nodes):
        return None
    end = time.monotonic() + deadline
    while True:
        matrix = lab.ping_all(count=1, deadline=1.0)
        if matrix.ok or time.monotonic() > end:
            return matrix


def _mend(lab: Lab, node: Node) -> bool:
    """Undoes all faults of one node; whether its daemon was started again."""
    lab.switch.run(["ip", "link", "set", "dev", node.name, "mtu", str(lab.spec.underlay_mtu), "up"])
    variables = {
        "OWN_IP": topology.underlay_address(node.number),
        "OWN_IP6": topology.underlay_address_v6(node.number),
        "GATEWAY": topology.underlay_address(topology.SWITCH_HOST).ip,
        "GATEWAY6": topology.underlay_address_v6(topology.SWITCH_HOST).ip,
    }
    script = "".join(f"{key}={value}\n" for key, value in variables.items())
    script += f"sysctl -q -w net.ipv4.ip_forward=1\nip link set dev eth0 up\n{RESTORE_UNDERLAY}"
    script += f"nft delete table inet {_TABLE} 2>/dev/null\ntrue\n"
    node.exec(["sh", "-s"], stdin=script)
    daemon = node.daemon
    if daemon is not None:
        daemon.send(signal.SIGCONT)
        return False
    if f"daemon{node.number}" not in lab.state.processes:
        return False  # the lab was made without daemons
    node.start_daemon()
    return True


def _do(lab: Lab, node: Node, trouble: Trouble) -> None:
    if trouble.node:
        node.exec(["sh", "-e", "-s"], stdin=trouble.node)
    if trouble.switch:
        lab.switch.run(["sh", "-e", "-s"], stdin=f"NODE={node.name}\n{trouble.switch}")
    if trouble.daemon:
        node.kill(trouble.daemon)
    if trouble.etcd == signal.SIGSTOP:
        lab.etcd.pause()


def _inject(lab: Lab, node: Node, name: str) -> None:
    peer = next((other for other in lab.nodes if other is not node), None)
    if peer is None:
        raise UsageError(f"{slug(name)}: needs a lab of two nodes or more")
    config = node.network_config
    nftables = config.enable_nftables or "--enable-nftables" in lab.spec.daemon_args
    fits = faults.faults_for(
        config.backend_type,
        dual_stack=len(config.families) > 1,
        manager="nftables" if nftables else "iptables",
    )
    if FAULTS[name] not in fits:
        raise UsageError(f"{slug(name)}: not on a node with backend {config.backend_type}")
    try:
        targets = injecting.aim(node, peer)
    except KeyError as error:
        raise LabError(
            f"{node.name} or {peer.name} has no {error} in subnet.env; `pyflannel lab heal` first"
        ) from error
    if not injecting.inject(node, targets, [FAULTS[name]]):
        raise LabError(f"{node.name}: {name}: found nothing to break")


def _backend(lab: Lab) -> str:
    return lab.spec.network_config().backend_type


def _remember(lab: Lab, broken: Sequence[Broken]) -> None:
    target = lab.path / _RECORD
    draft = target.with_name(f".{_RECORD}")
    draft.write_text(json.dumps([asdict(each) for each in broken]), encoding="utf-8")
    draft.rename(target)
