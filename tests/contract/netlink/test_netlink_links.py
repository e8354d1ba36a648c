"""Links: made, read back, changed, deleted."""

import asyncio
import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.core.ip import Family
from pyflannel.kernel.base import (
    FdbEntry,
    LinkSpec,
    Neighbour,
    Set,
    Topic,
    VxlanAttrs,
)
from tests.contract.netlink.world import MAC, OTHER_MAC, World
from tests.support.netns import without_fallback

PERIOD_S = 5.0
"""Deadline of every wait."""


class TestLinks:
    async def test_links_are_listed_in_order_of_their_index(self, w: World) -> None:
        """The loopback comes first; a new link has the highest index."""
        links = without_fallback(await w.netlink.links())
        assert [link.name for link in links] == ["lo", "under0", "flannel.1", "flannel-v6.1"]
        assert [link.index for link in links] == sorted(link.index for link in links)
        assert [link.loopback for link in links] == [True, False, False, False]
        assert links[0].mtu == 65536

    async def test_a_created_vxlan_device_is_read_back_with_its_attributes(self, w: World) -> None:
        """What was not given is the kernel's default: port 8472, MTU of the underlay less 50."""
        link = await w.link()
        assert link == replace(w.device, up=True, running=True)
        assert (link.kind, link.mtu, link.mac) == ("vxlan", 1450, "0e:00:00:00:00:01")
        assert link.txqlen == 0
        assert link.vxlan == VxlanAttrs(
            vni=1, link=w.under.index, local=IPv4Address("192.0.2.1"), port=8472
        )
        assert w.device6.vxlan is not None
        assert w.device6.vxlan.local == IPv6Address("2001:db8::1")
        assert w.device6.mtu == 1430

    async def test_every_vxlan_attribute_arrives(self, w: World) -> None:
        """Port, learning, GBP and L2 miss are what the spec says."""
        spec = LinkSpec(
            name="flannel.7",
            kind="vxlan",
            mtu=1300,
            mac=OTHER_MAC,
            txqlen=17,
            vxlan=VxlanAttrs(vni=7, port=8473, learning=True, gbp=True, l2miss=True),
        )
        link = await w.netlink.create_link(spec)
        assert (link.name, link.mtu, link.mac, link.txqlen) == (
            "flannel.7",
            1300,
            OTHER_MAC,
            17,
        )
        assert link.vxlan == spec.vxlan
        assert link.up is False

    async def test_creation_is_exclusive(self, w: World) -> None:
        """A taken name and a taken VNI are EEXIST."""
        for name, vni in (("flannel.1", 5), ("other", 1)):
            spec = LinkSpec(
                name=name,
                kind="vxlan",
                vxlan=VxlanAttrs(vni=vni, local=IPv4Address("192.0.2.1")),
            )
            with pytest.raises(KernelError) as refusal:
                await w.netlink.create_link(spec)
            assert refusal.value.errno == errno.EEXIST
            assert name in str(refusal.value)

    async def test_a_kind_that_the_kernel_lacks_is_a_missing_device(self, w: World) -> None:
        """The error names the kind, so that the operator knows which module is missing."""
        with pytest.raises(DeviceUnavailable, match="nonesuch") as refusal:
            await w.netlink.create_link(LinkSpec(name="x", kind="nonesuch"))
        assert refusal.value.errno == errno.EOPNOTSUPP

    @pytest.mark.parametrize(
        ("spec", "code"),
        [
            (LinkSpec(name="x", kind="vxlan", vxlan=VxlanAttrs(vni=1 << 24)), errno.ERANGE),
            (LinkSpec(name="x", kind="vxlan", vxlan=VxlanAttrs(vni=9, link=99)), errno.ENODEV),
            (LinkSpec(name="x", kind="vxlan", mtu=1, vxlan=VxlanAttrs(vni=9)), errno.EINVAL),
            (
                LinkSpec(name="x", kind="vxlan", mac="01:00:00:00:00:01", vxlan=VxlanAttrs(vni=9)),
                errno.EADDRNOTAVAIL,
            ),
            (LinkSpec(name="a-name-too-long-for-it", kind="bridge"), errno.ERANGE),
        ],
    )
    async def test_an_impossible_link_is_refused(self, w: World, spec: LinkSpec, code: int) -> None:
        """Each with the kernel's errno, and nothing is left behind."""
        before = await w.netlink.links()
        with pytest.raises(KernelError) as refusal:
            await w.netlink.create_link(spec)
        assert refusal.value.errno == code
        assert isinstance(refusal.value, DeviceUnavailable) == (code == errno.ENODEV)
        assert await w.netlink.links() == before

    @pytest.mark.parametrize("name", ["nope", "", "a-name-too-long-for-it", "ünïcödé-näme"])
    async def test_a_link_that_is_not_there_is_none(self, w: World, name: str) -> None:
        """With any spelling of the name."""
        assert await w.netlink.link(name) is None

    async def test_set_link_changes_what_is_given_and_nothing_else(self, w: World) -> None:
        """MTU, MAC, queue length and state, each by itself."""
        expected = await w.link()
        changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
            ({"mtu": 1400}, {"mtu": 1400}),
            ({"mac": MAC}, {"mac": MAC}),
            ({"txqlen": 5}, {"txqlen": 5}),
            ({"up": False}, {"up": False, "running": False}),
            ({"up": True, "mtu": 1399}, {"up": True, "running": True, "mtu": 1399}),
        ]
        for given, seen in changes:
            await w.netlink.set_link(expected.index, **given)
            expected = replace(expected, **seen)
            assert await w.link() == expected

    async def test_the_checksum_offload_is_switched_and_the_link_announced(self, w: World) -> None:
        """A new vxlan link has it on; it stays as it is while the link goes down and up."""
        name, index = w.device.name, w.device.index
        assert await w.netlink.tx_checksum(name)
        stream = w.netlink.notifications()
        for on in (False, True, False):
            await w.netlink.set_tx_checksum(name, on=on)
            assert await w.netlink.tx_checksum(name) is on
            async with asyncio.timeout(PERIOD_S):
                async for told in stream:
                    if told.topic is Topic.LINK and told.index == index:
                        break
        await w.netlink.set_tx_checksum(name, on=False)  # as it is
        for up in (False, True):
            await w.netlink.set_link(index, up=up)
            assert not await w.netlink.tx_checksum(name)
        await stream.aclose()

    async def test_the_checksum_offload_of_no_link_is_a_missing_device(self, w: World) -> None:
        """Also to be read."""
        for work in (
            w.netlink.tx_checksum("flannel.9"),
            w.netlink.set_tx_checksum("flannel.9", on=False),
        ):
            with pytest.raises(DeviceUnavailable) as refusal:
                await work
            assert refusal.value.errno == errno.ENODEV

    async def test_set_link_of_nothing_is_a_missing_device(self, w: World) -> None:
        """Unlike a delete, it cannot be taken for done."""
        with pytest.raises(DeviceUnavailable) as refusal:
            await w.netlink.set_link(99, up=True)
        assert refusal.value.errno == errno.ENODEV

    @pytest.mark.parametrize(
        ("change", "code"),
        [
            ({"mtu": 70000}, errno.EINVAL),
            ({"mtu": 10}, errno.EINVAL),
            ({"mac": "01:00:00:00:00:01"}, errno.EADDRNOTAVAIL),
        ],
    )
    async def test_an_impossible_change_is_refused(
        self, w: World, change: dict[str, Any], code: int
    ) -> None:
        """And the link stays as it was."""
        before = await w.link()
        with pytest.raises(KernelError) as refusal:
            await w.netlink.set_link(w.device.index, **change)
        assert refusal.value.errno == code
        assert await w.link() == before

    async def test_a_deleted_link_is_gone_and_may_be_deleted_again(self, w: World) -> None:
        """With all that hung on it."""
        index = w.device.index
        await w.done(
            Set(w.route("10.5.7.0/24", "10.5.7.0")),
            Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac=MAC)),
            Set(FdbEntry(index=index, mac=MAC, dst=IPv4Address("192.0.2.7"))),
        )
        await w.netlink.delete_link(index)
        await w.netlink.delete_link(index)
        assert await w.netlink.link("flannel.1") is None
        assert await w.netlink.addresses(index=index) == []
        assert await w.netlink.neighbours(index, Family.V4) == []
        assert await w.netlink.fdb(index) == []
        assert await w.netlink.routes(Family.V4, oif=index) == []
        assert await w.routes("10.5.7.0/24") == []

    async def test_the_loopback_cannot_be_deleted(self, w: World) -> None:
        """A refusal is not "already so"."""
        with pytest.raises(KernelError) as refusal:
            await w.netlink.delete_link(1)
        assert refusal.value.errno == errno.EOPNOTSUPP

    async def test_the_underlay_takes_the_vxlan_devices_along(self, w: World) -> None:
        """Which is why a replaced network card means a new flannel.1."""
        await w.netlink.delete_link(w.under.index)
        left = without_fallback(await w.netlink.links())
        assert [link.name for link in left] == ["lo"]
