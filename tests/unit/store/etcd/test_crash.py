"""A node that is killed while it takes a lease has it again after the next start.

Killed between any two of the things it does outside itself: before or after any request, before or
after any write of its record.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.store import record as record_module
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore

PREFIX = "/coreos.com/network"
CONFIG = b'{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}'
ADDRESS, FORMER_ADDRESS = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.9")
OTHERS = IPv4Address("192.0.2.2")


class Killed(BaseException):
    """As by SIGKILL: nothing after it is carried out."""


class Doom:
    """Kills at the n-th moment; without one it only counts them."""

    def __init__(self, at: int | None = None) -> None:
        self.moments = 0
        self._at = at

    def moment(self) -> None:
        if self._at is not None and self.moments >= self._at:
            raise Killed
        self.moments += 1

    def over(self) -> None:
        """The next process lives."""
        self._at = None


class MortalStore(FakeStore):
    """Each request is two moments: before it, and between its effect and its answer."""

    def __init__(self, etcd: FakeEtcd, doom: Doom) -> None:
        super().__init__(etcd)
        self._doom = doom

    async def _enter(self, operation: str) -> Callable[[], None]:
        self._doom.moment()
        leave = await super()._enter(operation)

        def after() -> None:
            self._doom.moment()
            leave()

        return after


def subnet(third: int) -> SubnetKey:
    return SubnetKey(IPv4Network(f"10.0.{third}.0/24"))


@dataclass(frozen=True)
class Situation:
    """What the node finds."""

    prepare: Callable[[FakeEtcd, LeaseRecord], None]
    previous: SubnetKey | None = None
    """What `subnet.env` names; it is gone after a reboot."""
    next_address: IPv4Address = ADDRESS
    """The node's at the start after the crash."""


def nothing(etcd: FakeEtcd, record: LeaseRecord) -> None:
    """A first start in an empty network."""


def taken_by_another(etcd: FakeEtcd, record: LeaseRecord) -> None:
    """The lease has ended during a long absence, and another node has the subnet."""
    record.save(Lease(key=subnet(7), attrs=LeaseAttrs(public_ip=ADDRESS), store_lease=77))
    etcd.put(codec.lease_key(PREFIX, subnet(7)), codec.encode_attrs(LeaseAttrs(public_ip=OTHERS)))


def ended(etcd: FakeEtcd, record: LeaseRecord) -> None:
    """The lease has ended, and its subnet is free."""
    record.save(Lease(key=subnet(7), attrs=LeaseAttrs(public_ip=ADDRESS), store_lease=77))


def held(etcd: FakeEtcd, record: LeaseRecord, *, ttl: int, address: IPv4Address) -> None:
    """The lease is there."""
    attrs = LeaseAttrs(public_ip=address)
    lease = Lease(key=subnet(7), attrs=attrs, store_lease=etcd.grant(ttl))
    etcd.put(codec.lease_key(PREFIX, subnet(7)), codec.encode_attrs(attrs), lease=lease.store_lease)
    record.save(lease)


def does_not_fit(etcd: FakeEtcd, record: LeaseRecord) -> None:
    """The network was divided anew."""
    attrs = LeaseAttrs(public_ip=ADDRESS)
    key = SubnetKey(IPv4Network("10.0.7.0/25"))
    lease = Lease(key=key, attrs=attrs, store_lease=etcd.grant(86400))
    etcd.put(codec.lease_key(PREFIX, key), codec.encode_attrs(attrs), lease=lease.store_lease)
    record.save(lease)


