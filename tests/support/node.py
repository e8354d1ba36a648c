"""A whole node over fakes: etcd, kernel, firewall, files and service manager in memory.

Nothing of it takes real time: `advance` lets time pass. The backend is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path

from pyflannel.backend.base import BackendContext
from pyflannel.backend.kinds import KINDS, create
from pyflannel.core import subnetenv
from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.core.ip import Family, IPNetwork, SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.core.options import DaemonOptions
from pyflannel.core.rules import RuleSet
from pyflannel.kernel.base import Address, Delete, Route, Set
from pyflannel.kernel.files import FileContent, FileMissing, FileText
from pyflannel.kernel.lookup import find_interface, follow_interface
from pyflannel.node.agent import Agent, Node
from pyflannel.node.envfiles import EnvFiles, Stamp
from pyflannel.node.parts import Parts, Settings
from pyflannel.node.trouble import Trouble
from pyflannel.report.model import NodeReport
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.systemd import Notifier
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from pyflannel.traffic.base import RulesApplied
from tests.support.echoes import FakeEchoes
from tests.support.overlay import Machine

PREFIX = "/coreos.com/network"
CONFIG = b'{"Network":"10.5.0.0/16","Backend":{"Type":"host-gw"}}'
SUBNET_FILE = Path("/run/flannel/subnet.env")
DOCKER_FILE = Path("/run/docker_opts.env")


class FakeFirewall:
    """A traffic manager that remembers."""

    def __init__(self) -> None:
        self.rules: RuleSet | None = None
        self.removed = 0
        self.failing: FlannelError | None = None

    async def ensure(self, rules: RuleSet, *, previous: RuleSet | None = None) -> RulesApplied:
        if self.failing is not None:
            raise self.failing
        changed, self.rules = self.rules != rules, rules
        return RulesApplied(changed=changed)

    async def changed(self) -> bool:
        await asyncio.Event().wait()
        return True

    def close(self) -> None:
        pass

    async def leftovers(self, ours: Collection[IPNetwork] | None = None) -> list[str]:
        return []

    async def remove(
        self, *, but: RuleSet | None = None, ours: Collection[IPNetwork] | None = None
    ) -> None:
        assert ours is not None, "a running node takes its own rules away, not everybody's"
        self.removed += 1


class FakeManager(Notifier):
    """The service manager: keeps what it was told."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.told: list[str] = []
        self.line = ""
        self.line_at_ready = ""

    def ready(self, status: str = "") -> OSError | None:
        self.told.append("READY")
        self.line_at_ready = status
        return None

    def status(self, text: str) -> OSError | None:
        self.line = text
        return None

    def extend_timeout(self, usec: int) -> OSError | None:
        self.told.append("EXTEND")
        return None


class Files:
    """A directory in memory that may be full."""

    def __init__(self) -> None:
        self.content: dict[Path, bytes] = {}
        self.full = False

    def write(self, path: Path, content: bytes) -> None:
        if self.full:
            raise KernelError("write", str(path), 28)
        self.content[path] = content

    def read(self, path: Path) -> FileContent:
        if path not in self.content:
            return FileMissing()
        return FileText(self.content[path].decode(), whole=True)

    def stamp(self, path: Path) -> Stamp | None:
        content = self.content.get(path)
        return (0, len(content), hash(content)) if content is not None else None

    def remove(self, path: Path) -> None:
        del self.content[path]


