"""What must be true at every moment of a campaign, looked at several times a second.

The claims of `core/holding.py`, on real nodes: none says "held" for longer than one check after its
key has become another's or is gone, so no two nodes hold one subnet for longer than that. No daemon
ends. Packets between pods that keep their subnets are never lost, with any fault of etcd.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import re
import subprocess
import time
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, Final

from pyflannel.core.holding import STALE_S
from pyflannel.lab.nodes import Node
from pyflannel.store.etcd.base import KeyValue
from pyflannel.testing.etcdserver import EtcdError
from tests.integration.etcd_cluster.campaign.ground import Ground, key_of, owner
from tests.integration.etcd_cluster.campaign.plan import NODES

WRONG_S: Final = STALE_S + 10.0
"""A claim may be one check old, and what is looked at here a few seconds."""
EVERY_S: Final = 0.25
FRESH_S: Final = 2.0


class Audit:
    """Two threads' worth of looks: `look_at_etcd` and `look_at_nodes`."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        now = time.monotonic()
        self.truth: dict[bytes, KeyValue] = {}
        self.read = now
        """When `truth` was read."""
        self._true_at = dict.fromkeys(range(1, NODES + 1), now)
        self._wrong_since: dict[int, float] = {}
        self._double_since: dict[tuple[int, int], float] = {}
        self.longest_wrong = 0.0
        self.longest_double = 0.0
        self.looks = 0
        self.problems: list[str] = []
        self.pids: dict[int, int] = {}
        self.excused: set[int] = set()
        """Nodes whose daemon a fault has ended or frozen."""

    def look_at_etcd(self) -> None:
        """Reads all leases, from a member that has a quorum behind it."""
        for member in self._ground.cluster.members:
            if not member.answers:
                continue
            sent = time.monotonic()
            try:
                found = self._ground.leases(member)
            except (EtcdError, OSError, http.client.HTTPException, KeyError, ValueError):
                continue
            self.truth, self.read = found, sent
            return

    def look_at_nodes(self) -> None:
        """Compares what the nodes claim with what etcd has."""
        claims: dict[int, str] = {}
        for node in self._ground.lab.nodes:
            if node.number in self.excused:
                continue
            daemon = node.daemon
            known = self.pids.setdefault(node.number, daemon.pid) if daemon else 0
            # A fault may have begun since we looked.
            if (daemon is None or known != daemon.pid) and node.number not in self.excused:
                self.problems.append(f"node {node.number}: its daemon has ended")
                self.excused.add(node.number)
                continue
            said = self._ground.status(node)
            if said is not None and (lease := said.get("lease")) and lease["held"] is True:
                claims[node.number] = lease["subnet"]
        self.looks += 1
        self._compare_with_etcd(claims)
        self._compare_with_each_other(claims)

    def _compare_with_etcd(self, claims: dict[int, str]) -> None:
        now = time.monotonic()
        for number in range(1, NODES + 1):
            subnet = claims.get(number)
            kv = self.truth.get(key_of(subnet)) if subnet else None
            address = self._ground.lab.node(number).address
            if subnet is None or (kv is not None and str(owner(kv)) == address):
                self._wrong_since.pop(number, None)
                continue
            if now - self.read > FRESH_S:
                continue
            wrong = now - self._wrong_since.setdefault(number, now)
            self.longest_wrong = max(self.longest_wrong, wrong)
            if wrong > WRONG_S:
                self.problems.append(f"node {number} claims {subnet} for {wrong:.0f} s without key")
                self._wrong_since[number] = now

    def _compare_with_each_other(self, claims: dict[int, str]) -> None:
        now = time.monotonic()
        for pair in itertools.combinations(range(1, NODES + 1), 2):
            one, other = (claims.get(number) for number in pair)
            if one is None or one != other:
                self._double_since.pop(pair, None)
                continue
            double = now - self._double_since.setdefault(pair, now)
            self.longest_double = max(self.longest_double, double)
            if double > WRONG_S:
                self.problems.append(f"nodes {pair} both claim {one} for {double:.0f} s")
                self._double_since[pair] = now

    def ill(self, *, strangers: bool = False) -> str:
        """What keeps the nodes from being well; empty if they are.

        A node is well if it says that it holds a lease and that nothing else is wrong, if etcd has
        exactly that one of it, and if it sees exactly the others.

        Args:
            strangers: whether etcd may have keys of others, which the nodes may see.
        """
        subnets: dict[int, str] = {}
        peers: dict[int, set[str]] = {}
        for node in self._ground.lab.nodes:
            said = self._ground.status(node)
            if said is None:
                return f"{node.name} does not answer"
            why = unwell(said)
            if why:
                return f"{node.name}: {why}"
            subnet = subnets[node.number] = said["lease"]["subnet"]
            # They are written a moment after the lease is there, and pods are attached by them.
            network, env = node.pod_network(), node.subnet_env()
            files = {str(IPv4Interface(env.get("FLANNEL_SUBNET", "0.0.0.0/0")).network)}
            files |= {str(one.network) for one in network.gateways} if network else {""}
            if files != {subnet}:
                return f"{node.name}: its files say {sorted(files)}, not {subnet}"
            peers[node.number] = {peer["subnet"] for peer in said["peers"]}
        for number, seen in peers.items():
            others = {subnet for other, subnet in subnets.items() if other != number}
            if not others <= seen or not (strangers or seen == others):
                return f"node {number} sees {sorted(seen)}, not {sorted(others)}"
        try:
            found = self._ground.leases()
        except (EtcdError, OSError, http.client.HTTPException) as error:
            return f"etcd: {error}"
        held = {
            key_of(subnet): self._ground.lab.node(number).address
            for number, subnet in subnets.items()
        }
        nodes = set(held.values())
        shown = {key: str(owner(kv)) for key, kv in found.items()}
        if strangers:
            shown = {key: address for key, address in shown.items() if address in nodes}
        return "" if shown == held else f"etcd has {shown}, not {held}"