SITUATIONS = {
    "first start": Situation(nothing),
    "first start, then another address": Situation(nothing, next_address=FORMER_ADDRESS),
    "taken by another": Situation(taken_by_another),
    "taken by another, subnet.env names it": Situation(taken_by_another, previous=subnet(7)),
    "taken by another, then another address": Situation(
        taken_by_another, next_address=FORMER_ADDRESS
    ),
    "ended": Situation(ended),
    "held": Situation(partial(held, ttl=86400, address=ADDRESS), previous=subnet(7)),
    "held after a reboot": Situation(partial(held, ttl=86400, address=ADDRESS)),
    "held with another TTL": Situation(partial(held, ttl=600, address=ADDRESS)),
    "held under a former address": Situation(partial(held, ttl=86400, address=FORMER_ADDRESS)),
    "held with both": Situation(partial(held, ttl=600, address=FORMER_ADDRESS)),
    "does not fit": Situation(does_not_fit),
}


async def start(
    etcd: FakeEtcd, state: Path, doom: Doom, previous: SubnetKey | None, address: IPv4Address
) -> Lease:
    """One start up to the lease; a process that ends leaves nothing behind but etcd and files."""
    store = MortalStore(etcd, doom)
    manager = EtcdLeaseStore(
        store,
        PREFIX,
        kinds=KINDS,
        clock=etcd.clock,
        record=LeaseRecord(str(state), PREFIX),
        previous=previous,
        rng=random.Random(doom.moments),
    )
    await manager.network_config()
    winning = asyncio.ensure_future(manager.acquire(LeaseAttrs(public_ip=address)))
    while not winning.done():
        await etcd.clock.advance(0.5)
    return winning.result()


def ours(etcd: FakeEtcd) -> set[bytes]:
    """The keys in etcd that do not belong to the other node."""
    return {
        kv.key
        for kv in etcd.below(codec.subnets_prefix(PREFIX))
        if str(OTHERS) not in str(kv.value)
    }


def play(state: Path, situation: Situation, doom: Doom) -> tuple[set[bytes], set[bytes], Lease]:
    """Our keys at the crash, our keys after the next start, and what that has won."""

    async def go() -> tuple[set[bytes], set[bytes], Lease]:
        etcd = FakeEtcd(FakeClock())
        etcd.put(codec.config_key(PREFIX), CONFIG)
        situation.prepare(etcd, LeaseRecord(str(state), PREFIX))
        address = ADDRESS
        try:
            lease = await start(etcd, state, doom, situation.previous, address)
        except Killed:
            before = ours(etcd)
            address = situation.next_address
            doom.over()
            lease = await start(etcd, state, doom, situation.previous, address)
        else:
            before = ours(etcd)
        kv = etcd.get(codec.lease_key(PREFIX, lease.key))
        assert kv is not None
        assert kv.value == codec.encode_attrs(LeaseAttrs(public_ip=address))
        return before, ours(etcd), lease

    return asyncio.run(go())


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=list(SITUATIONS))
def test_whenever_it_is_killed_it_has_the_same_subnet_and_no_second_one(
    situation, tmp_path, monkeypatch
):
    write = record_module.write_atomically
    doom = Doom()

    def mortal(path: Path, data: bytes, *, private: bool) -> None:
        doom.moment()
        write(path, data, private=private)
        doom.moment()

    def prepare(etcd: FakeEtcd, record: LeaseRecord) -> None:
        with monkeypatch.context() as former_run:
            former_run.setattr(record_module, "write_atomically", write)
            situation.prepare(etcd, record)

    monkeypatch.setattr(record_module, "write_atomically", mortal)
    prepared = replace(situation, prepare=prepare)
    _, keys, lease = play(tmp_path / "whole", prepared, doom)
    assert keys == {codec.lease_key(PREFIX, lease.key)}
    moments = doom.moments
    assert moments > 6
    for moment in range(moments):
        doom = Doom(moment)
        before, after, lease = play(tmp_path / str(moment), prepared, doom)
        key = codec.lease_key(PREFIX, lease.key)
        assert after == {key}, f"killed at {moment} of {moments}: an orphan"
        fitting = {found for found in before if found.endswith(b"-24")}
        assert fitting <= {key}, f"killed at {moment} of {moments}: another subnet"