class WholeNode:
    """One node, from its start to its end."""

    def __init__(
        self,
        state_dir: Path,
        *,
        etcd: FakeEtcd | None = None,
        config: bytes | None = CONFIG,
        ready_when_files: bool = False,
        ip_masq: bool = True,
        release_on_exit: bool = False,
        probe_interval_s: float = 0.0,
        left: Mapping[Path, bytes] | None = None,
    ) -> None:
        self.etcd = etcd if etcd is not None else FakeEtcd(FakeClock())
        self.clock = self.etcd.clock
        if config is not None:
            self.put_config(config)
        self.machine = Machine()
        self.netlink = self.machine.netlink
        eth0 = self.machine.eth0
        gateway = IPv4Address("192.0.2.254")
        default = Route(dst=IPv4Network("0.0.0.0/0"), gateway=gateway, oif=eth0.index)
        default6 = Route(
            dst=IPv6Network("::/0"), gateway=IPv6Address("2001:db8::254"), oif=eth0.index
        )
        self.netlink.meddle(Set(default), Set(default6))
        self.store = FakeStore(self.etcd)
        self.manager = FakeManager()
        self.files = Files()
        self.files.content.update(left or {})
        former = subnetenv.parse(self.subnet_env)
        self.announced: list[str] = []
        self.restarting = False
        self.echoes = FakeEchoes(self.clock)
        self.firewall, self.other_firewall = FakeFirewall(), FakeFirewall()
        options = DaemonOptions(state_dir=str(state_dir))
        waiting = Trouble(self.clock)
        self.lease_store = EtcdLeaseStore(
            self.store,
            PREFIX,
            clock=self.clock,
            kinds=KINDS,
            record=LeaseRecord(str(state_dir), PREFIX),
            rng=random.Random(1),
            previous=former.previous_subnet,
            tell=waiting.set,
        )
        self.agent = Agent(
            Parts(
                store=self.lease_store,
                netlink=self.netlink,
                find_underlay=partial(find_interface, self.netlink, options, ours=KINDS.is_device),
                follow_underlay=partial(
                    follow_interface, self.netlink, options, ours=KINDS.is_device
                ),
                announce=lambda underlay: self.announced.append(underlay.mac),
                kinds=KINDS,
                backend=lambda config, underlay, prescribed, held: create(
                    BackendContext(
                        config=config,
                        underlay=underlay,
                        prescribed=prescribed,
                        netlink=self.netlink,
                        state_dir=str(state_dir),
                    )
                ),
                firewall=lambda _: (self.firewall, self.other_firewall),
                files=EnvFiles(self.clock, self.files),
                clock=self.clock,
                notifier=self.manager,
                former=former,
                waiting=waiting,
                is_restart=self._is_restart,
                open_echoes=lambda _family: self.echoes,
            ),
            Settings(
                subnet_file=str(SUBNET_FILE),
                docker_opts_file=str(DOCKER_FILE),
                ip_masq=ip_masq,
                ready_when_files=ready_when_files,
                state_dir=str(state_dir),
                release_on_exit=release_on_exit,
                probe_interval_s=probe_interval_s,
            ),
        )
        self.stack = contextlib.AsyncExitStack()
        self.task: asyncio.Task[None] | None = None

    async def _is_restart(self) -> bool:
        return self.restarting

    def put_config(self, text: bytes) -> None:
        self.etcd.put(codec.config_key(PREFIX), text)

    def put_peer(self, number: int, address: str = "") -> None:
        """Another node's lease, for a day."""
        key = SubnetKey(IPv4Network(f"10.5.{number}.0/24"))
        attrs = LeaseAttrs(
            public_ip=IPv4Address(address or f"192.0.2.{number}"), backend_type="host-gw"
        )
        self.etcd.put(
            codec.lease_key(PREFIX, key), codec.encode_attrs(attrs), lease=self.etcd.grant(86_400)
        )

    async def _run(self) -> None:
        async with self.stack:
            node: Node = await self.agent.start(self.stack)
            await self.agent.run(node)

    async def start(self) -> None:
        """Begins; how far it gets depends on what is there."""
        self.task = asyncio.create_task(self._run(), name="node")
        await self.advance(0)

    async def advance(self, seconds: float) -> None:
        """Lets time pass. Raises what the node has raised meanwhile."""
        await self.clock.advance(seconds)
        if self.task is not None and self.task.done():
            self.task.result()

    async def stop(self) -> None:
        """As SIGTERM does."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)
        await self.lease_store.close()
        await settle()

    def report(self) -> NodeReport:
        peers = [peer for peer in self.agent.peer_reports() if peer is not None]
        return replace(self.agent.report(), peers=peers)

    @property
    def subnet(self) -> str:
        """Of our lease."""
        lease = self.report().lease
        return (lease.subnet or "") if lease is not None else ""

    @property
    def subnet_env(self) -> str:
        return self.files.content.get(SUBNET_FILE, b"").decode()

    async def routes(self) -> dict[str, str]:
        """Peer routes: destination to gateway."""
        found = await self.netlink.routes(Family.V4)
        network = IPv4Network("10.5.0.0/16")
        return {
            str(route.dst): str(route.gateway)
            for route in found
            if isinstance(route.dst, IPv4Network) and route.dst.subnet_of(network)
        }

    def lose_own_key(self) -> None:
        lease = self.lease_store.lease
        assert lease is not None
        self.etcd.delete(codec.lease_key(PREFIX, lease.key))

    def take_own_key(self, address: str) -> None:
        """Another node writes its address to our key."""
        lease = self.lease_store.lease
        assert lease is not None
        attrs = LeaseAttrs(public_ip=IPv4Address(address), backend_type="host-gw")
        self.etcd.put(
            codec.lease_key(PREFIX, lease.key),
            codec.encode_attrs(attrs),
            lease=self.etcd.grant(86_400),
        )

    def readdress(self, address: str) -> None:
        """The machine gets another underlay address, as from DHCP."""
        index = self.machine.eth0.index
        old, new = IPv4Interface("192.0.2.1/24"), IPv4Interface(address)
        # In this order: with a first address of a prefix go the others of it.
        self.netlink.meddle(Delete(Address(index=index, interface=old)))
        self.netlink.meddle(Set(Address(index=index, interface=new)))
        gateway = IPv4Address("192.0.2.254")
        default = Route(dst=IPv4Network("0.0.0.0/0"), gateway=gateway, oif=index)
        self.netlink.meddle(Set(default))

    def forget(self, route: Route) -> None:
        self.netlink.meddle(Delete(route))


@contextlib.asynccontextmanager
async def whole_node(state_dir: Path, **options: object) -> AsyncIterator[WholeNode]:
    """A node that is started, and ended in any case."""
    node = WholeNode(state_dir, **options)  # type: ignore[arg-type] - handed through
    try:
        await node.start()
        yield node
    finally:
        await node.stop()
