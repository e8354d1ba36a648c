"""`net-conf.json`: the network config of a Kubernetes cluster, a file that a ConfigMap brings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from pyflannel.aio.clock import Clock
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.fields import Problem
from pyflannel.core.kind import Kinds
from pyflannel.store.followed import FollowedFile

MOST_BYTES: Final = 1 << 20
"""A ConfigMap has at most 1 MiB."""

NetConf: TypeAlias = FollowedFile[tuple[str, NetworkConfig]]
"""Its text and what it says."""


def follow_netconf(path: Path, kinds: Kinds, clock: Clock) -> NetConf:
    """The file at this path; not read yet."""
    return FollowedFile(
        path,
        partial(_parse, kinds=kinds),
        clock,
        name="network config",
        remedy=f"pyflannel config check --kubernetes {path}",
        most_bytes=MOST_BYTES,
    )


def _parse(
    text: str, *, kinds: Kinds
) -> tuple[tuple[str, NetworkConfig] | None, Sequence[Problem]]:
    parsed = parse_network_config(text, kinds, allots=False)
    return (text, parsed.config) if parsed.config is not None else None, parsed.problems
