"""`pyflannel leases`: who has which subnet, and for how long; gives back and reserves."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import Collection, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.aio.clock import SystemClock
from pyflannel.backend.kinds import KINDS
from pyflannel.cli import status
from pyflannel.cli.common import split_etcd, table, with_store
from pyflannel.cli.parsers import ETCD, Branch, Parser, group
from pyflannel.cli.prune import prune
from pyflannel.cli.shapes import LeaseDoneJson, LeaseJson, LeasesJson
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import load_network_config
from pyflannel.core.errors import EXIT_OK, ConfigError, FlannelError, UsageError
from pyflannel.core.ip import IPAddress, SubnetKey, parse_ip, parse_subnet_key
from pyflannel.core.lease import Lease
from pyflannel.core.options import EtcdOptions
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.gocompat.flags import hide_user_info
from pyflannel.gocompat.json import nesting
from pyflannel.store.etcd import codec, operator
from pyflannel.store.etcd.base import Store

AT_ONCE: Final = 16
"""Questions for the time left that are under way together; one per lease has to be asked."""

MOST_LEVELS: Final = 100
"""Nesting of backend data that is printed as JSON. No backend's own goes beyond two levels."""

ABOUT: Final = """SUBNET is written as the list has it: 10.5.34.0/24, or
10.5.34.0/24,fd00:5:34::/64."""
LIST: Final = """\
The list is in the order of the subnets' numbers. OWN marks those whose public IP is an address of
this node. Where a line would be longer than the terminal is wide, a second line has the backend's
data."""
RELEASE: Final = "Refused while the node answers in the overlay, unless --force is given."
RESERVE: Final = """\
The node with that public IP leases this subnet and no other, and keeps it without a time limit.
No other node gets it."""
PRUNE: Final = """Lists the leases of nodes that answered this node's probes, through the tunnel and
beside it, and have answered neither for so long. Deletes them with --yes alone, never a
reservation, and refuses where this node's daemon has not watched for that long."""


def branch() -> Branch:
    """The command line."""
    prog = "pyflannel leases"
    listing = Parser(
        f"{prog} list",
        "who has which subnet, and for how long",
        LIST,
        flags=ETCD,
        examples=(
            "pyflannel leases",
            "pyflannel leases --json --etcd-endpoints=http://192.0.2.10:2379",
        ),
    )
    release = Parser(
        f"{prog} release",
        "give a subnet back; refused while its node is alive",
        RELEASE,
        flags=ETCD,
        examples=("pyflannel leases release 10.5.34.0/24 --dry-run",),
    )
    release.add_argument("--force", action="store_true", help="do not ask the node")
    reserve = Parser(
        f"{prog} reserve",
        "bind a subnet to a node's public IP, without a time limit",
        RESERVE,
        flags=ETCD,
        examples=("pyflannel leases reserve 10.5.34.0/24 --public-ip 192.0.2.34 --dry-run",),
    )
    reserve.add_argument("--public-ip", metavar="IP", required=True, help="the node's public IP")
    for each in (release, reserve):
        each.add_argument("subnet", metavar="SUBNET", help="as the list has it")
    silent = Parser(
        f"{prog} prune",
        "leases whose nodes this node's daemon has not heard for long",
        PRUNE,
        flags=ETCD,
        examples=(
            "pyflannel leases prune --silent-for 2h",
            "pyflannel leases prune --silent-for 1d --yes",
        ),
    )
    silent.add_argument(
        "--silent-for", metavar="TIME", required=True, help="90m, 2h, 1d; at least 10m"
    )
    silent.add_argument("--yes", action="store_true", help="release what is listed")
    status.add_socket_option(silent)
    for each in (release, reserve, silent):
        each.add_argument("--dry-run", action="store_true", help="say what would be done")
    actions = (listing, release, reserve, silent)
    for each in actions:
        each.add_argument("--json", action="store_true", help="print JSON")
    return group(prog, "who has which subnet", ABOUT, actions, default="list")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    options, rest = split_etcd(argv)
    here = branch()
    action, words = here.choose(rest)
    given = here.actions[action].parse_args(words)
    if action == "list":
        return _list(options, as_json_too=given.json)
    if action == "prune":
        return prune(
            options,
            given.silent_for,
            given.status_socket,
            yes=given.yes and not given.dry_run,
            as_json=given.json,
        )
    key = _subnet(given.subnet)
    address = _address(given.public_ip) if action == "reserve" else None

    async def work(store: Store) -> operator.Done:
        if address is None:
            clock, force = SystemClock(), given.force
            return await operator.release(
                store, options.prefix, key, clock, force=force, dry_run=given.dry_run
            )
        config = await _config(store, options.prefix)
        return await operator.reserve(
            store, options.prefix, config, key, address, dry_run=given.dry_run
        )

    done = with_store(options, work)
    if given.json:
        ttl = None if action == "reserve" else 0
        answer: LeaseDoneJson = {"done": done.text, "lease": as_json(done.lease, ttl)}
        print(json.dumps(answer, indent=2))
    else:
        print(done.text)
    return EXIT_OK


