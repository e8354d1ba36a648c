"""What comes of putting another network config in the place of the one in force."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from pyflannel.core.config import NetworkConfig, effective
from pyflannel.core.freesubnets import is_compatible
from pyflannel.core.ip import IPNetwork
from pyflannel.core.lease import Lease
from pyflannel.records import dataclass

MOST_NAMED: Final = 10
"""Leases that are named; of more there is the number."""


@dataclass(frozen=True, slots=True)
class Change:
    """One key whose value is another one."""

    key: str
    """`SubnetLen`, `Backend.Type`."""
    before: object
    """`None` where the key is new."""
    after: object
    """`None` where the key is gone."""


def changes(before: NetworkConfig | None, after: NetworkConfig | None) -> tuple[Change, ...]:
    """The keys that differ, defaults filled in; a config that is none has no keys."""
    old, new = _flat(before), _flat(after)
    names = [*old, *(key for key in new if key not in old)]
    return tuple(
        Change(key, old.get(key), new.get(key)) for key in names if old.get(key) != new.get(key)
    )


def unfit(leases: Collection[Lease], after: NetworkConfig) -> list[Lease]:
    """The leases whose subnets are none of the other config's, by their numbers."""
    return sorted(
        (lease for lease in leases if not is_compatible(lease.key, after)),
        key=lambda lease: lease.key,
    )


def consequences(
    before: NetworkConfig | None, after: NetworkConfig | None, leases: Collection[Lease]
) -> list[str]:
    """What the operator should know, in sentences.

    Args:
        before: what the nodes have; `None` if it is unfit for use.
        after: what they would have; `None` if it is unfit for use.
        leases: there are now.
    """
    if after is None:
        return ["nodes that run go on with the config they have; a node that starts ends with 78"]
    return [*_of_leases(unfit(leases, after), len(leases)), *_of_nodes(before, after)]


def _of_leases(misfits: Sequence[Lease], count: int) -> Iterator[str]:
    if misfits:
        yield (
            f"{len(misfits)} of {count} leases do not fit; these nodes lease another subnet when "
            "they are restarted, and their containers have to be made anew:"
        )
        for lease in misfits[:MOST_NAMED]:
            owner = lease.attrs.public_ip or lease.attrs.public_ipv6
            yield f"  {lease.key.describe()}" + (f" of {owner}" if owner else "")
        if len(misfits) > MOST_NAMED:
            yield f"  and {len(misfits) - MOST_NAMED} more"
    elif count:
        yield f"all {count} leases fit"


def _of_nodes(before: NetworkConfig | None, after: NetworkConfig) -> Iterator[str]:
    if before is None or before == after:
        return
    if before.allots_differently(after):
        yield "nodes go by it when they lease a subnet the next time, at a restart as a rule"
        return
    yield "nodes that run go on with the old one until they are restarted (PF103 says so)"
    until = "until all of them are, those with the"
    nested = _nested(before, after)
    if _together(before) != _together(after) or (before.networks != after.networks and not nested):
        yield f"{until} old and those with the new one are cut off"
    elif before.networks != after.networks:
        yield f"{until} smaller network do not reach subnets outside of it"


def _nested(before: NetworkConfig, after: NetworkConfig) -> bool:
    """Whether the networks of one of them contain the other's."""
    if before.families != after.families:
        return False
    pairs = list(zip(before.networks, after.networks, strict=True))
    return any(
        all(_contains(*(pair if larger else pair[::-1])) for pair in pairs)
        for larger in (True, False)
    )


def _contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


def _together(config: NetworkConfig) -> list[object]:
    """What all nodes have to agree about, to reach each other."""
    declared = config.backend.declared().items()
    agreed = [getattr(config.backend, name) for name, each in declared if each.together]
    return [config.backend_type, *agreed]


def _flat(config: NetworkConfig | None) -> dict[str, object]:
    if config is None:
        return {}
    flat: dict[str, object] = {}
    for key, value in effective(config).items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": each for inner, each in value.items()}
        else:
            flat[key] = value
    return flat