def unwell(said: dict[str, Any]) -> str:
    """What is wrong with one node by its own account, as far as its lease goes."""
    lease, store = said.get("lease") or {}, said.get("store") or {}
    if not said.get("ready"):
        return f"not ready: {said.get('waiting_for')}"
    if lease.get("held") is not True:
        return f"held is {lease.get('held')}: {lease.get('reason')}"
    if lease.get("reason") or store.get("reason"):
        return f"{lease.get('reason')}; {store.get('reason')}"
    return "" if store.get("connected") else "not connected"


_SAID: Final = re.compile(r"^\[([0-9.]+)\] (.*)$")
_SEQUENCE: Final = re.compile(r"icmp_seq=(\d+)")


class Pings:
    """A ping between each two pods, all the time; a late answer is no loss, however busy we are."""

    EVERY_S: Final = 0.2

    def __init__(self, ground: Ground, directory: Path) -> None:
        self._ground = ground
        self._directory = directory
        self._running: dict[tuple[int, int], tuple[subprocess.Popen[str], Path]] = {}
        self._files = itertools.count()

    def start(self, changed: set[int]) -> None:
        """Starts those that are not running, and those anew that have a pod of these nodes."""
        for pair in itertools.combinations(range(1, NODES + 1), 2):
            if pair in self._running and not changed & set(pair):
                continue
            self._end(pair)
            one, other = (self._ground.lab.node(number) for number in pair)
            path = self._directory / f"ping-{pair[0]}-{pair[1]}-{next(self._files)}"
            with path.open("w") as output:
                process = one.pod.popen(
                    ["ping", "-n", "-D", "-O", "-i", str(self.EVERY_S), str(other.pod_address())],
                    stdout=output.fileno(),
                    stderr=output.fileno(),
                )
            self._running[pair] = process, path

    def _end(self, pair: tuple[int, int]) -> None:
        if pair in self._running:
            process, _ = self._running.pop(pair)
            process.kill()
            process.wait()

    def end(self) -> None:
        """Ends all."""
        for pair in list(self._running):
            self._end(pair)

    def lost(self, since: float) -> dict[tuple[int, int], int]:
        """Requests that were sent since then (seconds since the epoch) and never answered."""
        return {
            pair: lost
            for pair, (_, path) in self._running.items()
            if (lost := lost_since(path.read_text(), since))
        }


def lost_since(output: str, since: float) -> int:
    """What a ping that prints times and says what is missing has lost since then."""
    missing: set[int] = set()
    for line in output.splitlines():
        said = _SAID.match(line)
        found = _SEQUENCE.search(line)
        if said is None or found is None:
            continue
        sequence = int(found[1])
        if "bytes from" in line:
            missing.discard(sequence)
        elif float(said[1]) >= since:
            missing.add(sequence)
    return len(missing)


def tracebacks(nodes: list[Node]) -> list[str]:
    """The nodes whose daemon has written one."""
    found = []
    for node in nodes:
        with contextlib.suppress(ValueError):
            at = node.log().index("Traceback (most recent call last)")
            found.append(f"{node.name}: {node.log()[at : at + 2000]}")
    return found
