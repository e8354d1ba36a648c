"""Checks a lab's description before anything of it is made.

It finds a wrong network config, a data path that does not exist, a missing program. The daemons
would find them too, but half a minute later, each in its own log.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable

from pyflannel.backend.kinds import KINDS
from pyflannel.core.commandline import parse_daemon
from pyflannel.core.config import NetworkConfig, subnet_count
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.errors import ConfigError, UsageError
from pyflannel.core.fields import Problem
from pyflannel.lab import topology
from pyflannel.lab.etcd import find_etcd
from pyflannel.lab.topology import LabSpec


def check(spec: LabSpec, *, which: Callable[[str], str | None] = shutil.which) -> list[Problem]:
    """The warnings about the network config, if the lab can be made.

    A lab whose daemons are not started may have any config, to see what they say about it.

    Args:
        spec: the wanted lab.
        which: finds a program by its name, as `shutil.which`.

    Raises:
        ConfigError: the network config is wrong, or has fewer subnets than the lab has nodes; or a
            daemon's flag has a value out of its range.
        UsageError: a daemon's flag is not one, or the command of a node cannot be run.
        LabError: there is no etcd program.
    """
    if spec.store == "etcd":
        find_etcd(spec.etcd)
    for number, command in spec.node_commands.items():
        _check_command(number, command, which)
    if len(spec.node_commands) < spec.nodes:
        parse_daemon(topology.daemon_command(spec, _own(spec), ["pyflanneld"]), {})
    if not spec.start_daemons:
        return []
    parsed = parse_network_config(spec.config_text(), KINDS)
    if parsed.config is None:
        raise ConfigError("the network config is wrong: " + "; ".join(map(str, parsed.errors)))
    _check_room(spec, parsed.config)
    return [problem for problem in parsed.problems if not problem.is_error]


def _own(spec: LabSpec) -> int:
    """A node that runs our daemon; they all have the same flags."""
    return next(k for k in range(1, spec.nodes + 1) if k not in spec.node_commands)


def _check_command(number: int, command: str, which: Callable[[str], str | None]) -> None:
    try:
        program = shlex.split(command)[0]
    except ValueError as error:
        raise UsageError(f"--node-command {number}={command!r}: {error}") from None
    if which(program) is None:
        raise UsageError(f"--node-command {number}: {program}: not found, or not executable")


def _check_room(spec: LabSpec, config: NetworkConfig) -> None:
    for family in config.families:
        room = subnet_count(config, family)
        if room < spec.nodes:
            raise ConfigError(
                f"{spec.nodes} nodes, but the network config has room for {room} IPv{family.value}"
                f" subnets; ask for at most {room} nodes, or for a larger network"
            )
