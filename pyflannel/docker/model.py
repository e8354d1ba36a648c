"""What was seen of docker on a node, and the outcome of a check of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import field
from ipaddress import IPv4Interface
from typing import Final

from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.docker import options as docker_options
from pyflannel.docker.dockerd import Direct
from pyflannel.docker.unitfile import Unit
from pyflannel.records import dataclass

RESTART: Final = "systemctl restart docker"
AGENT: Final = "pyflannel.service"
DROP_IN: Final = "pyflannel.conf"
"""What our drop-in for docker's unit is called, in whichever directory."""
SET_UP: Final = f"pyflannel docker-setup && systemctl daemon-reload && {RESTART}"


class State(enum.StrEnum):
    """How a check came out."""

    OK = "ok"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The outcome of one check, also of one that found nothing wrong."""

    check: str
    state: State
    seen: str
    consequence: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerFacts:
    """What was seen of a node. `None` is: could not be found out, or is not there."""

    unit: Unit | None = None
    """docker's unit with all drop-ins; `None`: no such unit."""
    enabled: bool | None = None
    """Whether pyflannel.service is enabled; `None`: there is no such unit."""
    upstream_pids: tuple[int, ...] = ()
    """Processes called flanneld in this network namespace."""
    options_file: str = docker_options.DOCKER_ENV
    options_text: str | None = None
    environment_files: Mapping[str, str] = field(default_factory=dict)
    """Contents of the unit's environment files, by path; those that are not there are missing."""
    subnet: SubnetEnv | None = None
    subnet_file: str = docker_options.FLANNEL_ENV
    """The file that `subnet` was read from."""
    daemon: str = ""
    """What a pyflanneld that runs here waits for; empty if none runs, or it cannot be asked."""
    daemon_json: str | None = None
    """Contents of /etc/docker/daemon.json; `None`: there is none."""
    arguments: tuple[str, ...] | None = None
    """The running dockerd's command line; `None`: it does not run."""
    bridge: tuple[IPv4Interface, ...] | None = None
    """Addresses of docker0; `None`: no such device."""
    bridge_mtu: int | None = None
    forward_policy: str | None = None
    """Policy of iptables' chain FORWARD."""
    forward_rules: bool = False
    """Whether our rules that accept the overlay's packets are in it."""
    ip_forward: bool | None = None
    bridges: tuple[str, ...] = ()
    """Devices that have an address of the leased subnet: docker0, or a docker network's."""
    direct: Direct = Direct.NOTHING
    """What the installed dockerd knows against its own drops."""
    own_nftables: bool = False
    """Whether docker keeps its rules in nftables by itself (docker 29), where no rule helps."""
    docker_rules: tuple[str, ...] = ()
    """What iptables -S prints of raw's PREROUTING and of FORWARD, DOCKER-USER and DOCKER."""


def ok(check: str, seen: str) -> Checked:
    """All is well."""
    return Checked(check=check, state=State.OK, seen=seen)


def unknown(check: str, seen: str) -> Checked:
    """It could not be found out."""
    return Checked(check=check, state=State.UNKNOWN, seen=seen)


def problem(check: str, seen: str, consequence: str, remedy: str) -> Checked:
    """Something is wrong."""
    return Checked(
        check=check, state=State.PROBLEM, seen=seen, consequence=consequence, remedy=remedy
    )