def _subnet(text: str) -> SubnetKey:
    spelt = text.replace(",", "&").replace("/", "-")
    key = parse_subnet_key(spelt)
    if key is None:
        raise UsageError(f"{shown(text)} is no subnet, expected 10.5.34.0/24 or with an IPv6 one")
    return key


def _address(text: str) -> IPv4Address | IPv6Address:
    try:
        return parse_ip(text)
    except ValueError as error:
        raise UsageError(f"--public-ip: {error}") from None


async def _config(store: Store, prefix: str) -> NetworkConfig:
    key = codec.config_key(prefix)
    found = await store.get(key)
    if not found.kvs:
        raise ConfigError(f"no network config under {shown(key)}, so no subnet can be reserved")
    return load_network_config(found.kvs[0].value, KINDS)


def _list(options: EtcdOptions, *, as_json_too: bool) -> int:
    leases, bad = with_store(options, lambda store: read(store, options.prefix))
    leases.sort(key=lambda each: each[0].key)
    here = local_addresses()
    if as_json_too:
        answer: LeasesJson = {
            "leases": [{**as_json(*each), "own": is_own(each[0], here)} for each in leases],
            "ignored": bad,
        }
        print(json.dumps(answer, indent=2))
        return EXIT_OK
    if not leases and not bad:
        print(_nothing(options), file=sys.stderr)
        return EXIT_OK
    # A program wants a lease in a line; a terminal is as wide as it is.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(page([(*each, is_own(each[0], here)) for each in leases], width), end="")
    for line in shared_addresses([lease for lease, _ in leases]):
        print(f"pyflannel: {shown(line, MOST_IN_LOG)}", file=sys.stderr)
    for key, reason in bad.items():
        print(f"ignored {shown(key)}: {shown(reason)}")
    return EXIT_OK


MOST_SHARED_SHOWN: Final = 8


def shared_addresses(leases: Sequence[Lease]) -> list[str]:
    """A sentence for each public address that several leases have, the first few."""
    by_address: dict[IPAddress, list[str]] = {}
    for lease in leases:
        for address in (lease.attrs.public_ip, lease.attrs.public_ipv6):
            if address is not None:
                by_address.setdefault(address, []).append(lease.key.describe())
    shared = [each for each in by_address.items() if len(each[1]) > 1]
    return [
        f"{address} has {len(subnets)} leases ({', '.join(subnets[:MOST_SHARED_SHOWN])}): packets "
        "to all but one go to the wrong node. If the node moved, the old ones end by themselves; "
        "pyflannel leases release ends one now"
        for address, subnets in shared[:MOST_SHARED_SHOWN]
    ]


