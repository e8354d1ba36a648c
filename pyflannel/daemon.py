"""The composition root: builds everything, in upstream's order of start, and takes it down again.

No policy of its own. The order, which operators and scripts rely on:

1. options, the lock on `subnet.env`, the health server;
2. the network config, waited for as long as it takes;
3. the external interface;
4. the backend: device, *lease*, addresses;
5. traffic rules (they need the old `subnet.env`), then `subnet.env` and `docker_opts.env`;
6. `READY=1` (with `--ready-when=files` not before the files are there); then one task for each
   thing that goes on.

What is not needed to be ready (aiohttp for the watch, the status socket) is imported after that,
when the first leases are programmed, and in a thread, so that packets flow meanwhile. A stop is
honoured at every point of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import pyflannel
from pyflannel import logs
from pyflannel.aio.clock import SystemClock
from pyflannel.aio.tasks import finish, forever
from pyflannel.api.status import StatusBoard
from pyflannel.backend import registry
from pyflannel.backend.base import BackendContext, Network
from pyflannel.backend.driver import Driver
from pyflannel.core import rules, subnetenv
from pyflannel.core.config import NetworkConfig, effective, parse_network_config
from pyflannel.core.errors import KernelError, StoreDenied, StoreError
from pyflannel.core.ip import Family
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseTable, Snapshot
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import ExternalInterface
from pyflannel.docker import options as docker_options
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
from pyflannel.kernel.lock import SingleInstance, upstream_daemons
from pyflannel.kernel.lookup import find_interface
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.logs import get_logger
from pyflannel.node import process
from pyflannel.node.envfiles import EnvFiles
from pyflannel.node.follow import UnderlayFollower
from pyflannel.node.patience import while_starting
from pyflannel.store.etcd.manager import EtcdSubnetManager, log_problems
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.store.record import LeaseRecord
from pyflannel.systemd import FdStore, Notifier, watchdog_interval_s

if TYPE_CHECKING:
    from pyflannel.node.firewall import Firewall

log = get_logger(__name__)

STATUS_DELAY_S: Final = 0.5
"""How long a start may take before the status socket is made all the same; a start with everything
at hand takes 0.3 s."""
PROGRAM_FIRST_S: Final = 1.0
"""How long what can wait does so for the first leases to be programmed: the imports for the watches
and the status server, and the clean-up after the other traffic manager, slow that down to half."""
STATUS_END_S: Final = 1.0
"""For the status socket to close: requests in flight are answered in milliseconds."""
BRIDGE_SYSCTL: Final = {
    Family.V4: Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    Family.V6: Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
}


def run_daemon(options: DaemonOptions, warnings: Sequence[str]) -> int:
    """Runs until asked to stop; returns the exit code.

    Raises:
        FlannelError: it could not start, or could not go on; carries its exit code.
    """
    logs.set_up(options.log_format, verbosity=options.v)
    for warning in warnings:
        log.warning(warning)
    try:
        return process.run(Daemon(options).run)
    except BaseExceptionGroup as group:
        raise _first_cause(group) from group


def _first_cause(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Daemon:
    """One node's agent. `run` is called once."""

    def __init__(self, options: DaemonOptions) -> None:
        self._options = options
        self.board = StatusBoard()
        self._notifier = Notifier.from_environment()
        self._fd_store = FdStore.from_environment()
        self._files = EnvFiles(self.board)
        self._store: EtcdStore
        self._manager: EtcdSubnetManager
        self._config: NetworkConfig
        self._netlink: KernelNetlink
        self._underlay: ExternalInterface
        self._network: Network
        self._driver: Driver
        self._table: LeaseTable
        self._follower: UnderlayFollower
        self._firewall: Firewall | None = None
        self._unpublished = asyncio.Event()
        self._started = asyncio.Event()
        self._programmed = asyncio.Event()
        self._late = False
        self._status: asyncio.Task[NoReturn] | None = None

    async def run(self) -> None:
        """Starts, serves, and when cancelled takes down what does not outlive the daemon."""
        log.info(
            "pyflanneld starts",
            version=pyflannel.__version__,
            pid=os.getpid(),
            options=self._options.describe(),
        )
        async with contextlib.AsyncExitStack() as stack:
            async with while_starting(self._notifier):
                await self._start(stack)
            self._started.set()
            self._late = self._options.ready_when == "files" and not self._files.complete.is_set()
            if not self._late:
                self._announce()
            gc.collect()
            gc.freeze()  # what was made so far stays; later collections need not look at it
            await self._serve()

    def _announce(self) -> None:
        self._notifier.ready()
        missing = f", waiting: {self._files.failures}" if not self._files.complete.is_set() else ""
        self._phase(f"running with subnet {self._lease.key.describe()}{missing}")
        log.info("running, but subnet.env is missing" if missing else "flannel is ready")

    async def _announce_late(self) -> None:
        """Carries packets meanwhile; but whoever starts after us does so for the files."""
        self._phase(f"subnet {self._lease.key.describe()}, waiting: {self._files.failures}")
        async with while_starting(self._notifier):
            await self._files.complete.wait()
        self._announce()

    @property
    def _lease(self) -> Lease:
        lease = self._manager.lease
        assert lease is not None  # noqa: S101 - only used after acquire
        return lease

    # Start

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        options = self._options
        _take_lock(SingleInstance(options.subnet_file), stack)
        for pid in upstream_daemons():
            # Not refused: it may be about to end, and which of the two shall go is not ours to say.
            log.warning("flanneld runs on this node too; two daemons fight, stop one", pid=pid)
        if options.status_socket:
            self._status = asyncio.create_task(self._serve_status(), name="status socket")
            stack.push_async_callback(finish, self._status, within=STATUS_END_S)
        if options.healthz_port > 0:
            from pyflannel.api.app import serve_health

            health = await serve_health(self.board, options.healthz_ip, options.healthz_port)
            stack.push_async_callback(health.cleanup)
        former = _former_files(options.subnet_file)
        self._make_manager(former, stack)
        self._config = await self._manager.network_config()
        self.board.config = effective(self._config)
        log.info(f"Found network config - Backend type: {self._config.backend_type}")
        self._warn_about_bridges()
        self._netlink = KernelNetlink()
        stack.push_async_callback(self._netlink.close)
        self._underlay = await self._select_underlay(say=True)
        self._network = await self._attach()
        stack.push_async_callback(self._network.detach)
        self._follower = UnderlayFollower(
            self._underlay, self._select_underlay, self._underlay_moved, self.board
        )
        self._driver = Driver(
            self._network,
            self._netlink,
            attrs_changed=self._attrs_changed,
            observe=self._follower.notice,
        )
        await self._start_firewall(former, stack)
        self._write_files()

    def _make_manager(self, former: subnetenv.SubnetEnv, stack: contextlib.AsyncExitStack) -> None:
        options = self._options
        self._store = EtcdStore(options.etcd)
        stack.push_async_callback(self._store.close)
        previous = former.previous_subnet
        self._manager = EtcdSubnetManager(
            self._store,
            options.etcd.prefix,
            clock=SystemClock(),
            record=LeaseRecord(options.state_dir, options.etcd.prefix),
            previous=previous,
            renew_margin_s=options.subnet_lease_renew_margin * 60.0,
            report=self._waiting,
        )
        log.info(
            "Created subnet manager: Etcd Local Manager with Previous Subnet: "
            f"{previous.describe() if previous is not None else 'None'}",
            endpoints=self._store.describe(),
            prefix=options.etcd.prefix,
        )

    async def _select_underlay(self, *, say: bool = False) -> ExternalInterface:
        found = await find_interface(self._netlink, self._options, self._config.families)
        chosen = found.interface
        if say:
            address = chosen.address if chosen.address is not None else chosen.address6
            log.info(
                f"Using interface with name {chosen.name} and address {address}",
                choice=found.describe(),
            )
        self.board.underlay = {
            "interface": chosen.name,
            "index": chosen.index,
            "mtu": chosen.mtu,
            "address": _text(chosen.address),
            "address6": _text(chosen.address6),
            "public_ip": _text(chosen.public_ip),
            "public_ipv6": _text(chosen.public_ipv6),
        }
        return chosen

    async def _attach(self) -> Network:
        config = self._config
        context = BackendContext(
            config=config,
            options=self._options,
            underlay=self._underlay,
            netlink=self._netlink,
            fd_store=self._fd_store,
        )
        backend = registry.create(config.backend_type, context)
        addresses = LeaseAttrs(
            public_ip=self._underlay.public_ip, public_ipv6=self._underlay.public_ipv6
        )
        attrs = await backend.prepare(await self._former_attrs(addresses))
        if config.enable_ipv4:
            log.info(f"Picking subnet in range {config.subnet_min} ... {config.subnet_max}")
        lease = await self._manager.acquire(attrs)
        self._table = LeaseTable(network=config.network, network6=config.ipv6_network)
        self._table.set_own(lease.key)
        self._show_lease()
        network = await backend.attach(lease)
        self._fd_store.drop_rest()
        return network

    async def _former_attrs(self, addresses: LeaseAttrs) -> LeaseAttrs | None:
        """What we published before our restart; `None` if the store cannot tell just now."""
        try:
            return await self._manager.previous(addresses)
        except StoreDenied:
            raise
        except StoreError as error:
            log.warning("former lease not looked up", error=error)
            return None

    async def _start_firewall(
        self, former: subnetenv.SubnetEnv, stack: contextlib.AsyncExitStack
    ) -> None:
        from pyflannel.node.firewall import Firewall
        from pyflannel.traffic import select

        manager, other = select.managers(self._config, self._options)
        stack.callback(manager.close)
        self._firewall = Firewall(manager, other, self._rules(), self.board)
        self.board.sources["rules"] = self._firewall.status
        await self._firewall.ensure(previous=select.former_rules(self._config, former))

    def _rules(self) -> rules.RuleSet:
        return rules.build(
            self._config,
            self._lease.key,
            ip_masq=self._options.ip_masq,
            forward=self._options.iptables_forward_rules,
        )

    def _write_files(self) -> None:
        options, key = self._options, self._lease.key
        mtu, ip_masq = self._network.mtu, options.ip_masq
        self._files.set(
            options.subnet_file,
            subnetenv.render(self._config, key, mtu=mtu, ip_masq=ip_masq),
            options.docker_opts_file,
            docker_options.render(
                subnetenv.variables(self._config, key, mtu=mtu, ip_masq=ip_masq),
                options.docker_opts_keys,
            ),
        )

    def _warn_about_bridges(self) -> None:
        """Upstream refuses to start without br_netfilter; most set-ups never needed it."""
        if self._config.enable_nftables:
            return
        for family in self._config.families:
            if not BRIDGE_SYSCTL[family].exists():
                log.warning(
                    "br_netfilter is not loaded: rules do not see traffic between containers of "
                    "one bridge",
                    missing=BRIDGE_SYSCTL[family],
                    remedy="modprobe br_netfilter, if such traffic must pass the firewall",
                )

    # Running

    async def _serve(self) -> None:
        self.board.sources |= {"network": self._driver.status, "etcd": self._etcd_status}
        log.info("Running backend.")
        async with asyncio.TaskGroup() as group:
            if self._late:
                group.create_task(self._announce_late(), name="ready")
            forever(group, "driver", self._driver.run())
            forever(group, "leases", self._watch_leases())
            forever(group, "own lease", self._keep_lease())
            forever(group, "environment files", self._files.guard())
            forever(group, "underlay", self._follower.run())
            forever(group, "own attributes", self._republish())
            if self._firewall is not None:
                forever(group, "traffic rules", self._later(self._firewall.keep))
            if self._options.ip_blackhole_route:
                from pyflannel.node.blackhole import keep_blackhole

                period = float(self._options.iptables_resync)
                work = keep_blackhole(self._netlink, lambda: self._lease.key, period)
                forever(group, "blackhole route", work)
            if (interval := watchdog_interval_s()) is not None:
                forever(group, "watchdog", self._feed_watchdog(interval))
            forever(group, "network config", self._later(self._watch_config))
            if self._status is not None:
                forever(group, "status socket", asyncio.shield(self._status))

    async def _watch_leases(self) -> None:
        log.info("Watching for new subnet leases")
        async for update in self._manager.watch_leases():
            events = self._table.apply(update)
            if events:
                self._driver.submit(events)
            if isinstance(update, Snapshot):
                self._driver.synced()
                if not self._programmed.is_set():
                    # What comes next imports the watch's library. Its watch begins at the snapshot.
                    await _within(PROGRAM_FIRST_S, self._driver.settled())
                    self._programmed.set()
            for key, reason in self._table.new_rejections():
                log.warning("lease is not followed", subnet=key.describe(), reason=reason)

    async def _later(self, work: Callable[[], Awaitable[None]]) -> None:
        """Does some work when the first leases are programmed, or that takes too long."""
        await _within(PROGRAM_FIRST_S, self._programmed.wait())
        await work()

    async def _keep_lease(self) -> None:
        async for lease in self._manager.keep():
            self._driver.submit(self._table.set_own(lease.key))
            attrs = await self._driver.rebase(self._underlay, lease)
            self._show_lease()
            if self._firewall is not None:
                await self._firewall.replace(self._rules())
            self._write_files()
            self._phase(f"running with subnet {lease.key.describe()}")
            if attrs != lease.attrs:
                await self._manager.publish(attrs)

    async def _underlay_moved(self, underlay: ExternalInterface) -> None:
        if underlay.mtu != self._underlay.mtu:
            log.warning(
                "underlay MTU changed; the device follows, subnet.env and running containers keep "
                "theirs until they are restarted",
                mtu=underlay.mtu,
                former=self._underlay.mtu,
            )
        moved = (underlay.address, underlay.address6) != (
            self._underlay.address,
            self._underlay.address6,
        )
        await self._driver.rebase(underlay, None)
        self._underlay = underlay
        if moved:
            self._store.reconnect("the external interface has another address")
        # By another task: while etcd is away, the next change must be followed all the same.
        self._unpublished.set()

    async def _republish(self) -> None:
        """Publishes what the backend wants in the lease when that has changed."""
        while True:
            await self._unpublished.wait()
            self._unpublished.clear()
            await self._manager.publish(self._network.own_attrs())
            self._show_lease()

    def _attrs_changed(self, attrs: LeaseAttrs) -> None:
        log.warning("own lease needs other attributes, publishing them", data=attrs.backend_data)
        self._unpublished.set()

    async def _watch_config(self) -> None:
        key = f"{self._options.etcd.prefix}/config"
        async for raw in self._manager.watch_config():
            if raw is None:
                log.error(
                    "network config was deleted from etcd; going on with the old one", key=key
                )
                self.board.problem("network config", f"{key} was deleted")
                continue
            parsed = parse_network_config(raw)
            if parsed.config is None:
                log.error("network config in etcd is wrong now; going on with the old one", key=key)
                log_problems(parsed.problems, key)
                self.board.problem("network config", parsed.errors[0].message)
            elif parsed.config != self._config:
                log.warning("network config changed in etcd; it takes effect at a restart", key=key)
                self.board.problem("network config", "changed; restart to use it")
            else:
                self.board.problem("network config", "")

    async def _serve_status(self) -> NoReturn:
        # Not on the way to readiness, which it would delay; but a start that takes long (it waits
        # for etcd) must be able to tell why.
        await _within(STATUS_DELAY_S, self._started.wait())
        if self._started.is_set():
            await _within(PROGRAM_FIRST_S, self._programmed.wait())
        app = await asyncio.to_thread(__import__, "pyflannel.api.app", fromlist=["app"])
        await app.keep_status(self.board, self._options.status_socket)
        raise AssertionError("an endless task ended")

    async def _feed_watchdog(self, interval_s: float) -> None:
        """Tells systemd that the event loop turns."""
        while True:
            self._notifier.watchdog()
            await asyncio.sleep(interval_s)

    # Telling

    def _waiting(self, what: str) -> None:
        self.board.waiting_for = what
        if what:
            self._phase(what)
        elif self.board.ready:
            self._phase(f"running with subnet {self._lease.key.describe()}")

    def _phase(self, text: str) -> None:
        self.board.phase = text
        self._notifier.status(text)

    def _show_lease(self) -> None:
        lease = self._lease
        self.board.lease = {
            "subnet": _text(lease.key.v4),
            "ipv6_subnet": _text(lease.key.v6),
            "public_ip": _text(lease.attrs.public_ip),
            "public_ipv6": _text(lease.attrs.public_ipv6),
            "backend": self._config.backend_type,
            "expires": lease.expires,
            "reservation": lease.is_reservation,
        }

    def _etcd_status(self) -> dict[str, object]:
        feed = self._manager.feed
        return {
            "endpoints": self._store.describe(),
            "connected": feed.connected,
            "revision": feed.revision,
            "snapshots": feed.snapshots,
            "reconnects": feed.reconnects,
            "peers": len(self._table.peers),
            "rejected": {k.describe(): why for k, why in self._table.rejected.items()},
        }


async def _within(seconds: float, work: Awaitable[object]) -> None:
    """Waits for something, but no longer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work


def _take_lock(lock: SingleInstance, stack: contextlib.AsyncExitStack) -> None:
    """Makes sure that we are the only daemon that writes this `subnet.env`.

    A directory that cannot be written is no reason to stop: packets can flow all the same.

    Raises:
        DeviceUnavailable: another daemon has it.
    """
    try:
        lock.acquire()
    except KernelError as error:
        if error.errno == errno.EWOULDBLOCK:
            raise
        log.warning(f"cannot tell whether another daemon runs here: {error}")
    else:
        stack.callback(lock.release)


def _former_files(path: str) -> subnetenv.SubnetEnv:
    """What a former run left in `subnet.env`; whatever is wrong with it is said and passed over."""
    content = read_text_if_exists(path)
    if isinstance(content, FileUnreadable):
        log.warning(f"former subnet file not usable, going on without: {content.reason}")
    former = subnetenv.parse(content.text if isinstance(content, FileText) else "")
    for reason in former.skipped:
        log.warning("former subnet file", path=path, reason=reason)
    return former


def _text(value: object) -> str | None:
    return None if value is None else str(value)
