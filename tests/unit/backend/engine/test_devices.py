"""Keeping a device: its sysctls, what stands in its way, and what the kernel's refusals mean."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv6Address, IPv6Interface

import pytest

from pyflannel.backend.engine.devices import DeviceKeeper
from pyflannel.backend.plan import Device
from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel.base import LinkSpec, VxlanAttrs
from tests.support.overlay import Machine, mac

SYSCTL = ("net/ipv6/conf/flannel.1/accept_ra", "0")


def vxlan(name="flannel.1", number=1, local=None) -> Device:
    attrs = VxlanAttrs(vni=1, local=local or IPv4Address("192.0.2.1"))
    spec = LinkSpec(name=name, kind="vxlan", mac=mac(number), vxlan=attrs)
    return Device(name=name, create=spec, mac=mac(number), mtu=1450, sysctls=(SYSCTL,))


class Keeper:
    """A keeper, and what the sysctls are."""

    def __init__(self, machine: Machine) -> None:
        self.sysctls: dict[str, str] = {}
        self.keeper = DeviceKeeper(machine.netlink, self.write)

    def write(self, name: str, value: str) -> bool:
        self.sysctls[name] = value
        return True

    async def keep(self, device: Device):
        return await self.keeper.keep(device)


async def test_sysctls_are_kept_and_not_only_set_when_the_device_is_made():
    """IPv6 forgets them with every MTU below 1280, from which the MTU is then put right."""
    machine = Machine()
    node = Keeper(machine)
    await node.keep(vxlan())
    node.sysctls[SYSCTL[0]] = "1"
    await node.keep(vxlan())
    assert node.sysctls == dict([SYSCTL])
    again = Keeper(machine)
    await again.keep(vxlan())
    assert again.sysctls == dict([SYSCTL]), "also those of a device that a former run made"


async def test_a_device_that_is_there_and_down_has_its_sysctls_before_it_is_up():
    """flannel0 is opened before it is kept; with IPv6 on, the kernel reports its groups at once."""
    machine = Machine()
    node = Keeper(machine)
    await machine.netlink.create_link(vxlan().create)
    order = []
    change = machine.netlink.set_link

    async def set_link(index, **what) -> None:
        order.append("up" if what.get("up") else "other")
        await change(index, **what)

    machine.netlink.set_link = set_link
    node.keeper = DeviceKeeper(machine.netlink, lambda *_: order.append("sysctl") or True)
    await node.keep(vxlan())
    assert "up" in order
    assert "sysctl" in order[: order.index("up")]


async def test_our_device_under_another_name_makes_room_for_itself():
    """It was renamed while no daemon ran."""
    machine = Machine()
    await Keeper(machine).keep(vxlan("other0"))
    kept = await Keeper(machine).keep(vxlan())
    assert kept.done == ["device"]
    assert [link.name for link in await machine.netlink.links()][-1] == "flannel.1"
    assert await machine.netlink.link("other0") is None


async def test_another_programs_device_with_our_vni_stays_and_is_named():
    machine = Machine()
    await Keeper(machine).keep(vxlan("theirs0", number=9))
    await Keeper(machine).keep(vxlan("flannel-v6.1", 2, IPv6Address("2001:db8::1")))
    with pytest.raises(DeviceUnavailable, match="ip link delete dev theirs0"):
        await Keeper(machine).keep(vxlan())
    assert await machine.netlink.link("theirs0") is not None


async def test_a_device_without_ipv6_is_not_taken_for_a_missing_right():
    machine = Machine()
    node = Keeper(machine)
    device = vxlan("flannel-v6.1")
    await node.keep(device)
    address = IPv6Interface("fd00::/128")
    six = Device(name=device.name, create=device.create, addresses=(address,))
    machine.netlink.fail_next("address_replace", errno.EACCES)
    failures = (await node.keep(six)).failures
    (text,) = map(str, failures.values())
    assert "/proc/sys/net/ipv6/conf/flannel-v6.1/disable_ipv6" in text
    assert "CAP_NET_ADMIN" not in text
