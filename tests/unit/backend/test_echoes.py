"""Telling our own writes from those of others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from pyflannel.backend.echoes import ECHO_EXPIRY_S, Echoes
from pyflannel.core.ip import Family
from pyflannel.kernel.base import Delete, FdbEntry, Neighbour, Notification, Route, Set, Topic
from tests.support.overlay import mac

ROUTE = Route(dst=IPv4Network("10.5.2.0/24"), gateway=IPv4Address("192.0.2.2"), oif=2)
NEWS = Notification(topic=Topic.ROUTE, index=2, family=Family.V4, dst=ROUTE.dst)


class Moments:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_write_swallows_one_notification():
    echoes = Echoes(Moments())
    echoes.expect([Set(ROUTE)])
    assert [echoes.swallow(NEWS), echoes.swallow(NEWS)] == [True, False]


def test_a_deletion_by_others_is_not_taken_for_our_write():
    echoes = Echoes(Moments())
    echoes.expect([Set(ROUTE)])
    assert not echoes.swallow(replace(NEWS, deleted=True))
    echoes.expect([Delete(ROUTE)])
    assert echoes.swallow(replace(NEWS, deleted=True))


def test_neighbours_and_fdb_entries_are_counted_by_device():
    echoes = Echoes(Moments())
    neighbour = Neighbour(index=9, ip=IPv4Address("10.5.2.0"), mac=mac(2))
    fdb = FdbEntry(index=9, mac=mac(2), dst=IPv4Address("192.0.2.2"))
    echoes.expect([Set(neighbour), Set(fdb)])
    news = Notification(topic=Topic.NEIGHBOUR, index=9, family=Family.V4)
    assert not echoes.swallow(replace(news, index=10))
    assert echoes.swallow(news)
    assert not echoes.swallow(news)
    assert echoes.swallow(replace(news, family=None))


def test_links_and_addresses_are_always_news():
    echoes = Echoes(Moments())
    echoes.expect([Set(ROUTE)])
    assert not echoes.swallow(Notification(topic=Topic.LINK, name="flannel.1"))
    assert not echoes.swallow(Notification(topic=Topic.OVERFLOW))


def test_what_is_not_met_expires_or_is_given_up():
    moments = Moments()
    echoes = Echoes(moments)
    echoes.expect([Set(ROUTE)])
    moments.now = ECHO_EXPIRY_S + 0.1
    assert not echoes.swallow(NEWS)
    echoes.expect([Set(ROUTE)])
    echoes.clear()
    assert not echoes.swallow(NEWS)
