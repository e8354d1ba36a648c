"""The daemon's options: flags in Go's syntax and `FLANNELD_*` variables, as one frozen value.

`FLAGS` is the one list of flags: parsing, usage text, man pages and shell completion all come from
it. `parse_daemon` goes the way upstream goes (command line, then `-version`, then environment, then
checks), and differs where upstream is silent: a word that is not looked at, a variable that is not
used, and a flag without effect are warnings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from typing import Final

from pyflannel.core.errors import ConfigError, UsageError
from pyflannel.core.ip import parse_ipv4, parse_ipv6
from pyflannel.core.kube.options import (
    KUBE_FLAGS,
    KubernetesOptions,
    kubernetes_errors,
    kubernetes_options,
    kubernetes_warnings,
)
from pyflannel.core.renewal import MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Flags, Kind, Mode
from pyflannel.records import dataclass

MIN_RENEW_MARGIN: Final = 1
MAX_RENEW_MARGIN: Final = 1439
"""Minutes; a lease lasts 24 hours, so 1440 would mean to renew without pause."""
MAX_PORT: Final = 0xFFFF
MAX_PROBE_INTERVAL_S: Final = 3600
"""A peer that is asked less often might as well not be asked."""
_NO_CLUSTER: Final = KubernetesOptions()

_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
"""Part of a path, and of a unit's name."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """How to reach etcd; shared by every command that talks to it."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    """As given, split at commas and not trimmed; empty if the text was empty.

    The default leaves out upstream's first endpoint, `http://127.0.0.1:4001`. No etcd since 3.0
    listens there, so any local user may, and would hand us a network config.
    """
    prefix: str = "/coreos.com/network"
    keyfile: str = ""
    certfile: str = ""
    cafile: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    password_file: str = ""
    """File whose one line is the password; empty for none."""
    discovery_srv: str = ""
    """Domain whose SRV records name the endpoints; empty for none."""
    discovery_srv_name: str = ""
    """Of the cluster, where the domain has several; empty for the only one."""
    insecure_discovery: bool = True
    """Whether the records are trusted: with the names of the members, and with plain HTTP."""

    @property
    def has_secrets(self) -> bool:
        """Whether a password or a private key is among what etcd is reached with."""
        return bool(self.username or self.password or self.password_file or self.keyfile)


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """Every option of `pyflanneld`; names are the flags' with `_` for `-`."""

    etcd: EtcdOptions = EtcdOptions()
    iface: tuple[str, ...] = ()
    iface_regex: tuple[str, ...] = ()
    iface_can_reach: str = ""
    subnet_file: str = "/run/flannel/subnet.env"
    public_ip: str = ""
    """An IPv4 address or empty."""
    public_ipv6: str = ""
    """An IPv6 address or empty."""
    subnet_lease_renew_margin: int = 60
    """Minutes, 1 to 1439."""
    lease_ttl: int = 0
    """Seconds, 0 for what the network config says."""
    release_on_exit: bool = False
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    kube_subnet_mgr: bool = False
    kube: KubernetesOptions = _NO_CLUSTER
    """Nothing but defaults without `kube_subnet_mgr`."""
    healthz_ip: str = "0.0.0.0"  # noqa: S104 - upstream's default
    healthz_port: int = 0
    """0 for no health server."""
    iptables_resync: int = 5
    """Seconds, at least 1."""
    iptables_forward_rules: bool = True
    ip_blackhole_route: bool = False
    v: int = 0
    datapath: str = "auto"
    udp_accept: str = "peers"
    instance: str = ""
    """Which of several daemons on a node this is; changes the defaults of its files."""
    docker_opts_file: str = "/run/docker_opts.env"
    """Empty for none."""
    docker_opts_keys: tuple[str, ...] = ("DOCKER_OPTS",)
    """Names of the variables in it that hold all options."""
    status_socket: str = "/run/flannel/pyflannel.sock"
    status_group: str = ""
    """Group that may ask there as well; empty for root alone."""
    state_dir: str = "/var/lib/pyflannel"
    static_network: str = ""
    """A static network file instead of etcd; empty for none."""
    node_name: str = ""
    """Which of its nodes we are; empty to go by our public address."""
    log_format: str = "auto"
    metrics: bool = True
    """Whether the health port answers `/metrics`."""
    strict_health: bool = False
    """Whether `/readyz` goes back when the node does not do its work any more."""
    probe_interval: int = 10
    """Seconds between two probes of a peer where there are few; 0 for none."""
    allow_extension: bool = False
    """Whether a network config from etcd may have backend extension, which runs its commands."""
    ready_when: str = "started"
    """When the service manager is told: as upstream, or with the files only."""

    def describe(self) -> str:
        """The options that are not at their defaults, `name=value …`, for the log.

        Secrets are `***`.
        """
        values = _values_of(self)
        defaults = _values_of(_DEFAULTS)
        values = {name: value for name, value in values.items() if value != defaults[name]}
        return " ".join(
            f"{flag.name}={goflag.show(flag, values[flag.name])}"
            for flag in FLAGS
            if flag.name in values
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDaemon:
    """The command line asks for a daemon."""

    options: DaemonOptions
    warnings: tuple[str, ...] = ()
    """What the operator should know although we go on: ignored words and variables."""


@dataclass(frozen=True, slots=True)
class ShowVersion:
    """The command line asks for the version, on stderr."""


@dataclass(frozen=True, slots=True)
class ShowHelp:
    """The command line asks for the usage text, on stderr."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdCommand:
    """The etcd part of another command's line."""

    options: EtcdOptions
    rest: tuple[str, ...]
    """All words that are no etcd flags, in order, for the command's own parser."""
    warnings: tuple[str, ...] = ()
    endpoints_given: bool = False
    """Whether it is said where etcd is."""


_DEFAULTS: Final = DaemonOptions()

ETCD_FLAGS: Final = (
    Flag(
        name="etcd-endpoints",
        kind=Kind.STRING,
        default=",".join(EtcdOptions().endpoints),
        help="comma-separated list of etcd endpoints",
        mode=Mode.ETCD,
        urls=True,
    ),
    Flag(
        name="etcd-prefix",
        kind=Kind.STRING,
        default=EtcdOptions().prefix,
        help="what the keys of flannel start with in etcd",
        mode=Mode.ETCD,
    ),
    Flag(
        name="etcd-keyfile",
        kind=Kind.STRING,
        default="",
        help="PEM file with the key of the client certificate for etcd",
        mode=Mode.ETCD,
    ),
    Flag(
        name="etcd-certfile",
        kind=Kind.STRING,
        default="",
        help="PEM file with the client certificate for etcd",
        mode=Mode.ETCD,
    ),
    Flag(
        name="etcd-cafile",
        kind=Kind.STRING,
        default="",
        help="PEM file with the authorities that may have signed etcd's certificate",
        mode=Mode.ETCD,
    ),
    Flag(
        name="etcd-username",
        kind=Kind.STRING,
        default="",
        help="user to log in to etcd",
        mode=Mode.ETCD,
    ),
    Flag(
        name="etcd-password",
        kind=Kind.STRING,
        default="",
        help="password of the etcd user; better given with -etcd-password-file, "
        "for a command line can be read by everybody on the machine",
        mode=Mode.ETCD,
        secret=True,
    ),
    Flag(
        name="etcd-password-file",
        kind=Kind.STRING,
        default="",
        help="file that holds the password of the etcd user, in one line; without it systemd's "
        "credential etcd-password is used, if there is one",
        mode=Mode.ETCD,
        since="pyflannel",
    ),
    Flag(
        name="etcd-discovery-srv",
        kind=Kind.STRING,
        default="",
        help="domain whose SRV records (_etcd-client-ssl._tcp, _etcd-client._tcp) name the "
        "endpoints, instead of -etcd-endpoints",
        mode=Mode.ETCD,
        since="pyflannel",
    ),
    Flag(
        name="etcd-discovery-srv-name",
        kind=Kind.STRING,
        default="",
        help="name of the cluster in that domain: _etcd-client-ssl-NAME._tcp",
        mode=Mode.ETCD,
        since="pyflannel",
    ),
    Flag(
        name="etcd-insecure-discovery",
        kind=Kind.BOOL,
        default=True,
        help="trust the SRV records: certificates are checked against the names that they give; "
        "with false against the domain, and plain HTTP is not used",
        mode=Mode.ETCD,
        since="pyflannel",
    ),
)
"""The flags that every command understands that talks to etcd."""

FLAGS: Final = (
    *ETCD_FLAGS,
    *KUBE_FLAGS,
    Flag(
        name="iface",
        kind=Kind.LIST,
        default=(),
        help="interface (name or IP address) that carries the traffic between nodes; "
        "may be given several times, the first that fits is taken",
    ),
    Flag(
        name="iface-regex",
        kind=Kind.LIST,
        default=(),
        help="regular expression for the address or else the name of that interface; "
        "may be given several times, asked after all -iface",
    ),
    Flag(
        name="iface-can-reach",
        kind=Kind.STRING,
        default="",
        help="take the interface that the kernel would use to reach this IP address; "
        "asked after all -iface and -iface-regex",
    ),
    Flag(
        name="subnet-file",
        kind=Kind.STRING,
        default=_DEFAULTS.subnet_file,
        help="file to which subnet, MTU and so on are written as environment variables",
    ),
    Flag(
        name="public-ip",
        kind=Kind.STRING,
        default="",
        help="IPv4 address under which other nodes reach this one; "
        "without -iface it also selects the interface",
    ),
    Flag(
        name="public-ipv6",
        kind=Kind.STRING,
        default="",
        help="IPv6 address under which other nodes reach this one",
    ),
    Flag(
        name="subnet-lease-renew-margin",
        kind=Kind.INT,
        default=_DEFAULTS.subnet_lease_renew_margin,
        help="how long before its end the lease is renewed, in minutes, "
        f"{MIN_RENEW_MARGIN} to {MAX_RENEW_MARGIN}",
        mode=Mode.ETCD,
    ),
    Flag(
        name="ip-masq",
        kind=Kind.BOOL,
        default=False,
        help="masquerade what leaves the overlay",
    ),
    Flag(
        name="ip-masq-fully-random-disable",
        kind=Kind.BOOL,
        default=False,
        help="masquerade without fully random ports",
    ),
    Flag(
        name="version",
        kind=Kind.BOOL,
        default=False,
        help="print the version and exit",
        mode=Mode.NONE,
        env=False,
    ),
    Flag(
        name="healthz-ip",
        kind=Kind.STRING,
        default=_DEFAULTS.healthz_ip,
        help="address on which the health server listens",
    ),
    Flag(
        name="healthz-port",
        kind=Kind.INT,
        default=_DEFAULTS.healthz_port,
        help="port of the health server, 0 for none",
    ),
    Flag(
        name="iptables-resync",
        kind=Kind.INT,
        default=_DEFAULTS.iptables_resync,
        help="seconds between two looks at the traffic rules and the blackhole route, at least 1",
    ),
    Flag(
        name="iptables-forward-rules",
        kind=Kind.BOOL,
        default=_DEFAULTS.iptables_forward_rules,
        help="accept the network's traffic in the FORWARD chain",
    ),
    Flag(
        name="ip-blackhole-route",
        kind=Kind.BOOL,
        default=False,
        help="keep a blackhole route for this node's subnet",
    ),
    Flag(
        name="v",
        kind=Kind.LEVEL,
        default=0,
        help="log level: 0 for what belongs in a timeline, 1 and more for each event",
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
    Flag(
        name="datapath",
        kind=Kind.STRING,
        default=_DEFAULTS.datapath,
        help="what carries the packets of backend udp",
        since="pyflannel",
        choices=("auto", "python", "native", "ebpf"),
    ),
    Flag(
        name="udp-accept",
        kind=Kind.STRING,
        default=_DEFAULTS.udp_accept,
        help="whose datagrams backend udp accepts: those of known peers from the backend's port, "
        "from any port (a NAT between the nodes), or anybody's",
        since="pyflannel",
        choices=("peers", "any-port", "any"),
    ),
    Flag(
        name="metrics",
        kind=Kind.BOOL,
        default=_DEFAULTS.metrics,
        help="answer /metrics on the health port, which tells subnets and public IPs; "
        "false for flannel's 404",
        since="pyflannel",
    ),
    Flag(
        name="allow-extension",
        kind=Kind.BOOL,
        default=_DEFAULTS.allow_extension,
        help="accept backend extension from etcd: whoever may write the network config there "
        "then runs commands on this node, as root",
        since="pyflannel",
    ),
    Flag(
        name="strict-health",
        kind=Kind.BOOL,
        default=_DEFAULTS.strict_health,
        help="/readyz answers 503 as soon as the node does not do its work any more (lease lost, "
        "device or interface down); without, once ready is always ready, as with flanneld",
        since="pyflannel",
    ),
    Flag(
        name="probe-interval",
        kind=Kind.INT,
        default=_DEFAULTS.probe_interval,
        help="seconds between two probes of a peer, an echo through the tunnel and now and then "
        "one beside it; longer where there are more than 20 peers; 0 for none",
        since="pyflannel",
    ),
    Flag(
        name="instance",
        kind=Kind.STRING,
        default=_DEFAULTS.instance,
        help="name of this daemon where several run on one node, each for a network of its own "
        "(-etcd-prefix): its files are /run/flannel/NAME/subnet.env and pyflannel.sock beside it, "
        "and /var/lib/pyflannel/NAME; it writes no docker options, unless it is told where",
        since="pyflannel",
    ),
    Flag(
        name="lease-ttl",
        kind=Kind.INT,
        default=_DEFAULTS.lease_ttl,
        help="seconds for which the subnet is leased unless it is renewed, "
        f"{MIN_LEASE_TTL_S} to {MAX_LEASE_TTL_S}; 0 for LeaseTTL of the network config",
        since="pyflannel",
        mode=Mode.ETCD,
    ),
    Flag(
        name="release-on-exit",
        kind=Kind.BOOL,
        default=False,
        help="give the subnet back when asked to stop, for nodes that are thrown away; "
        "not at a restart of the unit, not after a failure",
        since="pyflannel",
        mode=Mode.ETCD,
    ),
    Flag(
        name="docker-opts-file",
        kind=Kind.STRING,
        default=_DEFAULTS.docker_opts_file,
        help="file to which docker's options are written, empty for none",
        since="pyflannel",
    ),
    Flag(
        name="docker-opts-keys",
        kind=Kind.STRING,
        default=",".join(_DEFAULTS.docker_opts_keys),
        help="variables in that file that hold all options, separated by commas",
        since="pyflannel",
    ),
    Flag(
        name="status-socket",
        kind=Kind.STRING,
        default=_DEFAULTS.status_socket,
        help="unix socket on which `pyflannel status` asks",
        since="pyflannel",
    ),
    Flag(
        name="status-group",
        kind=Kind.STRING,
        default="",
        help="group whose members may ask there without being root",
        since="pyflannel",
    ),
    Flag(
        name="state-dir",
        kind=Kind.STRING,
        default=_DEFAULTS.state_dir,
        help="directory for what must outlive a reboot",
        since="pyflannel",
    ),
    Flag(
        name="static-network",
        kind=Kind.STRING,
        default=_DEFAULTS.static_network,
        help="file with the network config and all nodes, instead of etcd",
        since="pyflannel",
    ),
    Flag(
        name="node-name",
        kind=Kind.STRING,
        default=_DEFAULTS.node_name,
        help="which node of the static network this is, without it the one with our public "
        "address; or of Kubernetes, without it NODE_NAME, or the node of the pod POD_NAME",
        since="pyflannel",
    ),
    Flag(
        name="ready-when",
        kind=Kind.STRING,
        default=_DEFAULTS.ready_when,
        help="when systemd is told: as soon as packets flow, or not before subnet.env is written",
        since="pyflannel",
        choices=("started", "files"),
    ),
    Flag(
        name="log-format",
        kind=Kind.STRING,
        default=_DEFAULTS.log_format,
        help="how the log looks; auto is text on a terminal and key=value lines elsewhere",
        since="pyflannel",
        choices=("auto", "text", "json"),
    ),
)
"""Every flag of `pyflanneld`, upstream's first."""

REMOVED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ("logtostderr", "alsologtostderr", "stderrthreshold", "log_dir"),
        "flannel dropped it after v0.7.1; remove it, the log goes to stderr",
    ),
    **dict.fromkeys(
        ("listen", "remote", "remote-keyfile", "remote-certfile", "remote-cafile"),
        "flannel dropped its client-server mode in v0.8.0; point -etcd-endpoints at etcd",
    ),
    **dict.fromkeys(
        ("networks", "watch-networks", "subnet-dir"),
        "flannel dropped several networks per daemon in v0.8.0; "
        "run one daemon each, with its own -etcd-prefix and -subnet-file",
    ),
    "use-multi-cluster-cidr": "flannel dropped it in v0.23.0",
}
"""Flags of older flannels that are still found in unit files, and what became of them."""


