"""`LeaseTable`: what the store says becomes the difference that backends are told."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyflannel.core.lease as lease_module
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.lease import (
    Changes,
    Identity,
    Lease,
    LeaseAdded,
    LeaseAttrs,
    LeaseDeleted,
    LeaseEvent,
    LeasePut,
    LeaseRemoved,
    LeaseTable,
    LeaseUpdate,
    Snapshot,
)

NETWORK = IPv4Network("10.5.0.0/16")
NETWORK6 = IPv6Network("fd00:5::/48")


def key(third: int, *, v6: bool = False) -> SubnetKey:
    subnet6 = IPv6Network(f"fd00:5:0:{third:x}::/64") if v6 else None
    return SubnetKey(IPv4Network(f"10.5.{third}.0/24"), subnet6)


def lease(
    third: int, host: int | None = None, *, data: str | None = None, v6: bool = False,
    revision: int = 0,
) -> Lease:  # fmt: skip
    ip = IPv4Address(f"192.0.2.{host if host is not None else third}")
    attrs = LeaseAttrs(public_ip=ip, backend_data=data)
    return Lease(key=key(third, v6=v6), attrs=attrs, revision=revision, expires=float(revision))


def table() -> LeaseTable:
    return LeaseTable(network=NETWORK, network6=NETWORK6)


def test_the_first_snapshot_adds_every_peer_and_an_equal_one_changes_nothing() -> None:
    peers = table()
    assert peers.apply(Snapshot([lease(1), lease(2)], 5)) == [
        LeaseAdded(lease(1)),
        LeaseAdded(lease(2)),
    ]
    assert peers.apply(Snapshot([lease(1), lease(2)], 9)) == []


def test_a_renewal_is_no_change() -> None:
    peers = table()
    peers.apply(Snapshot([lease(1, revision=1)], 1))
    assert peers.apply(Changes([LeasePut(lease(1, revision=2))], 2)) == []
    assert peers.peers[key(1)].revision == 2


def test_a_snapshot_reports_what_vanished_and_what_changed_while_we_were_away() -> None:
    peers = table()
    peers.apply(Snapshot([lease(1), lease(2), lease(3)], 5))
    events = peers.apply(Snapshot([lease(2, host=9), lease(3, data='{"VNI":1}')], 9))
    assert events == [
        LeaseRemoved(lease(1)),
        LeaseAdded(lease(2, host=9), lease(2)),
        LeaseAdded(lease(3, data='{"VNI":1}'), lease(3)),
    ]


def test_a_removal_carries_the_attributes_that_were_known() -> None:
    peers = table()
    peers.apply(Snapshot([lease(1, data='"x"')], 5))
    assert peers.apply(Changes([LeaseDeleted(key(1))], 6)) == [LeaseRemoved(lease(1, data='"x"'))]
    assert peers.apply(Changes([LeaseDeleted(key(1))], 7)) == []


def test_every_event_of_one_answer_counts_and_the_last_of_a_key_decides() -> None:
    peers = table()
    events = [LeasePut(lease(n)) for n in range(1, 101)]
    assert len(peers.apply(Changes(events, 1))) == 100
    flicker: list[LeasePut | LeaseDeleted] = [
        LeaseDeleted(key(1)),
        LeasePut(lease(1)),
        LeasePut(lease(2)),
        LeaseDeleted(key(2)),
    ]
    assert peers.apply(Changes(flicker, 2)) == [LeaseRemoved(lease(2))]


def test_removals_come_first_so_that_a_subnet_that_moved_between_keys_stays() -> None:
    peers = table()
    peers.apply(Snapshot([lease(1)], 1))
    moved = lease(1, v6=True)
    events = peers.apply(Changes([LeasePut(moved), LeaseDeleted(key(1))], 2))
    assert events == [LeaseRemoved(lease(1)), LeaseAdded(moved)]


def test_our_own_lease_is_never_reported() -> None:
    peers = table()
    assert peers.set_own(Identity(key=key(1))) == []
    assert peers.apply(Snapshot([lease(1), lease(2)], 1)) == [LeaseAdded(lease(2))]
    assert peers.apply(Changes([LeasePut(lease(1, host=9)), LeaseDeleted(key(1))], 2)) == []
    assert peers.apply(Snapshot([lease(2)], 3)) == []


def test_a_peer_whose_lease_becomes_ours_is_removed() -> None:
    peers = table()
    peers.apply(Snapshot([lease(1), lease(2)], 1))
    assert peers.set_own(Identity(key=key(1))) == [LeaseRemoved(lease(1))]
    assert list(peers.peers) == [key(2)]


def test_what_lies_outside_the_network_is_rejected_with_a_reason() -> None:
    peers = table()
    outside = Lease(key=SubnetKey(IPv4Network("10.6.1.0/24")), attrs=LeaseAttrs())
    outside6 = Lease(
        key=SubnetKey(IPv4Network("10.5.1.0/24"), IPv6Network("fd99::/64")), attrs=LeaseAttrs()
    )
    wider = Lease(key=SubnetKey(IPv4Network("10.0.0.0/8")), attrs=LeaseAttrs())
    assert peers.apply(Snapshot([outside, outside6, wider, lease(2)], 1)) == [LeaseAdded(lease(2))]
    assert set(peers.rejected) == {outside.key, outside6.key, wider.key}
    assert "10.6.1.0/24 is outside the network 10.5.0.0/16" in peers.rejected[outside.key]


def test_a_rejection_is_forgotten_when_its_key_goes_or_a_snapshot_comes() -> None:
    peers = table()
    outside = Lease(key=SubnetKey(IPv4Network("10.6.1.0/24")), attrs=LeaseAttrs())
    peers.apply(Changes([LeasePut(outside)], 1))
    assert outside.key in peers.rejected
    peers.apply(Changes([LeaseDeleted(outside.key)], 2))
    assert peers.rejected == {}
    peers.apply(Changes([LeasePut(outside)], 3))
    peers.apply(Snapshot([], 4))
    assert peers.rejected == {}


def test_a_lease_of_the_other_family_only_is_no_peer() -> None:
    only4 = LeaseTable(network=NETWORK, network6=None)
    v6_only = Lease(key=SubnetKey(None, IPv6Network("fd00:5:0:1::/64")), attrs=LeaseAttrs())
    assert only4.apply(Snapshot([v6_only], 1)) == []
    assert v6_only.key in only4.rejected
    # A dual-stack peer in a network that uses IPv4 only is still a peer.
    assert only4.apply(Snapshot([lease(1, v6=True)], 2)) == [LeaseAdded(lease(1, v6=True))]
    only6 = LeaseTable(network=None, network6=NETWORK6)
    assert only6.apply(Snapshot([v6_only], 1)) == [LeaseAdded(v6_only)]


def test_a_lease_gives_its_parts_by_family() -> None:
    dual = lease(1, v6=True)
    assert dual.subnet(Family.V6) == IPv6Network("fd00:5:0:1::/64")
    assert dual.attrs.underlay(Family.V4) == IPv4Address("192.0.2.1")
    assert dual.attrs.underlay(Family.V6) is None
    assert LeaseAttrs(backend_v6_data="1").data(Family.V6) == "1"
    assert lease(1).is_reservation


_leases = st.builds(
    lambda third, host, v6: lease(third, host, v6=v6),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
_strangers = st.just(Lease(key=SubnetKey(IPv4Network("10.6.1.0/24")), attrs=LeaseAttrs()))
_any_lease = _leases | _strangers
_updates: st.SearchStrategy[list[LeaseUpdate]] = st.lists(
    st.lists(_any_lease, max_size=5, unique_by=lambda one: one.key).map(
        lambda all_: Snapshot(all_, 0)
    )
    | st.lists(
        _any_lease.map(LeasePut) | _any_lease.map(lambda one: LeaseDeleted(one.key)), max_size=5
    ).map(lambda events: Changes(events, 0)),
    max_size=8,
)


def replay(peers: dict[SubnetKey, Lease], events: Sequence[LeaseEvent]) -> None:
    """What a backend does with events; checks that each makes sense to it."""
    for event in events:
        if isinstance(event, LeaseRemoved):
            assert peers.pop(event.lease.key) == event.lease
        else:
            assert peers.get(event.lease.key) == event.previous
            assert event.previous != event.lease
            peers[event.lease.key] = event.lease


@pytest.mark.slow
@pytest.mark.parametrize("part", [1, 2, 500])
@settings(deadline=None, max_examples=200)
@given(_updates, st.none() | st.builds(key, st.integers(1, 4)))
def test_replayed_events_give_what_the_store_holds_less_our_own_and_strangers(
    part: int, updates: list[LeaseUpdate], own: SubnetKey | None
) -> None:
    with mock.patch.object(lease_module, "PART", part):
        check_replayed_events(updates, own)


def check_replayed_events(updates: list[LeaseUpdate], own: SubnetKey | None) -> None:
    stored: dict[SubnetKey, Lease] = {}
    known: dict[SubnetKey, Lease] = {}
    peers = table()
    peers.set_own(Identity(key=own) if own is not None else None)
    for update in updates:
        if isinstance(update, Snapshot):
            stored = {one.key: one for one in update.leases}
        else:
            for event in update.events:
                if isinstance(event, LeasePut):
                    stored[event.lease.key] = event.lease
                else:
                    stored.pop(event.key, None)
        events = [event for part in peers.parts(update) for event in peers.apply(part)]
        assert all(event.lease.key != own for event in events)
        replay(known, events)
        expected = {
            k: one
            for k, one in stored.items()
            if k != own and k.v4 is not None and k.v4.subnet_of(NETWORK)
        }
        assert known == expected == peers.peers
        assert set(peers.rejected) == {k for k in stored if k.v4 and not k.v4.subnet_of(NETWORK)}


def test_very_many_changes_come_in_parts_and_to_the_same_end() -> None:
    """What is gone first; of several changes of a key the last one counts."""
    chance = random.Random(1)
    before = [lease(third) for third in range(200)]
    events: list[LeasePut | LeaseDeleted] = [
        LeaseDeleted(key(chance.randrange(256)))
        if chance.random() < 0.5
        else LeasePut(lease(chance.randrange(256), host=chance.randrange(9)))
        for _ in range(1_000)
    ]
    at_once, in_parts = table(), table()
    for peers in (at_once, in_parts):
        peers.apply(Snapshot(before, 1))
    at_once.apply(Changes(events, 2))
    parts = list(in_parts.parts(Changes(events, 2)))
    assert max(len(part.events) for part in parts if isinstance(part, Changes)) <= lease_module.PART
    told = [event for part in parts for event in in_parts.apply(part)]
    assert in_parts.peers == at_once.peers
    kinds = [type(event) for event in told]
    assert kinds == sorted(kinds, key=lambda kind: kind is not LeaseRemoved)


def test_what_becomes_ours_goes_at_once_and_the_rest_is_judged_in_parts():
    peers = table()
    with mock.patch.object(lease_module, "PART", 2):
        peers.apply(Snapshot([lease(n) for n in range(1, 7)], 1))
        own = Identity(key=key(6), public=frozenset((IPv4Address("192.0.2.3"),)))
        parts = peers.set_own_in_parts(own)
        assert next(parts) == [LeaseRemoved(lease(6))]
        peers.apply(Changes([LeaseDeleted(key(5))], 2))
        assert [event for part in parts for event in part] == [LeaseRemoved(lease(3))]
    assert set(peers.peers) == {key(1), key(2), key(4)}


@pytest.mark.slow
def test_of_many_leases_no_part_takes_long():
    """In CPU time of this thread, which does not depend on who else uses the machine."""
    first = int(IPv4Address("10.64.0.0"))
    leases = [
        Lease(
            key=SubnetKey(IPv4Network((first + 16 * n, 28))),
            attrs=LeaseAttrs(
                public_ip=IPv4Address(0xAC100000 + n),
                backend_type="vxlan",
                backend_data=f'{{"VNI":1,"VtepMAC":"0a:00:00:00:{n >> 8:02x}:{n % 256:02x}"}}',
            ),
        )
        for n in range(20_000)
    ]
    peers = LeaseTable(network=IPv4Network("10.0.0.0/8"), network6=None)
    peers.set_own(OURS)
    moved = replace(OURS, public=frozenset((IPv4Address(0xAC100007),)))
    longest = 0.0
    gc.collect()
    gc.freeze()
    try:
        for work in (
            map(peers.apply, peers.parts(Snapshot(leases, 1))),
            map(peers.apply, peers.parts(Snapshot(leases[:10_000], 2))),
            peers.set_own_in_parts(moved),
        ):
            longest = max(longest, *_timed(work))
    finally:
        gc.unfreeze()
    assert len(peers.peers) == 9_999
    assert longest < 0.05


def _timed(work: Iterable[object]) -> Iterator[float]:
    """CPU seconds that each step of it takes."""
    steps = iter(work)
    while True:
        before = time.thread_time()
        try:
            next(steps)
        except StopIteration:
            return
        yield time.thread_time() - before


def test_the_node_that_took_our_subnet_is_a_peer_as_soon_as_we_have_another():
    """The takeover is seen under our own key, before we know where we are going."""
    table = LeaseTable(network=IPv4Network("10.0.0.0/16"), network6=None)
    ours, other = (SubnetKey(IPv4Network(f"10.0.{n}.0/24")) for n in (1, 2))
    table.set_own(Identity(key=ours))
    thief = Lease(key=ours, attrs=LeaseAttrs(public_ip=IPv4Address("192.0.2.99")))
    assert table.apply(Changes([LeasePut(thief)], 5)) == []
    assert table.set_own(Identity(key=other)) == [LeaseAdded(thief)]
    assert table.peers == {ours: thief}


def test_a_lease_on_the_whole_network_is_no_peer():
    """It would draw every packet of the cluster to one node."""
    table = LeaseTable(network=IPv4Network("10.0.0.0/16"), network6=None)
    greedy = Lease(key=SubnetKey(IPv4Network("10.0.0.0/16")), attrs=LeaseAttrs())
    assert table.apply(Snapshot([greedy], 1)) == []
    assert table.rejected == {greedy.key: "10.0.0.0/16 is the whole network"}


def test_leases_that_came_and_went_leave_nothing_behind() -> None:
    """100,000 keys outside the network once cost 58 MB that never came back."""
    peers = table()
    tracemalloc.start()
    try:
        for number in range(2000):
            subnet = IPv4Network((0x0B000000 + (number << 8), 24))
            peers.apply(Changes([LeasePut(Lease(key=SubnetKey(subnet), attrs=LeaseAttrs()))], 1))
            assert [key.v4 for key, _ in peers.new_rejections()] == [subnet]
            peers.apply(Changes([LeaseDeleted(SubnetKey(subnet))], 2))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 50_000


MAC = "020000000a0b"
OURS = Identity(
    key=key(1), public=frozenset([IPv4Address("192.0.2.1")]), macs=frozenset([MAC]), store_lease=7
)
"""This node: 10.5.1.0/24 at 192.0.2.1, with a vxlan device."""


def vxlan(third: int, host: int, mac: str) -> Lease:
    data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
    attrs = LeaseAttrs(
        public_ip=IPv4Address(f"192.0.2.{host}"), backend_type="vxlan", backend_data=data
    )
    return Lease(key=key(third), attrs=attrs, store_lease=third)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (lease(2, host=1), "it has this node's own public IP 192.0.2.1"),
        (vxlan(2, 9, "02:00:00:00:0A:0B"), "it has this node's own VTEP MAC"),
        (vxlan(7, 9, "02:00:00:00:00:01"), "it hangs on this node's own etcd lease"),
    ],
)
def test_a_lease_that_is_ours_by_what_it_says_is_no_peer(found: Lease, reason: str) -> None:
    """A former subnet of this node: a route to it would lead to ourselves, past its containers."""
    peers = table()
    peers.set_own(OURS)
    assert peers.apply(Changes([LeasePut(found)], 1)) == []
    assert peers.rejected == {found.key: reason}
    assert peers.new_rejections() == [(found.key, reason)]
    other = vxlan(3, 3, "02:00:00:00:00:03")
    assert peers.apply(Snapshot([found, other], 2)) == [LeaseAdded(other)]


@pytest.mark.parametrize("host", [1, 9], ids=["our address", "another address"])
def test_a_lease_that_the_store_knows_as_ours_is_no_peer_and_no_stranger(host: int) -> None:
    """It may come before we are told of the subnet that it gives us."""
    peers = table()
    peers.set_own(OURS)
    ours = replace(lease(2, host=host), ours=True)
    assert peers.apply(Changes([LeasePut(ours)], 1)) == []
    assert peers.apply(Snapshot([ours, lease(3)], 2)) == [LeaseAdded(lease(3))]
    assert peers.rejected == {}
    assert peers.new_rejections() == []


def test_an_address_that_we_take_ends_a_peer_and_one_that_we_give_up_makes_one() -> None:
    peers = table()
    peers.set_own(OURS)
    peers.apply(Snapshot([lease(2, host=2), lease(3, host=1)], 1))
    assert list(peers.peers) == [key(2)]
    moved = Identity(key=key(1), public=frozenset([IPv4Address("192.0.2.2")]))
    assert peers.set_own(moved) == [
        LeaseRemoved(lease(2, host=2)),
        LeaseAdded(lease(3, host=1)),
    ]
    assert set(peers.rejected) == {key(2)}


def test_our_key_under_another_address_and_back_again_makes_no_peer() -> None:
    """An operator writes it by mistake, and restores the old value a second later."""
    peers = table()
    peers.set_own(OURS)
    peers.apply(Changes([LeasePut(lease(1, host=99))], 1))
    assert peers.set_own(Identity(key=key(4), public=OURS.public)) == [
        LeaseAdded(lease(1, host=99))
    ]
    assert peers.apply(Changes([LeasePut(lease(1))], 2)) == [LeaseRemoved(lease(1, host=99))]


def test_a_node_is_known_by_what_it_published_and_by_what_it_is_about_to_publish() -> None:
    mine = vxlan(1, 1, "02:00:00:00:0a:0b")
    new = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
    nothing = LeaseAttrs(public_ip=IPv4Address("0.0.0.0"))
    assert Identity.of(mine, new, nothing) == Identity(
        key=key(1),
        public=frozenset([IPv4Address("192.0.2.1"), IPv4Address("192.0.2.77")]),
        macs=frozenset([MAC]),
        store_lease=1,
    )
