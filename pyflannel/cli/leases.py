"""`pyflannel leases`: who has which subnet, how it is reached, and for how long."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Final

from pyflannel.cli.common import Parser, split_etcd, table, with_store
from pyflannel.core.errors import EXIT_OK
from pyflannel.core.lease import Lease
from pyflannel.core.options import EtcdOptions
from pyflannel.foreign import shown
from pyflannel.gocompat.flags import hide_user_info
from pyflannel.gocompat.json import nesting
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import Store

AT_ONCE: Final = 16
"""Questions for the time left that are under way together; one per lease has to be asked."""

MOST_LEVELS: Final = 100
"""Nesting of backend data that is printed as JSON. No backend's own goes beyond two levels."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options, rest = split_etcd(argv)
    parser = Parser("pyflannel leases", "All subnet leases in etcd.", etcd=True)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(rest)
    leases, bad = with_store(options, lambda store: read(store, options.prefix))
    if given.json:
        print(json.dumps({"leases": [as_json(*each) for each in leases], "ignored": bad}, indent=2))
        return EXIT_OK
    if not leases and not bad:
        print(_nothing(options), file=sys.stderr)
        return EXIT_OK
    rows = [tuple(map(shown, _row(lease, ttl))) for lease, ttl in leases]
    print(table(("SUBNET", "PUBLIC IP", "BACKEND", "DATA", "TIME LEFT"), rows), end="")
    for key, reason in bad.items():
        print(f"ignored {shown(key)}: {shown(reason)}")
    return EXIT_OK


def _nothing(options: EtcdOptions) -> str:
    """What an empty list means: a prefix that nobody uses, or a network without nodes."""
    key = codec.config_key(options.prefix)
    if with_store(options, lambda store: store.get(key)).kvs:
        return f"no leases under {shown(options.prefix)} yet"
    where = ", ".join(map(hide_user_info, options.endpoints))
    return (
        f"no leases and no network config under {shown(options.prefix)} in etcd at {shown(where)};"
        " --etcd-prefix and --etcd-endpoints name others"
    )


async def read(store: Store, prefix: str) -> tuple[list[tuple[Lease, int | None]], dict[str, str]]:
    """All leases with the seconds they have left (`None`: no limit), and what is no lease."""
    listed = await store.range_prefix(codec.subnets_prefix(prefix))
    leases: list[Lease] = []
    bad: dict[str, str] = {}
    for kv in listed.kvs:
        decoded = codec.decode_lease(prefix, kv)
        if isinstance(decoded, Lease):
            leases.append(decoded)
        else:
            bad[kv.key.decode(errors="backslashreplace")] = decoded.reason
    gate = asyncio.Semaphore(AT_ONCE)

    async def left(lease: Lease) -> int | None:
        if lease.is_reservation:
            return None
        async with gate:
            return max(0, (await store.time_to_live(lease.store_lease)).ttl)

    times = await asyncio.gather(*(left(lease) for lease in leases))
    return list(zip(leases, times, strict=True)), bad


def as_json(lease: Lease, ttl: int | None) -> dict[str, object]:
    """One lease for `--json`."""
    attrs = lease.attrs
    return {
        "subnet": str(lease.key.v4) if lease.key.v4 is not None else None,
        "ipv6_subnet": str(lease.key.v6) if lease.key.v6 is not None else None,
        "public_ip": str(attrs.public_ip) if attrs.public_ip is not None else None,
        "public_ipv6": str(attrs.public_ipv6) if attrs.public_ipv6 is not None else None,
        "backend": attrs.backend_type,
        "backend_data": _decoded(attrs.backend_data),
        "backend_v6_data": _decoded(attrs.backend_v6_data),
        "ttl": ttl,
        "reservation": lease.is_reservation,
    }


def _decoded(raw: str | None) -> object:
    """The backend's data as JSON; as text if it is none, or nested like no backend's."""
    if raw is None:
        return None
    if nesting(raw) > MOST_LEVELS:
        return raw  # Python's own JSON gives up on it
    try:
        value: object = json.loads(raw)
    except ValueError:
        return raw
    return value


def _row(lease: Lease, ttl: int | None) -> tuple[str, str, str, str, str]:
    attrs = lease.attrs
    addresses = [str(a) for a in (attrs.public_ip, attrs.public_ipv6) if a is not None]
    data = " ".join(d for d in (attrs.backend_data, attrs.backend_v6_data) if d is not None)
    return (
        lease.key.describe(),
        " ".join(addresses) or "-",
        attrs.backend_type or "-",
        data or "-",
        "reserved" if ttl is None else _time(ttl),
    )


def _time(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m{seconds:02d}s"
