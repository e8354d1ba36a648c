"""What an agent is built from, what it was told, and what its start finds: values and seams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Protocol

from pyflannel.aio.clock import Clock
from pyflannel.backend.base import Backend, Network
from pyflannel.core import rules, subnetenv
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, IPAddress, SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.options import DaemonOptions
from pyflannel.core.rules import RuleSet
from pyflannel.core.underlay import ExternalInterface, Selection
from pyflannel.docker import options as docker_options
from pyflannel.kernel.base import Netlink
from pyflannel.node.envfiles import EnvFiles
from pyflannel.node.firewall import Firewall
from pyflannel.node.trouble import Trouble
from pyflannel.probe.checksums import LostChecksums
from pyflannel.records import dataclass
from pyflannel.store.base import LeaseStore
from pyflannel.systemd import Notifier
from pyflannel.traffic.base import TrafficManager

if TYPE_CHECKING:
    from pyflannel.probe.checksums import Knocks
    from pyflannel.probe.prober import Echoes


class FindUnderlay(Protocol):
    """Chooses the external interface at the start; see `kernel.lookup.find_interface`."""

    async def __call__(
        self,
        families: Sequence[Family],
        /,
        *,
        prefer: Sequence[IPAddress],
        public: Collection[IPAddress],
    ) -> Selection:
        """The interface; raises `InterfaceError` if nothing fits."""
        ...


class FollowUnderlay(Protocol):
    """Decides what carries the overlay from now on; see `kernel.lookup.follow_interface`."""

    async def __call__(
        self,
        families: Sequence[Family],
        /,
        *,
        current: ExternalInterface,
        home: ExternalInterface,
        own: SubnetKey | None,
        public: Collection[IPAddress],
    ) -> ExternalInterface:
        """The interface; raises `InterfaceError` if nothing can be used now."""
        ...


class MakeBackend(Protocol):
    """Makes the backend that the config asks for."""

    def __call__(
        self,
        config: NetworkConfig,
        underlay: ExternalInterface,
        prescribed: LeaseAttrs | None,
        held: Callable[[], None],
        /,
    ) -> Backend:
        """The backend; `prescribed` and `held` as in `BackendContext`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator chose, as far as it concerns the agent."""

    subnet_file: str
    docker_opts_file: str = ""
    """Empty for none."""
    docker_opts_keys: Sequence[str] = (docker_options.DOCKER_OPTS,)
    allow_extension: bool = False
    """Whether a config from etcd may make this node run its commands."""
    ip_masq: bool = False
    forward_rules: bool = True
    blackhole: bool = False
    """Keep a blackhole route for our subnet."""
    rules_period_s: float = 5.0
    """Seconds between two looks at rules and routes whose changes are not announced."""
    state_dir: str = ""
    """Where word is left that must outlive a reboot."""
    ready_when_files: bool = False
    """READY waits for the environment files, too."""
    probe_interval_s: float = 0.0
    """Between two probes of a peer; 0 for none."""
    has_pods: bool = False
    """Whether the node's containers are Kubernetes' pods, on the bridge of its CNI plugin."""
    cni_conflist: str = ""
    """Where the configuration for CNI is written, after `subnet.env`; empty for nowhere."""
    net_config_path: str = ""
    """Of Kubernetes' network config; what is written for CNI stands beside it."""
    release_on_exit: bool = False
    """Give the subnet back at an orderly end that is no restart."""

    def traffic_rules(self, config: NetworkConfig, key: SubnetKey) -> RuleSet:
        """The rules of a node with this subnet."""
        return rules.build(config, key, ip_masq=self.ip_masq, forward=self.forward_rules)

    @classmethod
    def of(cls, options: DaemonOptions) -> Settings:
        """What the command line says."""
        return cls(
            subnet_file=options.subnet_file,
            docker_opts_file=options.docker_opts_file,
            docker_opts_keys=options.docker_opts_keys,
            allow_extension=options.allow_extension,
            ip_masq=options.ip_masq,
            forward_rules=options.iptables_forward_rules,
            blackhole=options.ip_blackhole_route,
            rules_period_s=float(options.iptables_resync),
            state_dir=options.state_dir,
            ready_when_files=options.ready_when == "files",
            probe_interval_s=float(options.probe_interval),
            release_on_exit=options.release_on_exit,
            has_pods=options.kube_subnet_mgr,
            cni_conflist=options.kube.cni_conflist,
            net_config_path=options.kube.net_config_path,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What an agent is built from."""

    store: LeaseStore
    kinds: Kinds
    netlink: Netlink
    find_underlay: FindUnderlay
    follow_underlay: FollowUnderlay
    backend: MakeBackend
    announce: Callable[[ExternalInterface], None]
    """Tells the neighbours on the underlay that the interface has another MAC."""
    firewall: Callable[[NetworkConfig], tuple[TrafficManager, TrafficManager]]
    """The traffic manager in use, and the one whose rules have to go."""
    files: EnvFiles
    clock: Clock
    notifier: Notifier
    former: subnetenv.SubnetEnv = field(default_factory=subnetenv.SubnetEnv)
    """What a former run left in `subnet.env`."""
    waiting: Trouble
    """What the store waits for; the store's `tell` sets it."""
    is_restart: Callable[[], Awaitable[bool]]
    """Whether we are stopped only to be started again; see `node.restart`."""
    open_echoes: Callable[[Family], Echoes] | None = None
    """Gives the edge of the probes; without one no peer is probed."""
    open_knock: Callable[[IPAddress], Knocks] | None = None
    """Gives the edge of the probe of checksums."""
    checksums: LostChecksums = field(default_factory=LostChecksums)
    """What that has found; the backend reads it."""
    attached: Callable[[], None] = lambda: None
    """Called when the backend has taken what it can use of a former run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """What is known once the node is up."""

    config: NetworkConfig
    underlay: ExternalInterface
    lease: Lease
    network: Network
    firewall: Firewall
    """Its rules are in place, or it has told why not."""
    wishes: Collection[IPAddress] = ()
    """The public addresses that the underlay was chosen for."""