def parse_daemon(argv: Sequence[str], env: Mapping[str, str]) -> RunDaemon | ShowVersion | ShowHelp:
    """What `pyflanneld` was asked to do.

    Args:
        argv: the command line, the program's name first.
        env: the environment.

    Raises:
        UsageError: the command line cannot be parsed.
        ConfigError: it can, but a value is out of range or contradicts another; names every such
            flag.
    """
    with _as_usage_error():
        flags = goflag.parse(FLAGS, argv[1:], removed=REMOVED)
    if flags.help:
        return ShowHelp(usage(argv[0]))
    if flags.switch("version"):
        return ShowVersion()
    warnings = [*_note_rest(flags.rest), *_note_password(flags)]
    with _as_usage_error():
        flags = goflag.with_environment(FLAGS, flags, env)
    warnings += [*flags.warnings, *goflag.unknown_variables(FLAGS, env)]
    flags = _in_a_cluster(_of_instance(flags))
    errors = [*kubernetes_errors(flags, env), *_check_values(flags)]
    if errors:
        raise ConfigError("; ".join(errors))
    warnings += [
        f"-{name} has no effect here: it is about source files of flanneld"
        for name in ("vmodule", "log_backtrace_at")
        if flags.text(name)
    ]
    warnings += kubernetes_warnings(flags, env)
    if flags.number("healthz-port") < 0:
        warnings.append(f"-healthz-port {flags.number('healthz-port')} means no health server")
    return RunDaemon(options=_daemon_options(flags, env), warnings=tuple(warnings))


