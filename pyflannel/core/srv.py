"""SRV records: which endpoints a domain names for etcd, and in which order they are asked.

Source: RFC 2782; the names of the services are etcd's (its guide to clustering, "DNS discovery").
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Final

from pyflannel.records import dataclass

SERVICE: Final = "etcd-client"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One SRV record."""

    priority: int
    """Lower ones come first."""
    weight: int
    """Among those of one priority: how often it is to be the first, in proportion."""
    port: int
    target: str
    """A host's name without the dot at its end; empty if the service is not offered."""


def service(domain: str, name: str, *, tls: bool) -> str:
    """What is asked for: `_etcd-client-ssl._tcp.example.com`.

    Args:
        name: of one cluster among several in the domain; empty for the only one.
    """
    words = [SERVICE, *(["ssl"] if tls else []), *([name] if name else [])]
    return f"_{'-'.join(words)}._tcp.{domain.rstrip('.')}"


def in_order(records: Iterable[Record], rng: random.Random) -> Sequence[Record]:
    """The records in the order in which they are to be tried, without those that offer nothing."""
    offered = [record for record in records if record.target]
    # Weight 0 first, so that such a record has a small chance among the others (RFC 2782, page 3).
    left = sorted(offered, key=lambda record: (record.priority, record.weight, record.target))
    found: list[Record] = []
    while left:
        same = [record for record in left if record.priority == left[0].priority]
        at = rng.randint(0, sum(record.weight for record in same))
        for record in same:
            at -= record.weight
            if at <= 0:
                break
        found.append(record)
        left.remove(record)
    return found
