"""The ipip backend, on a kernel in memory (few test machines have the module)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.backend.ipip import IpipBackend, ipip_difference
from pyflannel.backend.kinds import create
from pyflannel.core.errors import ConfigError, KernelError
from pyflannel.core.lease import LeaseAdded, LeaseAttrs
from pyflannel.kernel.base import IpipAttrs, Link, LinkSpec, Route, Set
from tests.support.overlay import Machine, config, lease, run


def backend(machine: Machine, tmp_path, *, ipv6=False, **keys) -> IpipBackend:
    return IpipBackend(machine.context(config({"Type": "ipip", **keys}, ipv6=ipv6), tmp_path))


async def test_device_address_and_on_link_route(tmp_path):
    machine = Machine()
    made = backend(machine, tmp_path)
    attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="ipip")
    assert await made.prepare(None) == attrs
    network = await made.attach(lease(1, "ipip"))
    network.update([LeaseAdded(lease(2, "ipip"))])
    await network.apply(full=True)
    link = await machine.netlink.link("flannel.ipip")
    assert (link.kind, link.mtu, link.up, network.mtu) == ("ipip", 1480, True, 1480)
    assert link.ipip.local == IPv4Address("192.0.2.1")
    addresses = [a.interface for a in await machine.netlink.addresses(index=link.index)]
    assert IPv4Interface("10.5.1.0/32") in addresses
    route = Route(dst=IPv4Network("10.5.2.0/24"), gateway=IPv4Address("192.0.2.2"),
                  oif=link.index, onlink=True)  # fmt: skip
    assert route in await machine.state()


async def test_direct_routing_takes_the_external_interface_and_keeps_the_flag(tmp_path):
    machine = Machine()
    network = await backend(machine, tmp_path, DirectRouting=True).attach(lease(1, "ipip"))
    far = lease(3, "ipip")
    far = replace(far, attrs=replace(far.attrs, public_ip=IPv4Address("198.51.100.3")))
    gateway = Route(dst=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("192.0.2.254"),
                    oif=machine.eth0.index)  # fmt: skip
    machine.netlink.meddle(Set(gateway))
    network.update([LeaseAdded(lease(2, "ipip")), LeaseAdded(far)])
    await network.apply(full=True)
    tunnel = (await machine.netlink.link("flannel.ipip")).index
    ours = {r.dst: r for r in await machine.state() if isinstance(r, Route) and r.onlink}
    assert ours[IPv4Network("10.5.2.0/24")].oif == machine.eth0.index
    assert ours[IPv4Network("10.5.3.0/24")].oif == tunnel


async def test_the_ipv6_part_of_a_lease_is_ignored(tmp_path):
    machine = Machine()
    network = await backend(machine, tmp_path, ipv6=True).attach(lease(1, "ipip", ipv6=True))
    network.update([LeaseAdded(lease(2, "ipip", ipv6=True))])
    assert (await network.apply(full=True)).changed == 1


async def test_a_device_of_another_kind_is_not_ours_to_remove(tmp_path):
    machine = Machine(kinds=("ipip", "bridge"))
    await machine.netlink.create_link(LinkSpec(name="flannel.ipip", kind="bridge"))
    with pytest.raises(ConfigError, match=r"ip link delete flannel\.ipip"):
        await backend(machine, tmp_path).attach(lease(1, "ipip"))
    assert (await machine.netlink.link("flannel.ipip")).kind == "bridge"


def test_a_device_with_a_remote_or_another_source_is_made_anew():
    here = IPv4Address("192.0.2.1")
    wanted = IpipAttrs(local=here)

    def difference(**attrs) -> str:
        link = Link(index=9, name="flannel.ipip", kind="ipip", ipip=IpipAttrs(**attrs))
        return ipip_difference(link, wanted)

    assert difference(local=here) == ""
    assert difference(local=here, remote=IPv4Address(0)) == ""
    assert "local" in difference(local=None)
    assert "local" in difference(local=IPv4Address("192.0.2.9"))
    assert "remote" in difference(local=here, remote=IPv4Address("192.0.2.2"))


def test_a_kernel_without_ipip_is_an_error_at_start(tmp_path):
    with pytest.raises(KernelError):
        run(backend(Machine(kinds=()), tmp_path).attach(lease(1, "ipip")))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"mtu": 20}, "leaves nothing"),
        ({"mtu": 87}, "leaves 67 bytes after ipip's 20 bytes, and IPv4 needs 68"),
        ({"address": None}, "needs an IPv4 address"),
    ],
)
def test_what_cannot_work_is_a_config_error(change, text, tmp_path):
    context = Machine().context(config({"Type": "ipip"}), tmp_path)
    with pytest.raises(ConfigError, match=text):
        create(replace(context, underlay=replace(context.underlay, **change)))


def test_it_needs_ipv4():
    with pytest.raises(ConfigError, match="IPv4 only"):
        config({"Type": "ipip"}, ipv4=False, ipv6=True)