@contextmanager
def _as_usage_error() -> Iterator[None]:
    try:
        yield
    except goflag.FlagError as error:
        raise UsageError(str(error)) from None


def instance_files(name: str) -> dict[str, str]:
    """Where the daemon of an instance has its files, by flag; what is given explicitly wins.

    docker's options have one owner, which is the daemon without a name.
    """
    return {
        "subnet-file": f"/run/flannel/{name}/subnet.env",
        "status-socket": f"/run/flannel/{name}/pyflannel.sock",
        "state-dir": f"/var/lib/pyflannel/{name}",
        "docker-opts-file": "",
    }


def _of_instance(flags: Flags) -> Flags:
    """The flags with the defaults of their instance, if they name one."""
    name = flags.text("instance")
    if not _INSTANCE.fullmatch(name):
        return flags
    files = {flag: path for flag, path in instance_files(name).items() if flag not in flags.given}
    return replace(flags, values={**flags.values, **files})


def _in_a_cluster(flags: Flags) -> Flags:
    """The flags with the defaults of a Kubernetes node: its containers are not docker's."""
    if not flags.switch("kube-subnet-mgr") or "docker-opts-file" in flags.given:
        return flags
    return replace(flags, values={**flags.values, "docker-opts-file": ""})


def parse_etcd_flags(args: Sequence[str], env: Mapping[str, str]) -> EtcdCommand:
    """The etcd flags of any command, wherever they stand on its line, and `FLANNELD_ETCD_*`.

    Args:
        args: the command line without the program's name.
        env: the environment.

    Raises:
        UsageError: an etcd flag lacks its value.
    """
    with _as_usage_error():
        given = goflag.extract(ETCD_FLAGS, args)
        flags = goflag.with_environment(ETCD_FLAGS, given, env)
    warnings = (*_note_password(given), *flags.warnings)
    return EtcdCommand(
        options=_etcd_options(flags),
        rest=flags.rest,
        warnings=warnings,
        endpoints_given=bool({"etcd-endpoints", "etcd-discovery-srv"} & set(flags.given)),
    )


