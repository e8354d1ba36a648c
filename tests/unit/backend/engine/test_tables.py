"""Who owns a key, and what a listing means."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend.engine import tables
from pyflannel.backend.engine.tables import KIND, TableState, table_id
from pyflannel.kernel.base import RTPROT_KERNEL, FdbEntry, Neighbour, Route
from tests.support.overlay import key, mac

FDB = FdbEntry(index=9, mac=mac(2), dst=IPv4Address("192.0.2.2"))
OTHER = replace(FDB, dst=IPv4Address("192.0.2.3"))


def nothing_is_ours(_thing: object) -> bool:
    return False


def everything_is_ours(_thing: object) -> bool:
    return True


def wanting(*things: FdbEntry | Route) -> TableState:
    table = TableState()
    for thing in things:
        table.want(key(2), thing)
    return table


def test_objects_lie_in_the_table_of_their_kind_family_and_link():
    route = Route(dst=IPv4Network("10.5.2.0/24"), oif=9)
    neighbour = Neighbour(index=9, ip=IPv4Address("10.5.2.0"), mac=mac(2))
    assert table_id(route) == ("route", 4, 0)
    assert table_id(neighbour) == ("neighbour", 4, 9)
    assert table_id(FDB) == ("fdb", 0, 9)
    assert list(KIND.values()) == ["neighbour", "fdb", "route"], "the order of dependence"


def test_strangers_under_keys_that_are_not_wanted_are_not_seen():
    table = wanting()
    table.take([FDB], nothing_is_ours)
    assert dict(table.delta.actual) == {}
    table.forget_listing()
    table.take([FDB], everything_is_ours)
    assert list(table.delta.deletes()) == [(FDB.key, FDB)]


def test_what_we_no_longer_want_stays_ours_unless_it_was_replaced():
    table = wanting(FDB)
    table.take([FDB], nothing_is_ours)
    table.unwant(key(2), FDB.key)
    table.take([FDB, replace(FDB, mac=mac(77))], nothing_is_ours)
    assert list(table.delta.deletes()) == [(FDB.key, FDB)]
    table.take([OTHER], nothing_is_ours)
    assert list(table.delta.deletes()) == []


def test_of_several_under_one_key_all_but_the_wanted_one_are_surplus():
    for listing in ([FDB, OTHER], [OTHER, FDB]):
        table = wanting(FDB)
        table.take(list(listing), nothing_is_ours)
        assert table.surplus == [(OTHER, True)]
        assert len(table.delta) == 0


def test_an_ipv6_route_with_a_better_metric_is_surplus_where_we_want_one():
    """The kernel's own (256, of an address) and worse ones do not count, nor other destinations."""
    ours = Route(dst=IPv6Network("fd00:5:0:2::/64"), gateway=IPv6Address("fd00:5:0:2::"), oif=9)
    better = replace(ours, gateway=IPv6Address("2001:db8::9"), oif=2, metric=10)
    others = [
        replace(better, metric=2048),
        replace(better, metric=256, protocol=RTPROT_KERNEL),
        replace(better, dst=IPv6Network("fd00:5:0:3::/64")),
        Route(dst=IPv4Network("10.5.2.0/24"), oif=2, metric=10),
    ]
    table = wanting(ours)
    table.take([better, ours, *others], nothing_is_ours)
    assert table.surplus == [(better, True)]
    assert len(table.delta) == 0


def test_the_first_listing_breaks_nothing_and_later_ones_tell_what_drifted():
    table = wanting(FDB)
    table.take([], nothing_is_ours)
    assert table.drifted == set()
    table.delta.applied(FDB.key)
    table.take([OTHER], nothing_is_ours)
    assert table.drifted == {FDB.key}


OWNERS = st.sampled_from([None, key(2), key(3)])
CLAIMS = st.lists(st.tuples(st.booleans(), OWNERS, st.sampled_from([FDB, OTHER])), max_size=20)


@given(CLAIMS)
def test_the_latest_of_those_who_still_want_a_key_has_it(claims):
    """Against the naive model: all claims in the order they were made."""
    table = TableState()
    model: dict[object, FdbEntry] = {}
    for wants, owner, thing in claims:
        if wants:
            held = next(reversed(model), None) if model else None
            if held != owner or not model:
                model.pop(owner, None)
            model[owner] = thing
            table.want(owner, thing)
        else:
            model.pop(owner, None)
            table.unwant(owner, thing.key)
        expected = model[next(reversed(model))] if model else None
        assert table.delta.desired.get(FDB.key) == expected
        assert table.owners.get(FDB.key, "nobody") == (next(reversed(model)) if model else "nobody")


RANKED_CLAIMS = st.lists(
    st.tuples(OWNERS, st.sampled_from([FDB, OTHER]), st.none() | st.integers(0, 3)), max_size=20
)


@given(RANKED_CLAIMS)
def test_of_several_the_one_with_the_highest_rank_has_the_key(claims):
    """A naive model looks at all current claims, in any order."""
    table = TableState()
    model: dict[object, tuple[int, FdbEntry]] = {}
    for owner, thing, rank in claims:
        if rank is None:
            model.pop(owner, None)
            table.unwant(owner, thing.key)
        else:
            model[owner] = (rank, thing)
            table.want(owner, thing, rank)
        highest = max((rank for rank, _ in model.values()), default=None)
        best = {one: thing for one, (rank, thing) in model.items() if rank == highest}
        holder = table.owners.get(FDB.key, "nobody")
        assert holder in best or not best
        assert table.delta.desired.get(FDB.key) == best.get(holder)


def test_a_long_listing_is_taken_with_pauses_also_when_it_is_like_the_last():
    wanted = [replace(FDB, mac=mac(number)) for number in range(200)]
    table = wanting(*wanted)
    with mock.patch.object(tables, "AT_ONCE", 50):
        assert len(list(table.taking(list(wanted), nothing_is_ours))) >= 4
        assert not list(table.delta.sets())
        again = list(wanted)
        assert len(list(table.taking(again, nothing_is_ours))) == 8
        assert not again, "let go of in steps as well"
        assert len(list(table.taking(wanted[:-1], nothing_is_ours))) >= 3
    assert [key for key, _ in table.delta.sets()] == [wanted[-1].key]
