"""Which peers policies of IPsec are for."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.datapath.ebpf import ipsec

HERE = IPv4Address("192.0.2.1")


@pytest.fixture
def kernel(monkeypatch):
    """The networks that policies are for, which tests change; an error is raised."""
    there: list[str | KernelError] = []

    def protected(address: IPv4Address, port: int) -> list[IPv4Network]:
        assert (address, port) == (HERE, 8285)
        for each in there:
            if isinstance(each, KernelError):
                raise each
        return [IPv4Network(each) for each in there]

    monkeypatch.setattr(ipsec.xfrm, "protected", protected)
    return there


def covered(guards: ipsec.Guards) -> list[str]:
    peers = ("192.0.2.2", "192.0.2.3", "198.51.100.7")
    return [each for each in peers if guards.cover(IPv4Address(each).packed)]


def test_networks_of_all_lengths_cover_the_peers_in_them(kernel):
    guards = ipsec.Guards(HERE, 8285)
    assert not guards.look()
    assert (covered(guards), guards.any) == ([], False)
    kernel += ["192.0.2.2/32", "198.51.0.0/16", "203.0.113.0/24"]
    assert guards.look()
    assert (covered(guards), guards.any) == (["192.0.2.2", "198.51.100.7"], True)
    assert not guards.look(), "nothing new"
    kernel[:] = ["0.0.0.0/0"]
    assert guards.look()
    assert len(covered(guards)) == 3
    kernel.clear()
    assert guards.look()
    assert (covered(guards), guards.any) == ([], False)


def test_what_cannot_be_asked_stays_as_it_was(kernel, caplog):
    guards = ipsec.Guards(HERE, 8285)
    kernel.append("192.0.2.2/32")
    guards.look()
    kernel.append(KernelError("list", "xfrm policies", 105))
    assert not guards.look()
    assert not guards.look()
    assert covered(guards) == ["192.0.2.2"]
    assert caplog.text.count("not known whether") == 1


async def test_what_changed_before_the_watch_began_is_looked_at(kernel, monkeypatch):
    """However long a look takes: a full pass leaves it to the events then."""
    heard, teller = socket.socketpair()
    heard.setblocking(False)
    monkeypatch.setattr(ipsec.xfrm, "is_loaded", lambda: True)
    monkeypatch.setattr(ipsec.xfrm, "open_events", lambda: heard)
    changed = asyncio.Event()
    guards = ipsec.Guards(HERE, 8285)
    with teller:
        try:
            assert not guards.watch(changed.set)
            assert guards.watch(changed.set)
            for _ in range(2):
                await asyncio.wait_for(changed.wait(), 5)
                changed.clear()
                teller.send(b"a policy")
        finally:
            guards.stop()
    assert heard.fileno() == -1