def usage(program: str) -> str:
    """The daemon's usage text: flags, environment, exit codes."""
    return (
        goflag.usage(program, FLAGS)
        + "\nEvery flag but -version can be given as an environment variable, FLANNELD_ and the\n"
        "flag's name in capitals with _ for -, such as FLANNELD_ETCD_ENDPOINTS. The command line\n"
        "wins; an empty variable counts as unset.\n"
        "\nExit codes: 0 asked to stop, 2 bad command line, 69 a needed service or device cannot\n"
        "be had, 70 a defect of pyflannel, 77 not permitted, 78 bad configuration.\n"
    )


def _note_rest(rest: Sequence[str]) -> list[str]:
    """A warning about the words behind the end of the flags, which upstream ignores in silence."""
    if not rest:
        return []
    words = " ".join(map(goflag.quote, goflag.mask(FLAGS, rest)))
    hint = ""
    if rest[0].lower() in ("true", "false"):
        hint = f'; a boolean flag takes its value behind "=": -flag={rest[0].lower()}'
    elif any(word.startswith("-") for word in rest):
        hint = "; flags end at the first word without a dash"
    return [f"ignored on the command line: {words}{hint}"]


IN_SIGHT: Final = (
    "-etcd-password: every user of this machine can read a command line; put the password into a"
    " file that only root may read, and name it with -etcd-password-file"
)


