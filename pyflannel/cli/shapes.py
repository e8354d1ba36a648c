"""What `--json` prints where it is not a record of another room, as types.

The commands build these, and `docs/reference/*.schema.json` is made of them. Shapes grow and never
shrink. `None` is: not known, or does not apply.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from pyflannel.core.fields import Problem


class ProblemJson(TypedDict):
    """Something wrong in a config."""

    severity: str
    key: str
    message: str
    remedy: str


class ConfigJson(TypedDict):
    """`config check`, `config get`."""

    config: dict[str, object] | None
    problems: list[ProblemJson]


class StaticNodeJson(TypedDict):
    """A node of a static network file."""

    name: str | None
    subnet: str | None
    ipv6_subnet: str | None
    public_ip: str | None
    public_ipv6: str | None
    backend_data: str | None
    backend_v6_data: str | None


class StaticJson(TypedDict):
    """`static check`."""

    config: dict[str, object] | None
    nodes: list[StaticNodeJson]
    problems: list[ProblemJson]


class LeaseJson(TypedDict):
    """A lease."""

    subnet: str | None
    ipv6_subnet: str | None
    public_ip: str | None
    public_ipv6: str | None
    backend: str
    backend_data: object
    backend_v6_data: object
    ttl: int | None
    reservation: bool


class ListedLeaseJson(LeaseJson):
    """A lease in the list."""

    own: bool


class LeasesJson(TypedDict):
    """`leases list`."""

    leases: list[ListedLeaseJson]
    ignored: dict[str, str]


class LeaseDoneJson(TypedDict):
    """`leases release`, `leases reserve`."""

    done: str
    lease: LeaseJson


class SilentJson(TypedDict):
    """A lease whose node is silent."""

    subnet: str
    public_ip: str | None
    silent_s: int


class UnclearJson(TypedDict):
    """A lease of whose node it is not known whether it is silent."""

    subnet: str
    reason: str


class PruneJson(TypedDict):
    """`leases prune`."""

    silent: list[SilentJson]
    unclear: list[UnclearJson]
    released: list[str]
    kept: dict[str, str]


class CleanupJson(TypedDict):
    """`cleanup`."""

    dry_run: bool
    found: list[str]
    failed: dict[str, str]
    left: dict[str, str]


class MemberJson(TypedDict):
    """A file of the archive."""

    name: str
    source: str
    missing: str


class BundleJson(TypedDict):
    """`bundle`."""

    file: str
    members: list[MemberJson]


def problems_json(problems: Iterable[Problem]) -> list[ProblemJson]:
    """What is wrong in a config."""
    return [
        {
            "severity": str(each.severity),
            "key": each.key,
            "message": each.message,
            "remedy": each.remedy,
        }
        for each in problems
    ]
