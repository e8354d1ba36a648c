"""The daemon's options, as one frozen value, and its flags.

Each option is declared once, with the flag that sets it (`core/flagfields.py`): parsing, usage
text, man pages and shell completion all come from here. How a command line becomes options stands
in `core/commandline.py`.
"""

from __future__ import annotations

from typing import Final

from pyflannel.core.flagfields import flags_of, option, written
from pyflannel.core.kube.options import KUBE_FLAGS, KubernetesOptions
from pyflannel.core.renewal import MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Kind, Mode
from pyflannel.records import dataclass

MIN_RENEW_MARGIN: Final = 1
MAX_RENEW_MARGIN: Final = 1439
"""Minutes; a lease lasts 24 hours, so 1440 would mean to renew without pause."""
ETCD: Final = "etcd-"
"""What the flags of `EtcdOptions` begin with."""
_NO_CLUSTER: Final = KubernetesOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """How to reach etcd; shared by every command that talks to it."""

    endpoints: tuple[str, ...] = option(
        ("http://127.0.0.1:2379",),
        "comma-separated list of etcd endpoints",
        commas=True,
        mode=Mode.ETCD,
        urls=True,
    )
    """As given, split at commas and not trimmed; empty if the text was empty.

    The default leaves out upstream's first endpoint, `http://127.0.0.1:4001`. No etcd since 3.0
    listens there, so any local user may, and would hand us a network config.
    """
    prefix: str = option(
        "/coreos.com/network", "what the keys of flannel start with in etcd", mode=Mode.ETCD
    )
    keyfile: str = option(
        "", "PEM file with the key of the client certificate for etcd", mode=Mode.ETCD
    )
    certfile: str = option("", "PEM file with the client certificate for etcd", mode=Mode.ETCD)
    cafile: str = option(
        "",
        "PEM file with the authorities that may have signed etcd's certificate",
        mode=Mode.ETCD,
    )
    username: str = option("", "user to log in to etcd", mode=Mode.ETCD)
    password: str = option(
        "",
        "password of the etcd user; better given with -etcd-password-file, "
        "for a command line can be read by every user of the machine",
        mode=Mode.ETCD,
        secret=True,
    )
    password_file: str = option(
        "",
        "file that holds the password of the etcd user, in one line; without it systemd's "
        "credential etcd-password is used, if there is one",
        mode=Mode.ETCD,
        ours=True,
    )
    discovery_srv: str = option(
        "",
        "domain whose SRV records (_etcd-client-ssl._tcp, _etcd-client._tcp) name the "
        "endpoints, instead of -etcd-endpoints",
        mode=Mode.ETCD,
        ours=True,
    )
    discovery_srv_name: str = option(
        "",
        "name of the cluster in that domain: _etcd-client-ssl-NAME._tcp",
        mode=Mode.ETCD,
        ours=True,
    )
    insecure_discovery: bool = option(
        True,
        "trust the SRV records: certificates are checked against the names that they give; "
        "with false against the domain, and plain HTTP is not used",
        mode=Mode.ETCD,
        ours=True,
    )

    @property
    def has_secrets(self) -> bool:
        """Whether a password or a private key is among what etcd is reached with."""
        return bool(self.username or self.password or self.password_file or self.keyfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """Every option of `pyflanneld`; names are the flags' with `_` for `-`."""

    etcd: EtcdOptions = EtcdOptions()
    kube_subnet_mgr: bool = option(
        False, "take subnets from the Kubernetes API instead of etcd", mode=Mode.KUBE
    )
    kube: KubernetesOptions = _NO_CLUSTER
    """Nothing but defaults without `kube_subnet_mgr`."""
    iface: tuple[str, ...] = option(
        (),
        "interface (name or IP address) that carries the traffic between nodes; "
        "may be given several times, the first that fits is taken",
    )
    iface_regex: tuple[str, ...] = option(
        (),
        "regular expression for the address or else the name of that interface; "
        "may be given several times, asked after all -iface",
    )
    iface_can_reach: str = option(
        "",
        "take the interface that the kernel would use to reach this IP address; "
        "asked after all -iface and -iface-regex",
    )
    subnet_file: str = option(
        "/run/flannel/subnet.env",
        "file to which subnet, MTU and so on are written as environment variables",
    )
    public_ip: str = option(
        "",
        "IPv4 address under which other nodes reach this one; "
        "without -iface it also selects the interface",
    )
    public_ipv6: str = option("", "IPv6 address under which other nodes reach this one")
    subnet_lease_renew_margin: int = option(
        60,
        "how long before its end the lease is renewed, in minutes, "
        f"{MIN_RENEW_MARGIN} to {MAX_RENEW_MARGIN}",
        mode=Mode.ETCD,
    )
    ip_masq: bool = option(False, "masquerade what leaves the overlay")
    ip_masq_fully_random_disable: bool = option(False, "masquerade without fully random ports")
    healthz_ip: str = option(
        "0.0.0.0",  # noqa: S104 - upstream's default
        "address on which the health server listens",
    )
    healthz_port: int = option(
        0, "port of the health server, 0 for none", convert=lambda port: max(0, port)
    )
    iptables_resync: int = option(
        5, "seconds between two looks at the traffic rules and the blackhole route, at least 1"
    )
    iptables_forward_rules: bool = option(True, "accept the network's traffic in the FORWARD chain")
    ip_blackhole_route: bool = option(False, "keep a blackhole route for this node's subnet")
    v: int = option(
        0,
        "log level: 0 for what belongs in a timeline, 1 and more for each event",
        kind=Kind.LEVEL,
    )
    datapath: str = option(
        "auto",
        "what carries the packets of backend udp",
        ours=True,
        choices=("auto", "python", "native", "ebpf"),
    )
    udp_accept: str = option(
        "peers",
        "whose datagrams backend udp accepts: those of known peers from the backend's port, "
        "from any port (a NAT between the nodes), or from any sender",
        ours=True,
        choices=("peers", "any-port", "any"),
    )
    metrics: bool = option(
        True,
        "answer /metrics on the health port, which tells subnets and public IPs; "
        "false for flannel's 404",
        ours=True,
    )
    allow_extension: bool = option(
        False,
        "accept backend extension from etcd: anyone who may write the network config there "
        "then runs commands on this node, as root",
        ours=True,
    )
    strict_health: bool = option(
        False,
        "/readyz answers 503 as soon as the node does not do its work any more (lease lost, "
        "device or interface down); without, once ready is always ready, as with flanneld",
        ours=True,
    )
    probe_interval: int = option(
        10,
        "seconds between two probes of a peer, an echo through the tunnel and now and then "
        "one beside it; longer where there are more than 20 peers; 0 for none",
        ours=True,
    )
    instance: str = option(
        "",
        "name of this daemon where several run on one node, each for a network of its own "
        "(-etcd-prefix): its files are /run/flannel/NAME/subnet.env and pyflannel.sock beside it, "
        "and /var/lib/pyflannel/NAME; it writes no docker options, unless it is told where",
        ours=True,
    )
    lease_ttl: int = option(
        0,
        "seconds for which the subnet is leased unless it is renewed, "
        f"{MIN_LEASE_TTL_S} to {MAX_LEASE_TTL_S}; 0 for LeaseTTL of the network config",
        mode=Mode.ETCD,
        ours=True,
    )
    release_on_exit: bool = option(
        False,
        "give the subnet back when asked to stop, for nodes that are thrown away; "
        "not at a restart of the unit, not after a failure",
        mode=Mode.ETCD,
        ours=True,
    )
    docker_opts_file: str = option(
        "/run/docker_opts.env",
        "file to which docker's options are written, empty for none",
        ours=True,
    )
    docker_opts_keys: tuple[str, ...] = option(
        ("DOCKER_OPTS",),
        "variables in that file that hold all options, separated by commas",
        commas=True,
        ours=True,
    )
    status_socket: str = option(
        "/run/flannel/pyflannel.sock", "unix socket on which `pyflannel status` asks", ours=True
    )
    status_group: str = option(
        "", "group whose members may ask there without being root", ours=True
    )
    state_dir: str = option(
        "/var/lib/pyflannel", "directory for what must outlive a reboot", ours=True
    )
    static_network: str = option(
        "", "file with the network config and all nodes, instead of etcd", ours=True
    )
    node_name: str = option(
        "",
        "which node of the static network this is, without it the one with our public "
        "address; or of Kubernetes, without it NODE_NAME, or the node of the pod POD_NAME",
        ours=True,
    )
    ready_when: str = option(
        "started",
        "when systemd is told: as soon as packets flow, or not before subnet.env is written",
        ours=True,
        choices=("started", "files"),
    )
    log_format: str = option(
        "auto",
        "how the log looks; auto is text on a terminal and key=value lines elsewhere",
        ours=True,
        choices=("auto", "text", "json"),
    )

    def describe(self) -> str:
        """The options that are not at their defaults, `name=value …`, for the log.

        Secrets are `***`.
        """
        values, defaults = _written(self), _written(_DEFAULTS)
        return " ".join(
            f"{flag.name}={goflag.show(flag, values[flag.name])}"
            for flag in FLAGS
            if flag.name in values and values[flag.name] != defaults[flag.name]
        )


def _written(options: DaemonOptions) -> dict[str, goflag.Value]:
    return {
        **written(options.etcd, ETCD),
        **written(options.kube),
        **written(options),
    }


_DEFAULTS: Final = DaemonOptions()

ETCD_FLAGS: Final = flags_of(EtcdOptions, ETCD)
"""The flags that every command understands that talks to etcd."""

_WITHOUT_OPTION: Final = (
    Flag(
        name="version",
        kind=Kind.BOOL,
        default=False,
        help="print the version and exit",
        mode=Mode.NONE,
        env=False,
    ),
    Flag(
        name="vmodule",
        kind=Kind.STRING,
        default="",
        help="accepted and without effect: log levels per source file of flanneld",
        mode=Mode.NONE,
    ),
    Flag(
        name="log_backtrace_at",
        kind=Kind.STRING,
        default="",
        help="accepted and without effect: a stack trace at a source line of flanneld",
        mode=Mode.NONE,
    ),
)

FLAGS: Final = (
    *ETCD_FLAGS,
    *KUBE_FLAGS,
    *(flag for flag in flags_of(DaemonOptions) if flag.since == "flannel"),
    *_WITHOUT_OPTION,
    *(flag for flag in flags_of(DaemonOptions) if flag.since != "flannel"),
)
"""Every flag of `pyflanneld`."""