def _note_password(flags: Flags) -> list[str]:
    """A warning about a password on the command line.

    Args:
        flags: those of the command line alone.
    """
    if not flags.values["etcd-password"]:
        return []
    return [IN_SIGHT]


def _check_values(flags: Flags) -> list[str]:
    """An error for each value that could be parsed but makes no sense."""
    errors = []
    margin = flags.number("subnet-lease-renew-margin")
    if not MIN_RENEW_MARGIN <= margin <= MAX_RENEW_MARGIN:
        errors.append(
            f"-subnet-lease-renew-margin is {margin}, expected minutes between "
            f"{MIN_RENEW_MARGIN} and {MAX_RENEW_MARGIN}"
        )
    ttl = flags.number("lease-ttl")
    if ttl != 0 and not MIN_LEASE_TTL_S <= ttl <= MAX_LEASE_TTL_S:
        errors.append(
            f"-lease-ttl is {ttl}, expected seconds between {MIN_LEASE_TTL_S} and "
            f"{MAX_LEASE_TTL_S}, or 0 for the network config's"
        )
    resync = flags.number("iptables-resync")
    if resync <= 0:
        errors.append(f"-iptables-resync is {resync}, expected seconds, at least 1")
    probes = flags.number("probe-interval")
    if not 0 <= probes <= MAX_PROBE_INTERVAL_S:
        errors.append(
            f"-probe-interval is {probes}, expected seconds up to {MAX_PROBE_INTERVAL_S}, or 0 for "
            "no probes"
        )
    port = flags.number("healthz-port")
    if port > MAX_PORT:
        errors.append(f"-healthz-port is {port}, expected a port up to {MAX_PORT}, or 0 for none")
    for name, parse in (("public-ip", parse_ipv4), ("public-ipv6", parse_ipv6)):
        text = flags.text(name)
        try:
            if text:
                parse(text)
        except ValueError as error:
            errors.append(f"-{name}: {error}")
    errors += [
        f"-docker-opts-keys: {key!r} is not the name of a variable"
        for key in flags.text("docker-opts-keys").split(",")
        if not _VARIABLE.fullmatch(key)
    ]
    instance = flags.text("instance")
    if instance and not _INSTANCE.fullmatch(instance):
        errors.append(f"-instance {instance!r}: expected up to 32 letters, digits, - and _")
    errors += [
        f"-{name} is empty, expected a path"
        for name in ("subnet-file", "status-socket", "state-dir")
        if not flags.text(name)
    ]
    return errors


