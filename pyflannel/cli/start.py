"""`pyflanneld-start`: what the systemd unit runs. The daemon, with the environment translated.

`core.sysconfig` says how. No second process: the daemon goes on in this one, so that it is the
unit's main process, which is the one that systemd listens to.

`--check-only`, wherever a flag may stand, starts nothing: it checks the options and the network
config in etcd, and what they want of this node, as a start would, for `systemctl reload`.
"""

from __future__ import annotations

# First, because it installs the handlers of SIGTERM and SIGINT that hold during the other imports.
from pyflannel.cli import pyflanneld

# isort: split
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from pyflannel import logs
from pyflannel.core.errors import EXIT_OK, ConfigError, FlannelError, UsageError
from pyflannel.foreign import MOST_IN_LOG, shown

if TYPE_CHECKING:
    from pyflannel.core.commandline import RunDaemon
    from pyflannel.core.config import NetworkConfig
    from pyflannel.core.configparse import Parsed
    from pyflannel.core.options import DaemonOptions
    from pyflannel.core.trust import ConfigOrigin

PROGRAM: Final = "pyflanneld-start"
CHECK_ONLY: Final = "check-only"


def main() -> NoReturn:
    """Entry point; ends the process."""
    from pyflannel.core.sysconfig import translate

    try:
        checking, arguments = split_check(sys.argv[1:])
        launch = translate(arguments, os.environ)
    except UsageError as error:
        sys.exit(pyflanneld.last_words(error))
    for warning in launch.warnings:
        logs.say(logging.WARNING, f"pyflanneld-start: warning: {warning}")
    if (text := help_text(launch.argv)) is not None:
        print(text, end="", file=sys.stderr)
        sys.exit(EXIT_OK)
    argv = in_our_directory(launch.argv, os.environ)
    if checking:
        sys.exit(check(argv))
    pyflanneld.main(argv)


def help_text(argv: Sequence[str]) -> str | None:
    """What is printed if the words ask for help; `None` if they do not."""
    if not {"-h", "-help", "--h", "--help"} & set(argv):
        return None
    from pyflannel.core.commandline import ShowHelp, parse_daemon
    from pyflannel.core.sysconfig import NAMES, OPTIONS

    try:
        parsed = parse_daemon([PROGRAM, *argv], {})
    except FlannelError:
        return None  # which the daemon says itself
    if not isinstance(parsed, ShowHelp):
        return None  # the value of a flag
    names = "".join(f"  {n.variable} (or {n.older}): -{n.flag}\n" for n in NAMES)
    usage, _, flags = parsed.text.partition("\n")
    return (
        f"{usage.replace('[OPTION]', f'[-{CHECK_ONLY}] [OPTION]')}\n\n"
        "What pyflannel.service runs: pyflanneld with the same options, and with flags made of\n"
        f"variables of distributions' flannel packages. They win over FLANNELD_*:\n{names}"
        f"  {OPTIONS}: further flags\n\n"
        f"  -{CHECK_ONLY}\n    \tstart nothing: check options, network config and node as a start "
        f"would, and say\n    \twhat is wrong\n{flags}"
    )


def split_check(argv: Sequence[str]) -> tuple[bool, list[str]]:
    """Whether only to check, and the arguments of the daemon.

    Raises:
        UsageError: `--check-only=` has a value that is neither true nor false.
    """
    from pyflannel.gocompat import flags

    flag = flags.Flag(name=CHECK_ONLY, kind=flags.Kind.BOOL, default=False, help="start nothing")
    try:
        found = flags.extract([flag], argv)
    except flags.FlagError as error:
        raise UsageError(str(error)) from None
    return found.switch(CHECK_ONLY), list(found.rest)


def in_our_directory(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    writable: Callable[[str], bool] = lambda path: os.access(path, os.W_OK),
) -> Sequence[str]:
    """The arguments, with docker's options where the unit's sandbox lets them be written.

    A user who names the usual place means its content, which is the unit's link.
    """
    from pyflannel.core.commandline import RunDaemon, parse_daemon
    from pyflannel.docker import options as docker_options

    place, ours = docker_options.DOCKER_ENV, docker_options.UNIT_FILE
    if writable(str(Path(place).parent)) or not writable(str(Path(ours).parent)):
        return argv
    try:
        parsed = parse_daemon(["pyflanneld", *argv], env)
    except FlannelError:
        return argv  # which the daemon says itself
    if not isinstance(parsed, RunDaemon) or parsed.options.docker_opts_file != place:
        return argv
    # Flags end at the first word that is none.
    return [f"-docker-opts-file={ours}", *_without(argv, "docker-opts-file")]