def _nothing(options: EtcdOptions) -> str:
    """What an empty list means: a prefix that is not used, or a network without nodes."""
    key = codec.config_key(options.prefix)
    if with_store(options, lambda store: store.get(key)).kvs:
        return f"no leases under {shown(options.prefix)} yet"
    where = ", ".join(map(hide_user_info, options.endpoints))
    if options.discovery_srv:
        where = f"the SRV records of {options.discovery_srv}"
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


def as_json(lease: Lease, ttl: int | None) -> LeaseJson:
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


def is_own(lease: Lease, here: Collection[IPAddress]) -> bool:
    """Whether the lease is of the node that has these addresses."""
    return lease.attrs.public_ip in here or lease.attrs.public_ipv6 in here


def local_addresses() -> frozenset[IPAddress]:
    """The addresses of this node; none if the kernel does not tell."""
    from pyflannel.kernel.netlink import KernelNetlink

    async def ask() -> frozenset[IPAddress]:
        netlink = KernelNetlink()
        try:
            return frozenset(each.interface.ip for each in await netlink.addresses())
        finally:
            await netlink.close()

    try:
        return asyncio.run(ask())
    except FlannelError:
        return frozenset()  # no node of the overlay: a sandbox, an administrator's machine


def page(leases: Sequence[tuple[Lease, int | None, bool]], width: int | None) -> str:
    """The leases for people.

    Args:
        leases: each with the seconds it has left, and whether it is this node's.
        width: columns there are; `None` for a line per lease, however long.
    """
    wide = table(
        ("SUBNET", "PUBLIC IP", "BACKEND", "DATA", "TIME LEFT", "OWN"),
        [
            tuple(map(shown, (lease.key.describe(), _public(lease), *_rest(lease, ttl, own=own))))
            for lease, ttl, own in leases
        ],
    )
    if width is None or max(map(len, wide.splitlines())) <= width:
        return wide
    rows: list[tuple[str, ...]] = []
    below: list[str] = []
    """For each row the data that is printed below it, or nothing."""
    for lease, ttl, own in leases:
        backend, data, left, mark = _rest(lease, ttl, own=own)
        pairs = [
            (str(subnet), str(public) if public is not None else "-")
            for subnet, public in (
                (lease.key.v4, lease.attrs.public_ip),
                (lease.key.v6, lease.attrs.public_ipv6),
            )
            if subnet is not None
        ]
        for at, (subnet, public) in enumerate(pairs):
            about = (backend, left, mark) if at == 0 else ("", "", "")
            rows.append(tuple(map(shown, (subnet, public, *about))))
            last = at == len(pairs) - 1
            below.append(f"  {shown(data)}\n" if last and data != "-" else "")
    narrow = table(("SUBNET", "PUBLIC IP", "BACKEND", "TIME LEFT", "OWN"), rows)
    head, *lines = narrow.splitlines(keepends=True)
    return head + "".join(line + data for line, data in zip(lines, below, strict=True))


def _public(lease: Lease) -> str:
    attrs = lease.attrs
    addresses = [str(a) for a in (attrs.public_ip, attrs.public_ipv6) if a is not None]
    return " ".join(addresses) or "-"


def _rest(lease: Lease, ttl: int | None, *, own: bool) -> tuple[str, str, str, str]:
    attrs = lease.attrs
    data = [brief(each) for each in (attrs.backend_data, attrs.backend_v6_data) if each is not None]
    return (
        attrs.backend_type or "-",
        " ".join(filter(None, data)) or "-",
        "reserved" if ttl is None else _time(ttl),
        "*" if own else "",
    )


def brief(raw: str) -> str:
    """A backend's data for people: `VNI=1 VtepMAC=0a:00:00:00:00:01`; as it is if it is no such."""
    value = _decoded(raw)
    if value is None:
        return ""
    if not isinstance(value, dict) or not all(isinstance(v, str | int) for v in value.values()):
        return raw
    return " ".join(f"{key}={each}" for key, each in value.items())


def _time(seconds: int) -> str:
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m{seconds:02d}s"