def _daemon_options(flags: Flags, env: Mapping[str, str]) -> DaemonOptions:
    return DaemonOptions(
        etcd=_etcd_options(flags),
        iface=flags.words("iface"),
        iface_regex=flags.words("iface-regex"),
        iface_can_reach=flags.text("iface-can-reach"),
        subnet_file=flags.text("subnet-file"),
        public_ip=flags.text("public-ip"),
        public_ipv6=flags.text("public-ipv6"),
        subnet_lease_renew_margin=flags.number("subnet-lease-renew-margin"),
        lease_ttl=flags.number("lease-ttl"),
        release_on_exit=flags.switch("release-on-exit"),
        ip_masq=flags.switch("ip-masq"),
        ip_masq_fully_random_disable=flags.switch("ip-masq-fully-random-disable"),
        kube_subnet_mgr=flags.switch("kube-subnet-mgr"),
        kube=kubernetes_options(flags, env),
        healthz_ip=flags.text("healthz-ip"),
        healthz_port=max(0, flags.number("healthz-port")),
        iptables_resync=flags.number("iptables-resync"),
        iptables_forward_rules=flags.switch("iptables-forward-rules"),
        ip_blackhole_route=flags.switch("ip-blackhole-route"),
        v=flags.number("v"),
        datapath=flags.text("datapath"),
        udp_accept=flags.text("udp-accept"),
        metrics=flags.switch("metrics"),
        allow_extension=flags.switch("allow-extension"),
        probe_interval=flags.number("probe-interval"),
        strict_health=flags.switch("strict-health"),
        instance=flags.text("instance"),
        docker_opts_file=flags.text("docker-opts-file"),
        docker_opts_keys=tuple(flags.text("docker-opts-keys").split(",")),
        status_socket=flags.text("status-socket"),
        status_group=flags.text("status-group"),
        state_dir=flags.text("state-dir"),
        static_network=flags.text("static-network"),
        node_name=flags.text("node-name"),
        log_format=flags.text("log-format"),
        ready_when=flags.text("ready-when"),
    )


