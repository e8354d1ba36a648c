"""The host-gw backend."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from pyflannel.backend.base import PartlyApplied
from pyflannel.backend.hostgw import HostGwBackend, HostGwPlan
from pyflannel.backend.kinds import create
from pyflannel.backend.plan import View
from pyflannel.core.errors import ConfigError
from pyflannel.core.lease import LeaseAdded, LeaseAttrs
from pyflannel.kernel.base import Route, Set
from tests.support.overlay import Machine, config, key, lease


def test_a_peer_is_a_route_via_its_public_address_for_each_family():
    machine = Machine()
    conf = config({"Type": "host-gw"}, ipv6=True)
    plan = HostGwPlan(config=conf, external=machine.external(ipv6=True), own=key(1, ipv6=True))
    found = plan.peer_objects(lease(2, "host-gw", ipv6=True), View(underlay=machine.eth0))
    eth0 = machine.eth0.index
    assert found.objects == (
        Route(dst=IPv4Network("10.5.2.0/24"), gateway=IPv4Address("192.0.2.2"), oif=eth0),
        Route(dst=IPv6Network("fd00:5:0:2::/64"), gateway=IPv6Address("2001:db8::2"), oif=eth0),
    )
    assert plan.peer_objects(lease(2, "host-gw"), View()).objects == ()


async def test_it_publishes_its_type_and_addresses_and_has_the_interfaces_mtu(tmp_path):
    machine = Machine()
    backend = HostGwBackend(machine.context(config({"Type": "host-gw"}), tmp_path))
    attrs = await backend.prepare(None)
    assert attrs == LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="host-gw")
    network = await backend.attach(lease(1, "host-gw"))
    assert network.mtu == 1500
    assert network.own_attrs() == attrs


def test_behind_a_nat_it_refuses_with_upstreams_text(tmp_path):
    context = Machine().context(config({"Type": "host-gw"}), tmp_path)
    nat = replace(context.underlay, public_ip=IPv4Address("203.0.113.1"))
    with pytest.raises(ConfigError, match=r"^your PublicIP differs from interface IP, meaning"):
        create(replace(context, underlay=nat))


async def test_a_peer_off_the_link_is_named_and_others_are_not_held_up(tmp_path):
    machine = Machine()
    backend = HostGwBackend(machine.context(config({"Type": "host-gw"}), tmp_path))
    network = await backend.attach(lease(1, "host-gw"))
    far = lease(3, "host-gw")
    far = replace(far, attrs=replace(far.attrs, public_ip=IPv4Address("198.51.100.3")))
    network.update([LeaseAdded(far), LeaseAdded(lease(2, "host-gw"))])
    with pytest.raises(PartlyApplied) as caught:
        await network.apply(full=True)
    ((name, error),) = caught.value.failures.items()
    assert name == "peer 10.5.3.0/24"
    assert error.errno == errno.ENETUNREACH
    assert "198.51.100.3 is not on a directly connected network" in str(error)
    assert caught.value.applied.changed == 1


async def test_a_new_interface_of_the_same_name_gets_the_routes(tmp_path):
    machine = Machine()
    backend = HostGwBackend(machine.context(config({"Type": "host-gw"}), tmp_path))
    network = await backend.attach(lease(1, "host-gw"))
    network.update([LeaseAdded(lease(2, "host-gw"))])
    await network.apply(full=True)
    await machine.netlink.delete_link(machine.eth0.index)
    new = machine.plug("eth0")
    await network.apply(full=True)
    wanted = Route(dst=IPv4Network("10.5.2.0/24"), gateway=IPv4Address("192.0.2.2"),
                   oif=new.index)  # fmt: skip
    assert wanted in await machine.state()


async def test_leftovers_are_swept_once_and_what_others_add_later_stays(tmp_path):
    machine = Machine()
    stray = Route(dst=IPv4Network("10.5.9.0/24"), gateway=IPv4Address("192.0.2.9"),
                  oif=machine.eth0.index)  # fmt: skip
    machine.netlink.meddle(Set(stray))
    backend = HostGwBackend(machine.context(config({"Type": "host-gw"}), tmp_path))
    network = await backend.attach(lease(1, "host-gw"))
    await network.apply(full=True)
    assert stray in await machine.state(), "not before the first snapshot"
    network.synced()
    await network.apply(full=False)
    assert stray not in await machine.state()
    machine.netlink.meddle(Set(stray))
    await network.apply(full=True)
    assert stray in await machine.state()
