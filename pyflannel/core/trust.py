"""Who may make this node run commands: a network config from etcd only if the node says so.

Backend `extension` runs the config's commands as the daemon's user, which is root. Anyone who may
write `<prefix>/config` would own every node. Upstream accepts that. Here the operator of the node
opts in, on the node. A config in a file of the node needs no opt-in: its writer is root already.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import ConfigError
from pyflannel.core.fields import Problem

OPT_IN: Final = "--allow-extension or FLANNELD_ALLOW_EXTENSION=true"


class ConfigOrigin(StrEnum):
    """Where a network config was read."""

    ETCD = "etcd"
    LOCAL_FILE = "local file"
    """A file of this node that root alone may write."""


def check_commands(config: NetworkConfig, origin: ConfigOrigin, *, allowed: bool) -> None:
    """Makes sure that a config whose commands this node would run may make it do so.

    Args:
        config: the network config.
        origin: where it was read.
        allowed: this node's `--allow-extension`.

    Raises:
        ConfigError: the config comes from elsewhere, has commands, and the node did not opt in.
    """
    if config.backend.RUNS_COMMANDS and origin is not ConfigOrigin.LOCAL_FILE:
        if allowed:
            return
        raise ConfigError(
            f"backend {config.backend_type} runs commands of the network config as root, and this"
            f" config comes from {origin}: nothing was run; if every user who may write it may be"
            f" root here, start with {OPT_IN}"
        )


def command_warning(config: NetworkConfig) -> Problem | None:
    """What `config check` says about a config that `check_commands` would refuse."""
    if not config.backend.RUNS_COMMANDS:
        return None
    return Problem.warning(
        "Backend.Type",
        f"backend {config.backend_type} runs these commands as root on every node",
        f"a pyflanneld that reads them from etcd refuses to start without {OPT_IN}",
    )