def _without(argv: Sequence[str], flag: str) -> list[str]:
    """The arguments without a flag that has a value."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, _ = word.partition("=")
        if name not in {f"-{flag}", f"--{flag}"}:
            kept.append(word)
        elif not equals:
            next(words, None)
    return kept


def check(argv: Sequence[str]) -> int:
    """Says on stderr what a start like this would stumble over; returns its exit code."""
    from pyflannel.core.commandline import RunDaemon, parse_daemon

    try:
        parsed = parse_daemon(["pyflanneld", *argv], os.environ)
        if not isinstance(parsed, RunDaemon):
            raise UsageError("-help and -version start no daemon")
        pyflanneld.check_limits()
        for warning in parsed.warnings:
            logs.say(logging.WARNING, f"warning: {warning}")
        failed = _check(parsed)
    except FlannelError as error:
        return pyflanneld.last_words(error)
    for reason in failed:
        logs.say(logging.ERROR, f"error: {shown(reason, MOST_IN_LOG)}")
    if failed:
        return failed[0].exit_code
    logs.say(logging.INFO, "options, network config and node are fit for a restart")
    return EXIT_OK


def _check(parsed: RunDaemon) -> list[FlannelError]:
    """Everything that a start would stumble over; etcd is asked last, because it may be away.

    Raises:
        FlannelError: etcd cannot be asked, or has no network config; if nothing else is wrong.
    """
    import asyncio

    from pyflannel.cli import precheck

    failed = list(precheck.of_machine(parsed.options))
    try:
        config = _network_config(parsed)
    except FlannelError as error:
        return [*failed, error]
    from pyflannel.core.trust import ConfigOrigin

    is_file = bool(parsed.options.static_network) or parsed.options.kube_subnet_mgr
    origin = ConfigOrigin.LOCAL_FILE if is_file else ConfigOrigin.ETCD
    return [*failed, *asyncio.run(_check_on_node(config, parsed, origin))]


async def _check_on_node(
    config: NetworkConfig, parsed: RunDaemon, origin: ConfigOrigin
) -> list[FlannelError]:
    from pyflannel.cli import precheck
    from pyflannel.kernel.netlink import KernelNetlink

    netlink = KernelNetlink()
    try:
        return await precheck.of_config(config, parsed.options, netlink, origin)
    finally:
        await netlink.close()


def _static_config(path: str) -> NetworkConfig:
    from pyflannel.backend.kinds import KINDS
    from pyflannel.core.staticnet import parse_static
    from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
    from pyflannel.store.static import MOST_BYTES

    content = read_text_if_exists(path, most_bytes=MOST_BYTES)
    if not isinstance(content, FileText):
        reason = content.reason if isinstance(content, FileUnreadable) else "there is no such file"
        raise ConfigError(f"static network {path}: {reason}")
    parsed = parse_static(content.text, KINDS)
    if parsed.network is None:
        raise ConfigError(f"static network {path}: {'; '.join(map(str, parsed.errors))}")
    return parsed.network.config


def _net_conf(options: DaemonOptions) -> NetworkConfig:
    """Kubernetes' network config; and whether there is a way to the API server at all."""
    from pyflannel.backend.kinds import KINDS
    from pyflannel.core.configparse import parse_network_config
    from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
    from pyflannel.store.kubernetes.access import find_access

    find_access(options.kube.kubeconfig_file, options.kube.api_url, os.environ)
    path = options.kube.net_config_path
    content = read_text_if_exists(path)
    if not isinstance(content, FileText):
        reason = content.reason if isinstance(content, FileUnreadable) else "there is no such file"
        raise ConfigError(f"network config {path}: {reason}")
    return _good(parse_network_config(content.text, KINDS, allots=False))


def _network_config(parsed: RunDaemon) -> NetworkConfig:
    from pyflannel.backend.kinds import KINDS

    if parsed.options.static_network:
        return _static_config(parsed.options.static_network)
    if parsed.options.kube_subnet_mgr:
        return _net_conf(parsed.options)
    from pyflannel.cli.common import with_store
    from pyflannel.core.configparse import parse_network_config
    from pyflannel.store.etcd import codec

    etcd = parsed.options.etcd
    key = codec.config_key(etcd.prefix)
    found = with_store(etcd, lambda store: store.get(key))
    if not found.kvs:
        raise ConfigError(f"no network config under {shown(key)}")
    return _good(parse_network_config(found.kvs[0].value, KINDS))


def _good(parsed: Parsed) -> NetworkConfig:
    """The config, its warnings said."""
    for problem in parsed.problems:
        if parsed.config is not None:
            logs.say(logging.WARNING, f"{problem.severity}: {shown(problem, MOST_IN_LOG)}")
    if parsed.config is None:
        raise ConfigError("; ".join(str(shown(p, MOST_IN_LOG)) for p in parsed.problems))
    return parsed.config
