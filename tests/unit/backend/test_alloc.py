"""The alloc backend: a lease, and not a trace of it on the node."""

from __future__ import annotations

from ipaddress import IPv4Address

from pyflannel.backend.alloc import AllocBackend
from pyflannel.backend.base import Applied
from pyflannel.core.lease import LeaseAdded, LeaseAttrs
from tests.support.overlay import Machine, config, lease, overflow


async def test_it_publishes_its_address_and_touches_nothing(tmp_path):
    machine = Machine(mtu=1400)
    before = await machine.state()
    backend = AllocBackend(machine.context(config({"Type": "alloc"}), tmp_path))
    attrs = await backend.prepare(None)
    assert attrs == LeaseAttrs(public_ip=IPv4Address("192.0.2.1"))
    network = await backend.attach(lease(1, "alloc"))
    network.update([LeaseAdded(lease(2, "alloc"))])
    network.synced()
    assert not network.notice(overflow())
    assert await network.apply(full=True) == Applied()
    assert network.mtu == 1400
    assert await network.rebase(machine.external()) == network.own_attrs() == attrs
    await network.detach()
    assert await machine.state() == before
