"""FDB entries of vxlan devices."""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, ip_address

import pytest

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel.base import (
    Delete,
    FdbEntry,
    Neighbour,
    Set,
)
from tests.contract.netlink.world import MAC, OTHER_MAC, World


class TestFdb:
    @pytest.mark.parametrize("family", [4, 6])
    async def test_replacing_the_destination_of_a_mac_leaves_one_entry(
        self, w: World, family: int
    ) -> None:
        """In a vxlan device of each family."""
        device = w.device if family == 4 else w.device6
        prefix = "192.0.2." if family == 4 else "2001:db8::"
        one = FdbEntry(index=device.index, mac=MAC, dst=ip_address(f"{prefix}7"))
        two = replace(one, dst=ip_address(f"{prefix}8"))
        await w.done(Set(one))
        assert await w.netlink.fdb(device.index) == [one]
        await w.done(Set(two), Set(two))
        assert await w.netlink.fdb(device.index) == [two]

    async def test_an_fdb_entry_is_deleted_only_with_its_destination(self, w: World) -> None:
        """Another destination's entry stays; an absent MAC is well deleted."""
        one = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
        await w.done(Set(one))
        await w.done(
            Delete(replace(one, dst=IPv4Address("192.0.2.8"))),
            Delete(replace(one, mac=OTHER_MAC)),
            Delete(replace(one, index=99)),
        )
        assert await w.netlink.fdb(w.device.index) == [one]
        await w.done(Delete(one), Delete(one))
        assert await w.netlink.fdb(w.device.index) == []

    @pytest.mark.parametrize("change", [{"port": 9999}, {"vni": 77}, {"via": 2}])
    async def test_an_fdb_entry_is_also_its_port_vni_and_link(
        self, w: World, change: dict[str, int]
    ) -> None:
        """One to the right host with a wrong port reaches no daemon; it is seen, and replaced."""
        wanted = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
        wrong = replace(wanted, **change)
        await w.done(Set(wrong))
        assert await w.netlink.fdb(w.device.index) == [wrong]
        await w.done(Delete(wanted))
        assert await w.netlink.fdb(w.device.index) == [wrong]
        await w.done(Set(wanted))
        assert await w.netlink.fdb(w.device.index) == [wanted]
        await w.done(Set(wrong), Delete(wrong))
        assert await w.netlink.fdb(w.device.index) == []

    async def test_what_the_device_learned_is_not_listed_and_not_in_the_way(self, w: World) -> None:
        """A learned entry ages; only one that was set stays."""
        learned = FdbEntry(index=w.device.index, mac=MAC, dst=IPv4Address("192.0.2.7"))
        w.others.learn(learned)
        assert await w.netlink.fdb(w.device.index) == []
        wanted = replace(learned, dst=IPv4Address("192.0.2.8"))
        await w.done(Set(wanted))
        assert await w.netlink.fdb(w.device.index) == [wanted]

    @pytest.mark.parametrize(
        ("mac", "dst", "code"),
        [
            ("00:00:00:00:00:00", "192.0.2.7", errno.EOPNOTSUPP),
            ("01:00:5e:00:00:01", "192.0.2.7", errno.EOPNOTSUPP),
            (MAC, "2001:db8::7", errno.EAFNOSUPPORT),
            ("not a mac", "192.0.2.7", errno.EINVAL),
        ],
    )
    async def test_an_impossible_fdb_entry_is_refused(
        self, w: World, mac: str, dst: str, code: int
    ) -> None:
        """Group addresses, the other family's destinations, and what is no MAC."""
        entry = FdbEntry(index=w.device.index, mac=mac, dst=ip_address(dst))
        assert (await w.refusal(Set(entry))).errno == code
        assert await w.netlink.fdb(w.device.index) == []

    async def test_entries_for_a_missing_link_are_refused_and_well_deleted(self, w: World) -> None:
        """Set is ENODEV, delete is fine, a listing is empty."""
        for item in (
            Neighbour(index=99, ip=IPv4Address("10.5.7.0"), mac=MAC),
            FdbEntry(index=99, mac=MAC, dst=IPv4Address("192.0.2.7")),
        ):
            refusal = await w.refusal(Set(item))
            assert isinstance(refusal, DeviceUnavailable)
            assert refusal.errno == errno.ENODEV
            await w.done(Delete(item))
        assert await w.netlink.fdb(99) == []
