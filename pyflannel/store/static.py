"""A static file as the store: for clusters that have neither etcd nor Kubernetes.

The file (`core/staticnet.py`) is the same on all nodes, brought there by whatever people use to
distribute files. It says who has which subnet, so there is nothing to win, to renew or to publish;
what is left is to find ourselves in it and to follow it.

How the file is followed, and what becomes of one that is broken: `store/followed.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import LeaseError, SubnetsOverlap
from pyflannel.core.fields import Problem
from pyflannel.core.ip import IPAddress
from pyflannel.core.kind import Kinds
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseUpdate, Snapshot
from pyflannel.core.overlap import CHANGE_NETWORK
from pyflannel.core.staticnet import StaticNetwork, StaticNode, parse_static
from pyflannel.core.trust import ConfigOrigin
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreReport
from pyflannel.store.base import FindObstacles, Standing, no_obstacles
from pyflannel.store.followed import LOOK_S, FollowedFile

log = get_logger(__name__)

MOST_BYTES: Final = 16 << 20
"""Of the file: 100,000 nodes with 160 bytes each."""
ADDRESSES_SHOWN: Final = 8
"""Addresses that the message about an unknown node names."""


class StaticLeaseStore:
    """A `LeaseStore` over a file.

    Args:
        path: of the file.
        node_name: which of its nodes we are; empty to go by our public address.
        kinds: the backends that a network config may ask for.
        clock: the time.
        obstacles: looks what a subnet must not take away from this node.
        tell: told in words what is being waited for, and `""` when that is over.
    """

    def __init__(
        self,
        path: str,
        *,
        node_name: str,
        kinds: Kinds,
        clock: Clock,
        obstacles: FindObstacles = no_obstacles,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._file = FollowedFile(
            Path(path),
            partial(_parse, kinds=kinds),
            clock,
            name="static network file",
            remedy=f"pyflannel static check {path}",
            most_bytes=MOST_BYTES,
        )
        self._name = node_name
        self._clock = clock
        self._find_obstacles = obstacles
        self._tell = tell
        self._changed = asyncio.Condition()
        self._attrs = LeaseAttrs()
        self._lease: Lease | None = None
        self._missing = ""
        self._missing_since: float | None = None
        self._snapshots = 0
        self._looking: asyncio.Task[None] | None = None

    @property
    def origin(self) -> ConfigOrigin:
        """As in `LeaseStore`: who may write the file is root on this node already."""
        return ConfigOrigin.LOCAL_FILE

    @property
    def lease(self) -> Lease | None:
        """As in `LeaseStore`."""
        return self._lease

    @property
    def allots(self) -> bool:
        """As in `LeaseStore`: the file is checked as etcd's config is."""
        return True

    def wished(self) -> Collection[IPAddress]:
        """As in `LeaseStore`: none, the file is compared with what the node has."""
        return ()

    def published(self) -> Sequence[IPAddress]:
        """As in `LeaseStore`: the addresses that the file gives to the node of our name."""
        self._file.look()
        node = self._find(LeaseAttrs()) if self._name else None
        if node is None:
            return ()
        attrs = node.lease.attrs
        return [ip for ip in (attrs.public_ip, attrs.public_ipv6) if ip is not None]

    async def network_config(self) -> NetworkConfig:
        """As in `LeaseStore`. Here it cannot be refused."""
        while True:
            self._file.look()
            if self._file.value is not None:
                self._tell("")
                return self._file.value.config
            self._tell(f"waiting for a valid {self._file.path}: {self._file.doubt}")
            await self._clock.sleep(LOOK_S)

    async def watch_config(self) -> AsyncIterator[bytes | None]:
        """As in `LeaseStore`. A file that is gone is a broken one, not a config that is deleted."""
        known = self._held_network().config_text
        async for network in self._networks():
            if network.config_text != known:
                known = network.config_text
                yield known

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """As in `LeaseStore`: what the file says of us."""
        node = self._find(attrs)
        return node.lease.attrs if node is not None else None

    def prescribed(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """As in `LeaseStore`: what the file says of us, for nothing can be published."""
        node = self._find(attrs)
        return node.lease.attrs if node is not None else None

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`: waits until the file names this node."""
        self._attrs = attrs
        while True:
            self._file.look()
            node = self._find(attrs)
            if node is not None:
                await self._make_room(node.lease)
                self._tell("")
                self._lease = node.lease
                log.info(
                    "subnet is given by the static network file", subnet=node.lease.key.describe()
                )
                return node.lease
            self._tell(f"waiting for {self._file.path} to name this node: {self._unknown()}")
            await self._clock.sleep(LOOK_S)

    async def _make_room(self, lease: Lease) -> None:
        """Makes sure that the subnet takes nothing away from this node; there is no other one.

        Raises:
            SubnetsOverlap: it would.
        """
        attrs = self._attrs
        public = [ip for ip in (attrs.public_ip, attrs.public_ipv6) if ip is not None]
        networks = self._held_network().config.networks
        found = await self._find_obstacles(networks, (), public)
        conflict = found.of_kept(lease.key) if found is not None else None
        if conflict is not None:
            raise SubnetsOverlap(
                f"{self._file.path} gives this node a subnet that it cannot have: {conflict}; "
                f"give it another one there, or {CHANGE_NETWORK}"
            )

    async def keep(self) -> AsyncIterator[Lease]:
        """As in `LeaseStore`. A node that the file no longer names keeps what it has."""
        async for network in self._networks():
            node = network.find(self._name, self._attrs)
            self._judge(node)
            if node is None:
                continue
            former, self._lease = self._lease, node.lease
            if former is None or former.key != node.lease.key:
                log.warning(
                    "the static network file gives us another subnet",
                    subnet=node.lease.key.describe(),
                )
                yield node.lease

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`, as far as a file can: it is compared, and a difference reported."""
        self._attrs = attrs
        self._judge(self._find(attrs))
        if self._lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self._lease

    def ready(self) -> None:
        """As in `LeaseStore`: a file needs no question."""

    async def release(self) -> bool:
        """As in `LeaseStore`: what a file gives does not end."""
        return False

    async def watch_leases(self) -> AsyncIterator[LeaseUpdate]:
        """As in `LeaseStore`: a snapshot of the file each time that it changes."""
        async for network in self._networks():
            self._snapshots += 1
            own = network.find(self._name, self._attrs)
            leases = (
                replace(node.lease, ours=True) if node is own else node.lease
                for node in network.nodes
            )
            yield Snapshot(tuple(leases), self._file.generation)

    def reconnect(self, why: str) -> None:
        """As in `LeaseStore`: there is no connection."""

    def describe(self) -> str:
        """As in `LeaseStore`."""
        return str(self._file.path)

    def addresses(self) -> Collection[IPAddress]:
        """As in `LeaseStore`: a file has none."""
        return ()

    def report(self) -> StoreReport:
        """As in `LeaseStore`."""
        return StoreReport(
            kind="static",
            where=str(self._file.path),
            connected=None if self._file.since is None else not self._file.broken,
            since=self._file.since,
            reason=self._file.broken,
            revision=self._file.generation,
            snapshots=self._snapshots,
        )

    def standing(self) -> Standing:
        """As in `LeaseStore`."""
        if self._lease is None:
            return Standing()
        return Standing(held=not self._missing, reason=self._missing, since=self._missing_since)

    async def close(self) -> None:
        """As in `LeaseStore`."""
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)

    # Looking

    async def _follow(self) -> None:
        """Looks at the file for as long as its changes are read."""
        while True:
            if self._file.look():
                async with self._changed:
                    self._changed.notify_all()
            await self._clock.sleep(LOOK_S)

    async def _networks(self) -> AsyncIterator[StaticNetwork]:
        """What the file says now, and whenever it says something else. Until cancelled."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._follow(), name="static network file")
        known = 0
        while True:
            async with self._changed:
                while self._file.generation == known:
                    await self._changed.wait()
                known, network = self._file.generation, self._held_network()
            yield network

    def _held_network(self) -> StaticNetwork:
        if self._file.value is None:
            raise LeaseError("the static network file has not been read yet")
        return self._file.value

    # Finding ourselves

    def _find(self, attrs: LeaseAttrs) -> StaticNode | None:
        return self._file.value.find(self._name, attrs) if self._file.value is not None else None

    def _unknown(self) -> str:
        if self._name:
            return f"no node in it has the name {self._name}"
        mine = [
            str(ip) for ip in (self._attrs.public_ip, self._attrs.public_ipv6) if ip is not None
        ]
        there = [
            str(node.lease.attrs.public_ip or node.lease.attrs.public_ipv6)
            for node in (self._file.value.nodes if self._file.value is not None else ())
        ]
        shown = ", ".join(there[:ADDRESSES_SHOWN]) + (" …" if len(there) > ADDRESSES_SHOWN else "")
        return (
            f"no node in it has our address {' or '.join(mine) or '(none)'}, they have "
            f"{shown or 'none'}; give --node-name, --public-ip or --iface"
        )

    def _judge(self, node: StaticNode | None) -> None:
        """Whether the file names us, with the addresses that we have."""
        reason = ""
        if node is None:
            reason = self._unknown()
        else:
            for theirs, ours in (
                (node.lease.attrs.public_ip, self._attrs.public_ip),
                (node.lease.attrs.public_ipv6, self._attrs.public_ipv6),
            ):
                if theirs is not None and ours is not None and theirs != ours:
                    reason = f"the file gives this node {theirs}, but it has {ours} now"
        if reason and reason != self._missing:
            log.error("the static network file does not fit this node", reason=reason)
        if bool(reason) != bool(self._missing):
            self._missing_since = self._clock.time() if reason else None
        self._missing = reason


def _parse(text: str, *, kinds: Kinds) -> tuple[StaticNetwork | None, Sequence[Problem]]:
    parsed = parse_static(text, kinds)
    return parsed.network, parsed.problems
