"""`pyflanneld-start`: what the systemd unit runs. The daemon, with the environment translated.

`core.sysconfig` says how. No second process: the daemon goes on in this one, so that it is the
unit's main process, which is the one that systemd listens to.

`--check-only`, as the first word, starts nothing: it checks the options and the network config in
etcd as a start would, for `systemctl reload`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

# First, because it installs the handlers of SIGTERM and SIGINT that hold during the other imports.
from pyflannel.cli import pyflanneld
from pyflannel.core.errors import EXIT_CONFIG, EXIT_OK, FlannelError, UsageError
from pyflannel.foreign import MOST_IN_LOG, shown

if TYPE_CHECKING:
    from pyflannel.core.options import RunDaemon

CHECK_ONLY: Final = "--check-only"


def main() -> NoReturn:
    """Entry point; ends the process."""
    from pyflannel.core.sysconfig import translate

    arguments = sys.argv[1:]
    checking = arguments[:1] == [CHECK_ONLY]
    try:
        launch = translate(arguments[1:] if checking else arguments, os.environ)
    except UsageError as error:
        sys.exit(pyflanneld.last_words(error))
    for warning in launch.warnings:
        print(f"pyflanneld-start: warning: {warning}", file=sys.stderr)
    argv = in_our_directory(launch.argv, os.environ)
    if checking:
        sys.exit(check(argv))
    pyflanneld.main(argv)


def in_our_directory(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    writable: Callable[[str], bool] = lambda path: os.access(path, os.W_OK),
) -> Sequence[str]:
    """The arguments, with docker's options where the unit's sandbox lets them be written.

    Somebody who named the usual place means what he finds there, which is the unit's link.
    """
    from pyflannel.core.options import RunDaemon, parse_daemon
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
    from pyflannel.core.options import RunDaemon, parse_daemon

    try:
        parsed = parse_daemon(["pyflanneld", *argv], os.environ)
        if not isinstance(parsed, RunDaemon):
            raise UsageError("-help and -version start no daemon")
        for warning in parsed.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return _check_network_config(parsed)
    except FlannelError as error:
        return pyflanneld.last_words(error)


def _check_network_config(parsed: RunDaemon) -> int:
    from pyflannel.backend.kinds import KINDS
    from pyflannel.cli.common import with_store
    from pyflannel.core.config import parse_network_config
    from pyflannel.core.trust import ConfigOrigin, check_commands
    from pyflannel.store.etcd import codec

    etcd = parsed.options.etcd
    key = codec.config_key(etcd.prefix)
    found = with_store(etcd, lambda store: store.get(key))
    if not found.kvs:
        print(f"error: no network config under {shown(key)}", file=sys.stderr)
        return EXIT_CONFIG
    config = parse_network_config(found.kvs[0].value, KINDS)
    for problem in config.problems:
        print(f"{problem.severity}: {shown(problem, MOST_IN_LOG)}", file=sys.stderr)
    if config.config is None:
        return EXIT_CONFIG
    allowed = parsed.options.allow_extension
    check_commands(config.config, ConfigOrigin.ETCD, allowed=allowed)
    print("options and network config are fit for a restart", file=sys.stderr)
    return EXIT_OK
