"""The daemon's command line, and the part of it that every command about etcd shares.

`parse_daemon` goes the way upstream goes (command line, then `-version`, then environment, then
checks), and differs where upstream is silent: a word that is not looked at, a variable that is not
used, and a flag without effect are warnings. What flags there are stands in `core/options.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from pyflannel.core.errors import ConfigError, UsageError
from pyflannel.core.flagfields import read
from pyflannel.core.ip import parse_ipv4, parse_ipv6
from pyflannel.core.kube.options import (
    kubernetes_errors,
    kubernetes_options,
    kubernetes_warnings,
)
from pyflannel.core.options import (
    ETCD,
    ETCD_FLAGS,
    FLAGS,
    MAX_RENEW_MARGIN,
    MIN_RENEW_MARGIN,
    DaemonOptions,
    EtcdOptions,
)
from pyflannel.core.renewal import MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flags
from pyflannel.records import dataclass

MAX_PORT: Final = 0xFFFF
MAX_PROBE_INTERVAL_S: Final = 3600
"""A peer that is asked less often might as well not be asked."""

_INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", re.ASCII)
"""Part of a path, and of a unit's name."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


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


def is_instance(name: str) -> bool:
    """Whether a daemon may have this name: it becomes a part of paths."""
    return _INSTANCE.fullmatch(name) is not None


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
    if not is_instance(name):
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
        "\nExit codes: 0 asked to stop, 2 bad command line, 69 a needed service or device is not\n"
        "available, 70 a defect of pyflannel, 77 not permitted, 78 bad configuration.\n"
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
    if instance and not is_instance(instance):
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
        kube=kubernetes_options(flags, env),
        **read(DaemonOptions, flags),
    )


def _etcd_options(flags: Flags) -> EtcdOptions:
    return EtcdOptions(**read(EtcdOptions, flags, ETCD))
