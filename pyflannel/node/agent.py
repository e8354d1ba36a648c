"""A node's agent: what happens from the network config to a running overlay, and from then on.

Built from what it needs (`Parts`), so that a whole node runs in a unit test over fakes, with a fake
clock. `Agent.start` goes through upstream's order of start, which operators and scripts rely on:

1. the network config, waited for as long as it takes;
2. the external interface;
3. the backend: device, *lease*, addresses; beside its slow part the traffic rules (they need the
   old `subnet.env`);
4. `subnet.env` and `docker_opts.env`.

What comes out is a `Node`, which has everything that is known only then, and `Node.run` keeps it: a
task for each thing that goes on. What is not needed to be ready waits until the first leases are
programmed, so that packets flow meanwhile. A stop is honoured at every point.

The driver owns the network: nothing else calls it once the node is made.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import pyflannel
from pyflannel.aio.clock import within
from pyflannel.aio.pace import paced
from pyflannel.aio.tasks import beside, forever
from pyflannel.backend.driver import Driver
from pyflannel.core import subnetenv
from pyflannel.core.announce import Announcer
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import NetworkConfigChanged, StoreDenied, StoreError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Identity, Lease, LeaseAttrs, LeaseEvent, LeaseTable, Snapshot
from pyflannel.core.trust import check_commands
from pyflannel.core.underlay import ExternalInterface
from pyflannel.docker import options as docker_options
from pyflannel.logs import get_logger
from pyflannel.node.blackhole import BlackholeKeeper
from pyflannel.node.cnibridge import release_bridge
from pyflannel.node.cniconf import conflist
from pyflannel.node.configwatch import ConfigWatch, warn_about_bridges
from pyflannel.node.firewall import Firewall
from pyflannel.node.follow import UnderlayFollower
from pyflannel.node.former import remove_former
from pyflannel.node.parts import Parts, Settings, Started
from pyflannel.node.probing import Probing
from pyflannel.node.progress import PROGRAM_FIRST_S, Progress
from pyflannel.node.reports import (
    by_subnet,
    config_report,
    key_of,
    lease_report,
    peer_report,
    some_rejections,
    underlay_report,
    with_counts,
)
from pyflannel.node.trouble import Trouble
from pyflannel.report.model import (
    ConfigReport,
    Failure,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    ProbeReport,
    RulesReport,
    StoreReport,
    UnderlayReport,
)
from pyflannel.report.problems import why_not_working
from pyflannel.report.text import headline
from pyflannel.traffic.select import former_rules

log = get_logger(__name__)

HEADLINE_S: Final = 3.0
"""How often systemd's status line is made anew; it is sent only when it has changed. It takes the
whole report, 0.6 ms: each second it was a fifth of what a daemon at rest costs."""
STANDING_S: Final = 1.0
"""How often the store is asked, which knows without a request, whether the subnet is ours."""
TAKEN: Final = "another node has the subnet, and there is none for this one"
RELEASE_S: Final = 0.8
"""For giving the subnet back, of the 1.5 s that an orderly end may take."""


class Agent:
    """One node's agent. `start` is called once; `report` at any time."""

    def __init__(self, parts: Parts, settings: Settings) -> None:
        self._parts = parts
        self._settings = settings
        self._since = parts.clock.time()
        self._config: NetworkConfig | None = None
        self._underlay: ExternalInterface | None = None
        self._node: Node | None = None
        self.progress = Progress()
        """For work that waits its turn."""
        self.failing: dict[str, Trouble] = {}
        """Other parts that may fail, by name, for the report; their owner adds them."""

    @property
    def ready(self) -> bool:
        """Whether `subnet.env` names our subnet; goes back only if another node has taken it."""
        return self._parts.files.ready_since is not None

    async def start(self, stack: contextlib.AsyncExitStack) -> Node:
        """Brings the node up.

        Args:
            stack: takes what is to be undone at the end.

        Raises:
            FlannelError: it could not start; carries its exit code.
        """
        parts = self._parts
        while True:
            try:
                started = await self._join(stack)
                break
            except NetworkConfigChanged as change:
                # Device, interface and rules hang on the config: they are derived anew.
                log.warning(str(change))
        parts.attached()
        node = Node(parts, self._settings, started, self.progress, stack)
        await node.open()
        self._node = node
        self.progress.started.set()
        return node

    async def _join(self, stack: contextlib.AsyncExitStack) -> Started:
        """Picks the interface, attaches the backend and makes the rules, under the config of now.

        Raises:
            NetworkConfigChanged: another one is valid before there is a lease.
        """
        parts = self._parts
        config = self._config = await parts.store.network_config()
        check_commands(config, parts.store.origin, allowed=self._settings.allow_extension)
        log.info(f"Found network config - Backend type: {config.backend_type}")
        warn_about_bridges(config)
        wishes = parts.store.wished()
        found = await parts.find_underlay(
            config.families, prefer=parts.store.published(), public=wishes
        )
        underlay = self._underlay = found.interface
        address = underlay.address if underlay.address is not None else underlay.address6
        log.info(
            f"Using interface with name {underlay.name} and address {address}",
            choice=found.describe(),
        )
        addresses = LeaseAttrs(public_ip=underlay.public_ip, public_ipv6=underlay.public_ipv6)
        former = await self._former_attrs(addresses)
        held = asyncio.Event()
        backend = parts.backend(config, underlay, parts.store.prescribed(addresses), held.set)
        attrs = await backend.prepare(former)
        if config.enable_ipv4 and parts.store.allots:
            log.info(f"Picking subnet in range {config.subnet_min} ... {config.subnet_max}")
        lease = await self._acquire(attrs)
        firewall = self._open_firewall(config, lease, stack)
        async with beside("first rules", self._first_rules(firewall, held)):
            network = await backend.attach(lease)
            held.set()
        return Started(
            config=config,
            underlay=underlay,
            lease=lease,
            network=network,
            firewall=firewall,
            wishes=wishes,
        )

    def _open_firewall(
        self, config: NetworkConfig, lease: Lease, stack: contextlib.AsyncExitStack
    ) -> Firewall:
        manager, other = self._parts.firewall(config)
        stack.callback(manager.close)
        ruleset = self._settings.traffic_rules(config, lease.key)
        return Firewall(manager, other, ruleset, self._parts.clock)

    async def _first_rules(self, firewall: Firewall, held: asyncio.Event) -> None:
        """Makes the rules beside the backend's slow work, but none for a node that is refused."""
        await held.wait()
        # While subnet.env still tells what the former network was.
        await firewall.ensure(previous=former_rules(self._parts.former))

    async def _acquire(self, attrs: LeaseAttrs) -> Lease:
        """Waits for a subnet; meanwhile no file goes on naming one that another node has."""
        minding = asyncio.create_task(self._mind_former(), name="former files")
        try:
            return await self._parts.store.acquire(attrs)
        finally:
            minding.cancel()
            await asyncio.gather(minding, return_exceptions=True)

    async def _mind_former(self) -> None:
        parts, settings = self._parts, self._settings
        former = parts.former.previous_subnet
        while former is not None and not parts.store.standing().taken:
            await parts.clock.sleep(STANDING_S)
        if former is not None:
            parts.files.withdraw_former(
                settings.subnet_file, settings.docker_opts_file, former, TAKEN
            )

    async def run(self, node: Node) -> None:
        """Announces the node and keeps it until cancelled."""
        async with asyncio.TaskGroup() as group:
            forever(group, "headline", self._tell())
            forever(group, "node", node.run())

    async def leave(self) -> None:
        """Gives the subnet back if it is asked for; at an orderly end, when `run` has ended."""
        if not self._settings.release_on_exit:
            return
        if await self._parts.is_restart():
            log.info("keeping the subnet: the unit is being restarted")
            return
        try:
            async with asyncio.timeout(RELEASE_S):
                await self._parts.store.release()
        except (StoreError, TimeoutError) as error:
            log.warning("subnet not given back, its lease ends by itself", error=error)

    async def _former_attrs(self, addresses: LeaseAttrs) -> LeaseAttrs | None:
        """What we published before our restart; `None` if the store cannot tell just now."""
        try:
            return await self._parts.store.previous(addresses)
        except StoreDenied:
            raise
        except StoreError as error:
            log.warning("former lease not looked up", error=error)
            return None

    async def _tell(self) -> None:
        """Keeps systemd's status line true."""
        said = ""
        while True:
            line = headline(self.report())
            if line != said:
                self._parts.notifier.status(line)
                said = line
            await self._parts.clock.sleep(HEADLINE_S)

    def trouble(self) -> str:
        """Why this node does not do its work now; empty if it does."""
        return why_not_working(self.report())

    def peer_reports(self, *, counted: bool = True) -> Iterator[PeerReport | None]:
        """As in `Source`."""
        return self._node.peer_reports(counted=counted) if self._node is not None else iter(())

    def with_counts(self, peer: PeerReport) -> PeerReport:
        """As in `Source`."""
        return self._node.with_counts(peer) if self._node is not None else peer

    def report(self) -> NodeReport:
        """As in `Source`."""
        parts, node = self._parts, self._node
        return NodeReport(
            version=pyflannel.__version__,
            now=parts.clock.time(),
            started=self._since,
            phase=node.phase if node is not None else "starting",
            waiting_for=self._parts.waiting.text,
            waiting_since=self._parts.waiting.since,
            ready_since=parts.files.ready_since,
            config=node.config_report() if node is not None else config_report(self._config),
            store=node.store_report() if node is not None else parts.store.report(),
            underlay=node.underlay_report()
            if node is not None
            else underlay_report(self._underlay),
            lease=node.lease_report() if node is not None else None,
            network=node.network_report() if node is not None else None,
            rules=node.rules_report() if node is not None else None,
            files=parts.files.report(),
            failing=self._failures(),
            probes=node.probe_report() if node is not None else None,
        )

    def _failures(self) -> dict[str, Failure]:
        troubles = dict(self.failing)
        if self._node is not None:
            troubles |= self._node.failing
        return {name: trouble.report() for name, trouble in troubles.items() if trouble}