def _etcd_options(flags: Flags) -> EtcdOptions:
    endpoints = flags.text("etcd-endpoints")
    return EtcdOptions(
        endpoints=tuple(endpoints.split(",")) if endpoints else (),
        prefix=flags.text("etcd-prefix"),
        keyfile=flags.text("etcd-keyfile"),
        certfile=flags.text("etcd-certfile"),
        cafile=flags.text("etcd-cafile"),
        username=flags.text("etcd-username"),
        password=flags.text("etcd-password"),
        password_file=flags.text("etcd-password-file"),
        discovery_srv=flags.text("etcd-discovery-srv"),
        discovery_srv_name=flags.text("etcd-discovery-srv-name"),
        insecure_discovery=flags.switch("etcd-insecure-discovery"),
    )


def _values_of(options: DaemonOptions) -> dict[str, goflag.Value]:
    """The options by the names of their flags."""
    values: dict[str, goflag.Value] = {}
    for flag in FLAGS:
        field = flag.name.replace("-", "_")
        if flag in ETCD_FLAGS:
            value = getattr(options.etcd, field.removeprefix("etcd_"))
            values[flag.name] = ",".join(value) if flag.name == "etcd-endpoints" else value
        elif flag in KUBE_FLAGS and field != "kube_subnet_mgr":
            values[flag.name] = getattr(options.kube, field.removeprefix("kube_"))
        elif field in DaemonOptions.__dataclass_fields__:
            value = getattr(options, field)
            values[flag.name] = ",".join(value) if flag.name == "docker-opts-keys" else value
    return values
