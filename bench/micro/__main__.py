"""`python -m bench.micro`: nanoseconds per call; median and range of several runs of many calls."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import timeit
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from random import Random

from pyflannel.backend.kinds import KINDS
from pyflannel.core import allocation, freesubnets
from pyflannel.core.configparse import load_network_config, parse_network_config
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs, LeaseTable, Snapshot
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.records import dataclass
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import KeyValue

RUNS = 7
CONFIG = b'{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}'
VALUE = (
    b'{"PublicIP":"192.0.2.7","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"de:a0:bb:bc:b0:ba"}}'
)


def peers(count: int) -> list[Peer]:
    """So many peers with a /24 each."""
    return [
        Peer(IPv4Network(((10 << 24) + (n << 8), 24)), IPv4Address((192 << 24) + n))
        for n in range(count)
    ]


def leases(count: int) -> list[Lease]:
    """So many leases."""
    return [
        Lease(key=SubnetKey(peer.subnet), attrs=LeaseAttrs(public_ip=peer.address))
        for peer in peers(count)
    ]


def lookup(count: int) -> Callable[[], object]:
    """Random hits in a table of a given size."""
    table = PeerTable(peers(count))
    rng = random.Random(count)
    asked = [(10 << 24) + (rng.randrange(count) << 8) + 7 for _ in range(1024)]

    def call() -> None:
        for destination in asked:
            table.lookup(destination)

    return call


def record(decorate: Callable[..., Callable[[type], type]]) -> Callable[[], type]:
    """Builds a class of five fields, by the library's decorator or the product's."""
    fields = dict.fromkeys(("a", "b", "c", "d", "e"), int)

    def call() -> type:
        body = {"__annotations__": dict(fields), "__doc__": "A record.", "__module__": __name__}
        return decorate(frozen=True, slots=True)(type("Made", (), body))

    return call


def cases() -> dict[str, tuple[Callable[[], object], int]]:
    """Name → what is called, and how many operations one call is."""
    config = load_network_config(CONFIG, KINDS)
    kv = KeyValue(
        key=b"/coreos.com/network/subnets/10.5.34.0-24", value=VALUE, mod_revision=5, lease=7
    )
    thousand = leases(1000)
    keys = [lease.key for lease in thousand]

    def snapshot() -> None:
        LeaseTable(network=IPv4Network("10.0.0.0/8"), network6=None).apply(Snapshot(thousand, 1))

    ours, librarys = record(dataclass), record(dataclasses.dataclass)
    make, make_as_library = ours(), librarys()
    return {
        "class of records, the library's": (librarys, 1),
        "class of records, ours": (ours, 1),
        "record made, the library's": (lambda: make_as_library(1, 2, 3, 4, 5), 1),
        "record made, ours": (lambda: make(1, 2, 3, 4, 5), 1),
        **{f"peer table look-up, {n} peers": (lookup(n), 1024) for n in (1, 1000, 10000)},
        "peer table of 1000, made": (lambda: PeerTable(peers(1000)), 1),
        "lease decoded": (lambda: codec.decode_lease("/coreos.com/network", kv), 1),
        "snapshot of 1000 applied": (snapshot, 1),
        "config parsed": (lambda: parse_network_config(CONFIG, KINDS), 1),
        "free subnet chosen among 1000 leases": (
            lambda: freesubnets.candidates(config, keys, Family.V4),
            1,
        ),
        "plan with 1000 leases": (
            lambda: allocation.plan(
                config,
                thousand,
                LeaseAttrs(public_ip=IPv4Address("192.0.2.1")),
                previous=None,
                rng=Random(1),
            ),
            1,
        ),
    }


def main() -> int:
    """Prints the table, or JSON with --json; returns the exit code."""
    results = {}
    for name, (call, operations) in cases().items():
        timer = timeit.Timer(call)
        number, _ = timer.autorange()
        samples = [t / number / operations * 1e9 for t in timer.repeat(RUNS, number)]
        results[name] = samples
        middle = statistics.median(samples)
        if "--json" not in sys.argv:
            print(f"{name:42} {middle:12.0f} ns  ({min(samples):.0f}–{max(samples):.0f})")
    if "--json" in sys.argv:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
