"""`KubernetesLeaseStore`: podCIDRs as subnets, annotations of nodes as what peers publish.

No subnet is claimed or renewed here: the controller manager gives each node its podCIDR once, for
as long as the node object exists. The store waits for the podCIDR, publishes our annotations,
repairs them when others change them, and notices when the node object is replaced by one with
another podCIDR.

Waiting. A fault that can be repaired never ends the daemon: no node object, no podCIDR, one outside
the network, an API server that is away, a token or a role that is refused, a bad `net-conf.json`.
The log and `status` say what the daemon waits for and what to do. It looks again at least every
second, so that the node is ready within two seconds of the repair.

One task follows all nodes from `acquire` to `close` and feeds the streams. A slow consumer gets one
snapshot instead of many changes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from pyflannel.aio.clock import Clock, within
from pyflannel.core.announce import Announcer
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import (
    LeaseError,
    NetworkConfigChanged,
    StoreError,
    StoreUnavailable,
)
from pyflannel.core.ip import IPAddress
from pyflannel.core.kind import Kinds
from pyflannel.core.kube import annotations as names
from pyflannel.core.kube.nodes import KubeNode, NodeTable
from pyflannel.core.lease import Changes, Lease, LeaseAttrs, LeaseUpdate
from pyflannel.core.trust import ConfigOrigin
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreReport
from pyflannel.store.base import Standing
from pyflannel.store.followed import LOOK_S
from pyflannel.store.kubernetes.base import Transport
from pyflannel.store.kubernetes.client import NodeClient
from pyflannel.store.kubernetes.failures import Busy, NodeMissing
from pyflannel.store.kubernetes.feed import NodeFeed
from pyflannel.store.kubernetes.netconf import NetConf, follow_netconf
from pyflannel.store.kubernetes.own import OwnNode
from pyflannel.store.kubernetes.trouble import StoreTrouble
from pyflannel.store.kubernetes.wire import Names

log = get_logger(__name__)

RETRY_S: Final = 1.0
"""Between two attempts while waiting, less a random part."""
IDLE_S: Final = 30.0
"""Between two reads of our own node when all is well."""
MOST_PENDING: Final = 1000
"""Changes queued for a slow consumer. More become a snapshot."""
MOST_TROUBLES: Final = 100
"""Unusable nodes listed in one report."""


class KubernetesLeaseStore:
    """A `LeaseStore` over the nodes of a Kubernetes cluster.

    Args:
        transport: carries requests.
        prefix: of the annotations, as `normal_prefix` gives it.
        node_name: ours; empty to ask for the pod.
        pod: namespace and name of the pod that we are.
        net_config: path of `net-conf.json`.
        kinds: the backends that a network config may ask for.
        clock: the time.
        set_condition: whether to clear the condition NetworkUnavailable.
        rng: source of chance.
        tell: called with what the store waits for, in words, and with `""` when that is over.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        prefix: str,
        node_name: str,
        pod: tuple[str, str] = ("", ""),
        net_config: str,
        kinds: Kinds,
        clock: Clock,
        set_condition: bool = True,
        rng: random.Random | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._transport = transport
        self._prefix = prefix
        self._pod = pod
        self._clock = clock
        self._rng = rng if rng is not None else random.Random()  # noqa: S311 - spreads load only
        self._tell = tell
        self._trouble = StoreTrouble(clock, tell)
        self._file: NetConf = follow_netconf(Path(net_config), kinds, clock)
        self._client = NodeClient(transport, Names(prefix, node_name), rng=rng)
        self._own = OwnNode(self._client, clock, set_condition=set_condition)
        self._feed = NodeFeed(self._client, clock, self, rng=rng, moved=self._wake)
        self._feeding: asyncio.Task[None] | None = None
        self._config: NetworkConfig | None = None
        self._table = NodeTable(node_name, {})
        self._attrs = LeaseAttrs()
        self._lease: Lease | None = None
        self._uid = ""
        self._pending: list[Changes] | None = None
        """`None` asks for a snapshot."""
        self._news = asyncio.Event()
        self._own_news = asyncio.Event()
        self._said: Announcer[str] = Announcer()

    @property
    def origin(self) -> ConfigOrigin:
        """As in `LeaseStore`: a user who may write the file or its ConfigMap can become root."""
        return ConfigOrigin.LOCAL_FILE

    @property
    def allots(self) -> bool:
        """As in `LeaseStore`: podCIDRs are given by the controller manager."""
        return False

    @property
    def lease(self) -> Lease | None:
        """As in `LeaseStore`."""
        return self._lease

    def published(self) -> Sequence[IPAddress]:
        """As in `LeaseStore`: what the annotations of our node say."""
        former = self._former()
        if former is None:
            return ()
        return [ip for ip in (former.public_ip, former.public_ipv6) if ip is not None]

    def wished(self) -> Collection[IPAddress]:
        """As in `LeaseStore`: the annotations `node-public-ip` and `node-public-ipv6`."""
        return tuple(self._own.wished.values())

    # Before the lease

    async def network_config(self) -> NetworkConfig:
        """As in `LeaseStore`. Knows our node object afterwards."""
        while True:
            await self._valid_file()
            await self._know_ourselves()
            self._file.look()
            _, config = self._file.value or ("", None)
            if config is not None:
                break
        if self._config != config:
            nodes = self._table.nodes()
            networks = {family: config.network_of(family) for family in config.families}
            self._table = NodeTable(self._client.ours.own, networks)
            self._table.replace(nodes)
            self._pending = None
        self._config = config
        self._tell("")
        return config

    async def _valid_file(self) -> None:
        while True:
            self._file.look()
            if self._file.value is not None:
                return
            self._tell(f"waiting for a valid {self._file.path}: {self._file.doubt}")
            await self._clock.sleep(LOOK_S)

    async def _know_ourselves(self) -> None:
        """Our name, and our node object."""
        while True:
            try:
                if not self._client.ours.own:
                    await self._find_name()
                if self._own.node is None:
                    self._own.saw(await self._client.node())
                self._trouble.over()
                return
            except NodeMissing as error:
                text = f"{error}; waiting for the kubelet to register node {self._client.ours.own}"
                await self._wait_for(text, error.kind, error)
            except StoreError as error:
                await self._wait_for(f"waiting for the API server: {error}", error.kind, error)

    async def _find_name(self) -> None:
        """The node's name by the pod that we are."""
        namespace, pod = self._pod
        name = await self._client.pod_node(namespace, pod)
        if not name:
            raise StoreUnavailable(
                f"pod {namespace}/{pod} has no node yet", kind="pod without node"
            )
        log.info("the node's name is that of our pod's node", node=name, pod=f"{namespace}/{pod}")
        self._client.ours = Names(self._prefix, name)

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """As in `LeaseStore`: what the annotations of our node say."""
        del attrs
        return self._former()

    def prescribed(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """As in `LeaseStore`: `None`, we may publish any attributes."""
        del attrs
        return None

    def _former(self) -> LeaseAttrs | None:
        node = self._own.node
        return names.former_attrs(node.annotations) if node is not None else None

    # The lease

    async def acquire(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`: waits for a podCIDR, publishes, and has a list of all nodes.

        Nothing is published before the podCIDR is known to be usable: peers would route to a node
        that never comes up.
        """
        self._attrs = attrs
        self._start_feed()
        while True:
            config = self._unchanged_config()
            try:
                lease = self._own.lease(config, attrs)
                if not self._feed.snapshots:
                    # Peers first: a ready node must reach the others.
                    reason = self._feed.reason or "its answer"
                    raise StoreUnavailable(f"waiting for the list of nodes: {reason}", kind=reason)
                if await self._own.settle(config, attrs):
                    self._hold(lease)
                    self._trouble.over()
                    self._tell("")
                    log.info("subnet is this node's podCIDR", subnet=lease.key.describe())
                    return lease
            except LeaseError as error:
                await self._wait_for(f"waiting: {error}", str(error), error)
            except StoreError as error:
                quiet = not self._feed.snapshots and not self._feed.reason
                await self._wait_for(str(error), error.kind, error, quiet=quiet)

    def _unchanged_config(self) -> NetworkConfig:
        """The config under which the wait began.

        Raises:
            NetworkConfigChanged: the file has another valid config now.
        """
        self._file.look()
        config = self._held_config()
        if self._file.value is not None and self._file.value[1] != config:
            raise NetworkConfigChanged(f"{self._file.path} has another network config")
        return config

    def _held_config(self) -> NetworkConfig:
        if self._config is None:
            raise LeaseError("the network config has not been read yet")
        return self._config

    def _hold(self, lease: Lease) -> None:
        self._lease = lease
        self._uid = self._own.node.uid if self._own.node is not None else ""

    async def keep(self) -> AsyncIterator[Lease]:
        """As in `LeaseStore`: repairs what others change, and follows the object."""
        self._start_feed()
        while True:
            pause = IDLE_S
            config = self._held_config()
            try:
                lease = self._own.lease(config, self._attrs)
                if not await self._own.settle(config, self._attrs):
                    pause = RETRY_S
                former = self._lease
                self._hold(lease)
                self._trouble.fails(None)
            except (LeaseError, StoreError) as error:
                self._trouble.fails(error)
                pause = self._pause(error)
            else:
                if former is None or former.key != lease.key:
                    log.warning(
                        "this node has another podCIDR; pods with an address of the former one have"
                        " to be created again, and cni0 removed if it keeps its address",
                        subnet=lease.key.describe(),
                        former=former.key.describe() if former is not None else None,
                    )
                    yield lease
            await self._pause_until_news(pause)

    async def publish(self, attrs: LeaseAttrs) -> Lease:
        """As in `LeaseStore`."""
        self._attrs = attrs
        while True:
            try:
                config = self._held_config()
                lease = self._own.lease(config, attrs)
                if await self._own.settle(config, attrs):
                    self._lease = (
                        lease if self._lease is None else replace(lease, key=self._lease.key)
                    )
                    return self._lease
                pause = RETRY_S
            except (LeaseError, StoreError) as error:
                if self._lease is None:
                    raise LeaseError("no lease has been acquired yet") from None
                self._trouble.fails(error)
                pause = self._pause(error)
            await self._clock.sleep(pause)

    async def release(self) -> bool:
        """As in `LeaseStore`: a podCIDR ends with its node object."""
        return False

    def ready(self) -> None:
        """As in `LeaseStore`: clears the condition NetworkUnavailable."""
        self._own.is_up = True
        self._own_news.set()

    # About all nodes

    async def watch_config(self) -> AsyncIterator[bytes | None]:
        """As in `LeaseStore`. A missing file counts as broken, not as a deleted config."""
        known = self._file.value[0] if self._file.value is not None else ""
        while True:
            self._file.look()
            text = self._file.value[0] if self._file.value is not None else known
            if text != known:
                known = text
                yield text.encode()
            await self._clock.sleep(LOOK_S)

    async def watch_leases(self) -> AsyncIterator[LeaseUpdate]:
        """As in `LeaseStore`."""
        self._start_feed()
        self._pending = None
        while True:
            if self._feed.snapshots:
                pending: list[Changes] | None = self._pending
                self._pending = []
                if pending is None:
                    yield self._table.snapshot()
                elif pending:
                    events = tuple(event for changes in pending for event in changes.events)
                    yield Changes(events, 0)
            self._news.clear()
            if self._pending == [] or not self._feed.snapshots:
                await self._news.wait()

    # From the feed

    def listed(self, nodes: Sequence[KubeNode]) -> None:
        """As in `Taker`."""
        self._table.replace(nodes)
        self._pending = None
        own = self._table.node(self._client.ours.own)
        if own is not None:
            self._own.saw(own)
        else:
            self._own.gone()
        self._say_troubles(self._table.troubles())
        self._news.set()
        self._own_news.set()

    def changed(self, node: KubeNode) -> None:
        """As in `Taker`."""
        self._note(self._table.put(node))
        if node.name == self._client.ours.own:
            self._own.saw(node)
            self._own_news.set()
        elif trouble := self._table.trouble(node.name):
            self._say_troubles(iter([(node.name, trouble)]))

    def deleted(self, name: str) -> None:
        """As in `Taker`."""
        self._note(self._table.delete(name))
        self._said.forget(name)
        if name == self._client.ours.own:
            self._own.gone()
            self._own_news.set()

    def _note(self, changes: Changes) -> None:
        if not changes.events:
            return
        if self._pending is not None:
            self._pending.append(changes)
            if len(self._pending) > MOST_PENDING:
                self._pending = None
        self._news.set()

    def _say_troubles(self, troubles: Iterator[tuple[str, str]]) -> None:
        for name, reason in troubles:
            if self._said.worth(name, reason, self._clock.monotonic()):
                log.warning(
                    "a node is not followed, or as it was before",
                    node=name,
                    reason=reason,
                    others_not_logged=self._said.take_withheld(),
                )

    # The rest

    def reconnect(self, why: str) -> None:
        """As in `LeaseStore`."""
        self._transport.drop(StoreUnavailable(why))

    def describe(self) -> str:
        """As in `LeaseStore`."""
        return self._transport.describe()

    def addresses(self) -> Collection[IPAddress]:
        """As in `LeaseStore`."""
        return self._transport.addresses()

    def report(self) -> StoreReport:
        """As in `LeaseStore`."""
        rejected = {f"node {self._client.ours.own}": text for text in self._own.problems.values()}
        for count, (name, reason) in enumerate(self._table.troubles()):
            if count == MOST_TROUBLES:
                break
            rejected[f"node {name}"] = reason
        return StoreReport(
            kind="kubernetes",
            where=self.describe(),
            connected=self._feed.connected,
            since=self._feed.since,
            reason=self._feed.reason,
            snapshots=self._feed.snapshots,
            reconnects=self._feed.reconnects,
            rejected=rejected,
            rejected_count=len(rejected),
            fault=self._trouble.fault or self._feed.fault,
        )

    def standing(self) -> Standing:
        """As in `LeaseStore`."""
        if self._lease is None:
            return Standing()
        node = self._own.node
        held: bool | None = node is not None and node.uid == self._uid
        if self._feed.connected is not True:
            held = None
        return Standing(
            held=held,
            confirmed=self._own.confirmed,
            reason=self._trouble.failing,
            since=self._trouble.since,
        )

    async def close(self) -> None:
        """As in `LeaseStore`."""
        feeding, self._feeding = self._feeding, None
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        await self._transport.close()

    # Waiting

    def _start_feed(self) -> None:
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed.run(), name="nodes")

    def _wake(self) -> None:
        self._own_news.set()

    def _pause(self, error: Exception) -> float:
        pause = RETRY_S * (1 - self._rng.random() / 2)
        return max(pause, error.retry_after_s) if isinstance(error, Busy) else pause

    async def _wait_for(
        self, text: str, kind: str, error: Exception, *, quiet: bool = False
    ) -> None:
        """Reports what the store waits for, and waits until the next attempt."""
        self._trouble.waits(text, kind, error, quiet=quiet)
        await self._pause_until_news(self._pause(error))

    async def _pause_until_news(self, seconds: float) -> None:
        await within(self._clock, seconds, self._own_news.wait())
        self._own_news.clear()