class Node:
    """A node that is up. `open` once, then `run`; the reports at any time.

    Args:
        parts: as the agent's.
        settings: as the agent's.
        started: what the start found.
        progress: told when the first leases are programmed.
        stack: takes what is to be undone at the end.
    """

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        started: Started,
        progress: Progress,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._store = parts.store
        self._clock = parts.clock
        self._config = started.config
        self._underlay = started.underlay
        self._lease = started.lease
        self._table = LeaseTable(
            network=started.config.network, network6=started.config.ipv6_network
        )
        self._table.set_own(Identity.of(started.lease, started.network.own_attrs()))
        self._rejected: Announcer[SubnetKey] = Announcer()
        self._follower = UnderlayFollower(
            started.underlay,
            self._follow_underlay,
            self._underlay_moved,
            parts.clock,
            announce=parts.announce,
            choose=self._choose_underlay,
            wishes=started.wishes,
        )
        self._driver = Driver(
            started.network,
            parts.netlink,
            clock=parts.clock,
            attrs_changed=self._attrs_changed,
            observe=self._follower.notice,
        )
        stack.push_async_callback(self._driver.detach)
        self._firewall = started.firewall
        self._blackhole = BlackholeKeeper(parts.netlink, lambda: self._lease.key, parts.clock)
        self._probing = Probing(
            parts,
            started.config,
            settings.probe_interval_s,
            peers=lambda: self._table.peers,
            network=self.network_report,
            underlay=lambda: self._underlay,
        )
        self._config_watch = ConfigWatch(parts.store, parts.kinds, started.config, parts.clock)
        self._docker_trouble = Trouble(parts.clock)
        self._unpublished = asyncio.Event()
        self._wanted = started.lease.attrs
        self._programmed = progress.programmed
        self.phase = "starting"
        """One line in words."""
        self.failing = {
            "blackhole route": self._blackhole.trouble,
            "docker's chain": self._docker_trouble,
            "public address": self._follower.unmet,
        }
        """Parts that may fail, by name."""

    async def open(self) -> None:
        """Removes what a former network left, and writes the files."""
        # While subnet.env still tells what the former network was.
        former = self._parts.former
        parts = self._parts
        await remove_former(parts.netlink, former, self._config, self._lease.key, parts.kinds)
        if former.previous_subnet is not None:
            await self._leave_bridge(former.previous_subnet)
        self._write_files()

    async def run(self) -> None:
        """Announces the node, then keeps it until cancelled."""
        log.info("Running backend.")
        async with asyncio.TaskGroup() as group:
            if self._settings.ready_when_files and not self._parts.files.complete.is_set():
                group.create_task(self._announce_late(), name="ready")
            else:
                self._announce()
            group.create_task(self._tell_store(), name="ready, to the store")
            forever(group, "driver", self._driver.run())
            forever(group, "leases", self._watch_leases())
            forever(group, "own lease", self._keep_lease())
            forever(group, "lost subnet", self._watch_standing())
            forever(group, "environment files", self._parts.files.guard())
            forever(group, "underlay", self._follower.run())
            forever(group, "own attributes", self._republish())
            forever(group, "traffic rules", self._later(self._firewall.keep))
            if self._settings.blackhole:
                work = self._blackhole.run(self._settings.rules_period_s)
                forever(group, "blackhole route", work)
            forever(group, "network config", self._later(self._config_watch.run))
            forever(group, "probes", self._later(self._probing.run))
            forever(group, "docker's chain", self._later(self._keep_dockers_chain))

    # Ready

    def _announce(self) -> None:
        missing = not self._parts.files.complete.is_set()
        self._show_phase()
        # In one message: who waits for READY reads the status line next.
        self._parts.notifier.ready(self.phase)
        log.info("running, but subnet.env is missing" if missing else "flannel is ready")

    async def _announce_late(self) -> None:
        """Packets already flow, but units ordered after us need the files, so READY waits."""
        from pyflannel.node.starttimeout import while_starting

        self.phase = f"subnet {self._lease.key.describe()}, waiting: {self._parts.files.failures}"
        async with while_starting(self._parts.notifier, self._clock):
            await self._parts.files.complete.wait()
        self._announce()

    async def _tell_store(self) -> None:
        await self._parts.files.complete.wait()
        self._store.ready()

    def _show_phase(self) -> None:
        self.phase = f"running with subnet {self._lease.key.describe()}"

    # Leases

    async def _watch_leases(self) -> None:
        log.info("Watching for new subnet leases")
        async for update in self._store.watch_leases():
            # Also what changed of our own (an address, the etcd lease) without another subnet.
            await self._submit(self._table.set_own_in_parts(self._identity()))
            await self._submit(map(self._table.apply, self._table.parts(update)))
            if isinstance(update, Snapshot):
                self._driver.synced()
                if not self._programmed.is_set():
                    # What comes next imports the watch's library. Its watch begins at the snapshot.
                    await within(self._clock, PROGRAM_FIRST_S, self._driver.settled())
                    self._programmed.set()
            async for key, reason in paced(self._table.new_rejections()):
                if self._rejected.worth(key, reason, self._clock.monotonic()):
                    log.warning(
                        "lease is not followed",
                        subnet=key.describe(),
                        reason=reason,
                        others_not_logged=self._rejected.take_withheld(),
                    )

    async def _submit(self, parts: Iterable[Sequence[LeaseEvent]]) -> None:
        """Hands the driver what changed; others have their turn between two parts."""
        for number, events in enumerate(parts):
            if number:
                await asyncio.sleep(0)
            self._driver.submit(events)
            self._probing.changed(events)

    def _identity(self) -> Identity:
        """What is ours in the store: what we published, and what we are about to publish."""
        return Identity.of(self._store.lease or self._lease, self._driver.attrs)

    async def _later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does some work when the first leases are programmed, or that takes too long."""
        await within(self._clock, PROGRAM_FIRST_S, self._programmed.wait())
        await work()

    async def _keep_lease(self) -> None:
        async for lease in self._store.keep():
            former, self._lease = self._lease, lease
            await self._submit(self._table.set_own_in_parts(self._identity()))
            attrs = await self._driver.rebase(self._underlay, lease)
            await self._firewall.replace(
                self._settings.traffic_rules(self._config, self._lease.key)
            )
            await self._leave_bridge(former.key)
            self._write_files()
            self._show_phase()
            if attrs != lease.attrs:
                self._publish(attrs)

    async def _leave_bridge(self, former: SubnetKey) -> None:
        if self._settings.has_pods and former != self._lease.key:
            await release_bridge(self._parts.netlink, former, self._lease.key)

    async def _watch_standing(self) -> None:
        """Asks the store each second what it knows without a request.

        The files name our subnet only while no other node has it, and wishes are followed.
        """
        files = self._parts.files
        while True:
            await self._clock.sleep(STANDING_S)
            self._follower.wish(self._store.wished())
            if self._store.standing().taken:
                if not files.withdrawn:
                    files.withdraw(TAKEN)
                    self.phase = f"without a subnet; {self._lease.key.describe()} was taken"
            elif files.withdrawn:
                # The same subnet again; another one is told by the store.
                self._write_files()
                self._show_phase()

    async def _republish(self) -> None:
        """Publishes what the backend wants in the lease when that has changed."""
        while True:
            await self._unpublished.wait()
            self._unpublished.clear()
            await self._store.publish(self._wanted)
            await self._submit(self._table.set_own_in_parts(self._identity()))

    def _attrs_changed(self, attrs: LeaseAttrs) -> None:
        log.warning("own lease needs other attributes, publishing them", data=attrs.backend_data)
        self._publish(attrs)

    def _publish(self, attrs: LeaseAttrs) -> None:
        """Has it written by another task: while the store is away, the next change is followed."""
        self._wanted = attrs
        self._unpublished.set()

    # The machine

    async def _choose_underlay(self, current: ExternalInterface) -> ExternalInterface:
        found = await self._parts.find_underlay(
            self._config.families,
            prefer=[ip for f in self._config.families if (ip := current.local(f)) is not None],
            public=self._store.wished(),
        )
        return found.interface

    async def _follow_underlay(
        self, current: ExternalInterface, home: ExternalInterface
    ) -> ExternalInterface:
        return await self._parts.follow_underlay(
            self._config.families,
            current=current,
            home=home,
            own=self._lease.key,
            public=self._store.wished(),
        )

    async def _underlay_moved(self, underlay: ExternalInterface) -> None:
        former = self._underlay
        if underlay.mtu != former.mtu:
            log.warning(
                "underlay MTU changed; the device follows, subnet.env and running containers keep "
                "theirs until they are restarted",
                mtu=underlay.mtu,
                former=former.mtu,
            )
        attrs = await self._driver.rebase(underlay, None)
        self._underlay = underlay
        if (underlay.address, underlay.address6) != (former.address, former.address6):
            self._store.reconnect("the external interface has another address")
        self._publish(attrs)

    # Files, rules, config

    def _write_files(self) -> None:
        settings, key = self._settings, self._lease.key
        variables = subnetenv.variables(
            self._config, key, mtu=self._driver.mtu, ip_masq=settings.ip_masq
        )
        self._parts.files.set(
            settings.subnet_file,
            subnetenv.text(variables),
            settings.docker_opts_file,
            docker_options.render(variables, settings.docker_opts_keys),
            settings.cni_conflist,
            partial(conflist, settings.net_config_path),
        )

    async def _keep_dockers_chain(self) -> None:
        """What `pyflannel docker-setup` asks for; nothing without its record."""
        from pyflannel.docker import userchain

        await userchain.keep_accepted(
            self._settings.state_dir,
            lambda: userchain.overlays(self._config, self._lease.key),
            resync_s=self._settings.rules_period_s,
            report=self._docker_trouble.set,
        )

    # Reports

    def config_report(self) -> ConfigReport:
        """The config in force."""
        return self._config_watch.report()

    def store_report(self) -> StoreReport:
        """The store, and who of its nodes is followed."""
        report = self._store.report()
        return replace(
            report,
            peers=len(self._table.peers),
            rejected={**report.rejected, **some_rejections(self._table.rejected)},
            rejected_count=report.rejected_count + len(self._table.rejected),
        )

    def underlay_report(self) -> UnderlayReport | None:
        """The external interface, and what keeps it from being used."""
        trouble = self._follower.trouble
        return underlay_report(self._underlay, trouble.report())

    def lease_report(self) -> LeaseReport:
        """Our lease."""
        lease = self._store.lease or self._lease
        return lease_report(lease, self._store.standing(), self._config.backend_type)

    def network_report(self) -> NetworkReport:
        """The overlay."""
        return self._driver.report()

    def rules_report(self) -> RulesReport:
        """The traffic rules."""
        return self._firewall.report()

    def probe_report(self) -> ProbeReport:
        """The probes of the peers."""
        return self._probing.report()

    def peer_reports(self, *, counted: bool) -> Iterator[PeerReport | None]:
        """As in `Source`."""
        network, backend = self._driver.report(), self._config.backend_type
        for lease in by_subnet(self._table.peers.values()):
            if lease is None:
                yield None
            else:
                view = self._probing.view(lease.key)
                counts = self._driver.peer_counters(lease) if counted else None
                yield peer_report(lease, backend, network, view, counts)

    def with_counts(self, peer: PeerReport) -> PeerReport:
        """As in `Source`."""
        lease = self._table.peers.get(key_of(peer))
        return with_counts(peer, self._driver.peer_counters(lease)) if lease is not None else peer
