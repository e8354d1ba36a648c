"""The vxlan backend: lease data, desired state, the device and its MAC."""

from __future__ import annotations

import errno
import json
import os
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.backend.base import PartlyApplied
from pyflannel.backend.kinds import create
from pyflannel.backend.plan import View
from pyflannel.backend.vxlan import VxlanBackend, VxlanPlan, vxlan_difference
from pyflannel.backend.vxlan.macs import (
    MacFile,
    VxlanData,
    decode_data,
    encode_data,
    parse_mac,
    random_mac,
)
from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.errors import ConfigError, KernelError, LeaseError
from pyflannel.core.ip import Family
from pyflannel.core.lease import LeaseAdded, LeaseAttrs
from pyflannel.kernel.base import FdbEntry, Link, Neighbour, Route, VxlanAttrs
from tests.support.overlay import Machine, config, key, lease, mac


def plan(machine: Machine, *, ipv4=True, ipv6=False, **settings) -> VxlanPlan:
    conf = config({"Type": "vxlan"}, ipv4=ipv4, ipv6=ipv6)
    return VxlanPlan(
        config=conf,
        settings=VxlanSettings(**settings),
        external=machine.external(ipv6=ipv6),
        macs={family: mac(100 + family.value) for family in conf.families},
        own=key(1, ipv4=ipv4, ipv6=ipv6),
    )


# Lease data.


def test_lease_data_has_upstreams_bytes():
    assert encode_data(VxlanData(vni=1, mac="0e:b0:82:73:36:a2")) == (
        '{"VNI":1,"VtepMAC":"0e:b0:82:73:36:a2"}'
    )


@pytest.mark.parametrize(
    ("text", "vni"),
    [
        ('{"VNI":1,"VtepMAC":"0e:b0:82:73:36:a2"}', 1),
        ('{"VtepMAC":"0e:b0:82:73:36:a2"}', None),  # before VNI was added
        ('{"vtepmac":"0E-B0-82-73-36-A2","vni":77}', 77),
        ('{"VtepMAC":"0eb0.8273.36a2","Other":[]}', None),
    ],
)
def test_lease_data_of_old_and_odd_peers_is_read(text, vni):
    assert decode_data(text) == VxlanData(vni=vni, mac="0e:b0:82:73:36:a2")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "null",
        "{}",
        "[]",
        '"0e:b0:82:73:36:a2"',
        '{"VtepMAC":17}',
        '{"VtepMAC":""}',
        '{"VtepMAC":"0e:b0:82:73:36"}',
        '{"VtepMAC":"0f:b0:82:73:36:a2"}',
        '{"VtepMAC":"00:00:00:00:00:00"}',
        '{"VtepMAC":"0e:b0-82:73:36:a2"}',
        '{"VtepMAC":',
    ],
)
def test_lease_data_without_a_usable_mac_is_refused_with_a_sentence(text):
    with pytest.raises(ValueError, match=r"^it"):
        decode_data(text)


@given(st.binary(min_size=6, max_size=6).filter(lambda raw: not raw[0] & 1 and any(raw)))
def test_every_unicast_mac_survives_the_round_trip(raw):
    data = VxlanData(vni=5, mac=raw.hex(":"))
    assert decode_data(encode_data(data)) == data


@given(st.integers())
def test_a_random_mac_is_locally_administered_and_unicast(seed):
    made = random_mac(random.Random(seed))
    assert parse_mac(made) == made
    assert int(made[:2], 16) & 3 == 2


# Desired state.


def test_the_device_has_every_attribute_that_upstream_sets():
    machine = Machine()
    (device,) = plan(machine, port=4789, gbp=True, learning=True).devices(machine.eth0)
    spec = device.create
    assert spec.name == "flannel.1"
    assert (spec.kind, spec.mtu, spec.txqlen, spec.mac) == ("vxlan", 1450, 0, mac(104))
    assert spec.vxlan == VxlanAttrs(
        vni=1, link=machine.eth0.index, local=IPv4Address("192.0.2.1"), port=4789,
        learning=True, gbp=True,
    )  # fmt: skip
    assert device.addresses == (IPv4Interface("10.5.1.0/32"),)
    assert device.sysctls == (("net/ipv6/conf/flannel.1/accept_ra", "0"),)
    assert device.up


def test_the_checksum_offload_is_left_alone_or_kept_off():
    """As upstream creates it, it is on; an operator may have switched it off by other means."""
    machine = Machine()
    (device,) = plan(machine).devices(machine.eth0)
    assert device.tx_checksum is None
    off = plan(machine, ipv6=True, tx_checksum_offload=False).devices(machine.eth0)
    assert [device.tx_checksum for device in off] == [False, False]
    assert plan(machine, tx_checksum_offload=False).devices(None)[0].tx_checksum is False


def test_before_the_lease_the_device_has_no_address_and_stays_down():
    machine = Machine()
    (device,) = replace(plan(machine), own=None).devices(machine.eth0)
    assert (device.addresses, device.up) == ((), False)


def test_the_tunnel_source_is_the_interface_address_also_behind_a_nat():
    machine = Machine()
    made = plan(machine)
    made = replace(made, external=replace(made.external, public_ip=IPv4Address("203.0.113.5")))
    assert made.vxlan_attrs(Family.V4, machine.eth0).local == IPv4Address("192.0.2.1")
    assert made.attrs({}).public_ip == IPv4Address("203.0.113.5")


@pytest.mark.parametrize(
    ("families", "configured", "interface", "container", "devices"),
    [
        ({}, 0, 1500, 1450, [1450]),
        ({}, 1400, 1500, 1350, [1350]),
        ({}, 9000, 1500, 1450, [1450]),
        ({"ipv6": True}, 0, 1500, 1450, [1450, 1430]),
        ({"ipv4": False, "ipv6": True}, 0, 1500, 1430, [1430]),
    ],
)
def test_the_overhead_is_50_bytes_and_70_over_ipv6(
    families, configured, interface, container, devices
):
    """Upstream takes 50 for both, and its full-size packets do not fit an IPv6 underlay."""
    machine = Machine(mtu=interface)
    made = plan(machine, mtu=configured, **families)
    assert made.mtu == container
    assert [device.mtu for device in made.devices(machine.eth0)] == devices


def test_the_ipv6_device_has_its_own_name_and_address():
    machine = Machine()
    _, device = plan(machine, ipv6=True, vni=42).devices(machine.eth0)
    assert device.name == "flannel-v6.42"
    assert device.addresses == (IPv6Interface("fd00:5:0:1::/128"),)
    assert device.create.vxlan.local == IPv6Address("2001:db8::1")


def view(machine: Machine, **links: int) -> View:
    names = {"flannel": "flannel.1", "flannel_v6": "flannel-v6.1"}
    return View(
        underlay=machine.eth0,
        links={names[n]: Link(index=i, name=names[n]) for n, i in links.items()},
    )


def test_a_peer_is_its_neighbour_its_fdb_entry_and_its_route():
    """The neighbour is the peer's *subnet* address, the FDB entry points to its *public* one."""
    machine = Machine()
    found = plan(machine).peer_objects(lease(2, "vxlan"), view(machine, flannel=9))
    vtep = IPv4Address("10.5.2.0")
    assert found.objects == (
        Neighbour(index=9, ip=vtep, mac=mac(2)),
        FdbEntry(index=9, mac=mac(2), dst=IPv4Address("192.0.2.2")),
        Route(dst=IPv4Network("10.5.2.0/24"), gateway=vtep, oif=9, onlink=True),
    )


def test_both_families_are_independent_of_each_other():
    machine = Machine()
    both = plan(machine, ipv6=True)
    peer = lease(2, "vxlan", ipv6=True)
    assert len(both.peer_objects(peer, view(machine, flannel=9, flannel_v6=10)).objects) == 6
    assert len(both.peer_objects(peer, view(machine, flannel_v6=10)).objects) == 3
    old = replace(peer, attrs=replace(peer.attrs, backend_v6_data=None))
    found = both.peer_objects(old, view(machine, flannel=9, flannel_v6=10))
    assert len(found.objects) == 3
    assert "VTEP MAC" in found.problem
    only4 = both.peer_objects(lease(2, "vxlan"), view(machine, flannel=9, flannel_v6=10))
    assert (len(only4.objects), only4.problem) == (3, "")


@pytest.mark.parametrize(
    ("attrs", "problem"),
    [
        ({"backend_type": "host-gw"}, "backend type"),
        ({"backend_data": '{"VtepMAC":"x"}'}, "VTEP MAC"),
        ({"public_ip": IPv4Address(0)}, "no IPv4 address"),
    ],
)
def test_a_peer_that_cannot_be_reached_is_ignored_with_the_reason(attrs, problem):
    machine = Machine()
    bad = replace(lease(2, "vxlan"), attrs=replace(lease(2, "vxlan").attrs, **attrs))
    found = plan(machine).peer_objects(bad, view(machine, flannel=9))
    assert found.objects == ()
    assert problem in found.problem


GOOD = VxlanAttrs(vni=1, link=2, local=IPv4Address("192.0.2.1"), port=8472)


@pytest.mark.parametrize(
    ("there", "difference"),
    [
        (GOOD, ""),
        (replace(GOOD, vni=2), "VNI 2 instead of 1"),
        (replace(GOOD, link=3), "underlying link"),
        (replace(GOOD, local=IPv4Address("192.0.2.9")), "source address"),
        (replace(GOOD, local=None), "source address"),
        (replace(GOOD, group=IPv4Address("239.1.1.1")), "group"),
        (replace(GOOD, port=4789), "port 4789 instead of 8472"),
        (replace(GOOD, learning=True), "learning"),
        (replace(GOOD, gbp=True), "GBP"),
        (replace(GOOD, l2miss=True), "L2 miss"),
        (None, "kind"),
    ],
)
def test_a_device_is_kept_only_if_it_is_the_one_asked_for(there, difference):
    link = Link(index=9, name="flannel.1", kind="vxlan" if there else "bridge", vxlan=there)
    found = vxlan_difference(link, replace(GOOD, port=0))
    assert difference in found
    assert bool(found) is bool(difference)


# The backend.


def backend(
    machine: Machine, state_dir, *, seed=1, ipv6=False, checksums_lost=str, **keys
) -> VxlanBackend:
    conf = config({"Type": "vxlan", **keys}, ipv6=ipv6)
    context = replace(machine.context(conf, state_dir), checksums_lost=checksums_lost)
    return VxlanBackend(context, rng=random.Random(seed))


def published(attrs: LeaseAttrs) -> str:
    return json.loads(attrs.backend_data)["VtepMAC"]


async def test_the_mac_is_published_before_the_lease_and_is_the_devices(tmp_path):
    machine = Machine()
    attrs = await backend(machine, tmp_path).prepare(None)
    link = await machine.netlink.link("flannel.1")
    assert link.mac == published(attrs)
    assert not link.up
    assert attrs.backend_type == "vxlan"
    assert attrs.backend_v6_data is None
    assert machine.sysctls == {"net/ipv6/conf/flannel.1/accept_ra": "0"}


async def test_the_mac_survives_a_restart_a_reboot_and_the_loss_of_the_state_file(tmp_path):
    machine = Machine()
    first = await backend(machine, tmp_path, seed=1).prepare(None)
    assert await backend(machine, tmp_path, seed=2).prepare(None) == first
    assert await backend(Machine(), tmp_path, seed=3).prepare(None) == first
    (tmp_path / "vtep-mac.json").unlink()
    assert await backend(Machine(), tmp_path, seed=4).prepare(first) == first
    (tmp_path / "vtep-mac.json").unlink()
    assert await backend(Machine(), tmp_path, seed=5).prepare(None) != first


def test_a_cloned_disk_does_not_bring_the_mac_along(tmp_path):
    """The file counts only at the address it was written at."""
    external = Machine().external()
    MacFile(str(tmp_path)).keep(external, {"flannel.1": mac(5)})
    assert MacFile(str(tmp_path)).load(external) == {"flannel.1": mac(5)}
    elsewhere = replace(external, public_ip=IPv4Address("192.0.2.66"))
    assert MacFile(str(tmp_path)).load(elsewhere) == {}


def test_a_state_file_that_is_a_fifo_is_not_waited_for(tmp_path, caplog):
    os.mkfifo(tmp_path / "vtep-mac.json")
    assert MacFile(str(tmp_path)).load(Machine().external()) == {}
    assert "unreadable" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[" * 100_000, b'{"public_ip":"192.0.2.1","macs":{"a":1}}'],
    ids=lambda content: content[:10].decode() or "empty",
)
def test_a_damaged_state_file_is_a_warning(content, tmp_path, caplog):
    (tmp_path / "vtep-mac.json").write_bytes(content)
    assert MacFile(str(tmp_path)).load(Machine().external()) == {}
    assert "unreadable" in caplog.text


async def test_a_state_directory_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").touch()

    await backend(Machine(), tmp_path / "file" / "dir").prepare(None)
    assert "not remembered" in caplog.text


async def test_what_could_not_be_remembered_is_once_the_disk_has_room(tmp_path, caplog):
    """A file in the directory's place stands for a disk that takes nothing."""
    state = tmp_path / "state"
    state.touch()

    made = backend(Machine(), state)
    attrs = await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    for _ in range(3):
        await network.apply(full=True)
    said = [record.levelname for record in caplog.records if "remembered" in record.message]
    assert said == ["WARNING"]
    state.unlink()
    await network.apply(full=True)
    assert await backend(Machine(), state, seed=2).prepare(None) == attrs
    before = (state / "vtep-mac.json").stat().st_mtime_ns
    await network.apply(full=True)
    assert (state / "vtep-mac.json").stat().st_mtime_ns == before


async def test_under_another_address_the_mac_is_remembered_too(tmp_path):
    """The file counts only at the address that it names."""
    machine = Machine()
    made = backend(machine, tmp_path)
    attrs = await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    moved = replace(machine.external(), public_ip=IPv4Address("192.0.2.66"))
    await network.rebase(moved)
    await network.apply(full=True)
    name = "flannel.1"
    assert MacFile(str(tmp_path)).load(moved) == {name: published(attrs)}


async def test_a_device_with_wrong_settings_is_replaced_and_keeps_its_mac(tmp_path):
    machine = Machine()
    first = await backend(machine, tmp_path).prepare(None)
    assert await backend(machine, tmp_path, Port=4789).prepare(None) == first
    assert (await machine.netlink.link("flannel.1")).vxlan.port == 4789


async def test_an_mtu_changed_in_the_config_reaches_a_device_that_is_kept(tmp_path):
    machine = Machine()
    first = backend(machine, tmp_path)
    await first.prepare(None)
    await first.attach(lease(1, "vxlan"))
    index = (await machine.netlink.link("flannel.1")).index
    again = backend(machine, tmp_path, MTU=1400)
    await again.prepare(None)
    assert (await again.attach(lease(1, "vxlan"))).mtu == 1350
    link = await machine.netlink.link("flannel.1")
    assert (link.index, link.mtu) == (index, 1350)


async def test_the_checksum_offload_is_kept_off_over_changes_and_a_new_device(tmp_path):
    """As every other attribute; and status says so."""
    machine = Machine()
    made = backend(machine, tmp_path, TxChecksumOffload=False)
    await made.prepare(None)
    assert not await machine.netlink.tx_checksum("flannel.1")
    network = await made.attach(lease(1, "vxlan"))
    await network.apply(full=True)
    await machine.netlink.set_tx_checksum("flannel.1", on=True)
    assert (await network.apply(full=True)).repaired == {"offload": 1}
    assert not await machine.netlink.tx_checksum("flannel.1")
    await machine.netlink.delete_link((await machine.netlink.link("flannel.1")).index)
    await network.apply(full=True)
    assert not await machine.netlink.tx_checksum("flannel.1")
    assert network.report().devices["flannel.1"].tx_checksum == "off"


async def test_without_the_setting_the_checksum_offload_is_the_operators(tmp_path):
    machine = Machine()
    made = backend(machine, tmp_path)
    await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    for on in (True, False):
        await machine.netlink.set_tx_checksum("flannel.1", on=on)
        await network.apply(full=True)
        assert await machine.netlink.tx_checksum("flannel.1") is on
    assert network.report().devices["flannel.1"].tx_checksum == ""


async def test_auto_switches_the_checksum_offload_off_once_checksums_are_known_to_be_lost(
    tmp_path, caplog
):
    """And says why; a device that is made anew has it off, too."""
    machine, lost = Machine(), ""
    made = backend(machine, tmp_path, checksums_lost=lambda: lost, TxChecksumOffload="auto")
    await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    await network.apply(full=True)
    assert await machine.netlink.tx_checksum("flannel.1")
    assert network.report().devices["flannel.1"].tx_checksum == "as it is: none seen lost"
    lost = "10.5.2.0 answers only what has a checksum"
    assert (await network.apply(full=False)).repaired == {}
    assert not await machine.netlink.tx_checksum("flannel.1")
    assert network.report().devices["flannel.1"].tx_checksum == f"off: {lost}"
    assert [r.getMessage() for r in caplog.records].count("checksum offload switched off") == 1
    await network.rebase(machine.external())
    await machine.netlink.delete_link((await machine.netlink.link("flannel.1")).index)
    await network.apply(full=True)
    assert not await machine.netlink.tx_checksum("flannel.1")


async def test_auto_keeps_off_what_it_finds_off(tmp_path):
    """After a restart nothing is lost any more that could be seen to be."""
    machine = Machine()
    first = backend(machine, tmp_path)
    await first.prepare(None)
    await machine.netlink.set_tx_checksum("flannel.1", on=False)
    again = backend(machine, tmp_path, TxChecksumOffload="auto")
    await again.prepare(None)
    network = await again.attach(lease(1, "vxlan"))
    await machine.netlink.set_tx_checksum("flannel.1", on=True)
    await network.apply(full=True)
    assert not await machine.netlink.tx_checksum("flannel.1")
    shown = network.report().devices["flannel.1"].tx_checksum
    assert shown == "off: it was off at the start"


async def test_an_offload_that_cannot_be_switched_is_reported_and_stops_nothing_else(tmp_path):
    machine = Machine()
    made = backend(machine, tmp_path, TxChecksumOffload=False)
    await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    await machine.netlink.set_tx_checksum("flannel.1", on=True)
    index = (await machine.netlink.link("flannel.1")).index
    await machine.netlink.set_link(index, mtu=1000)
    for method in ("tx_checksum", "set_tx_checksum"):
        machine.netlink.fail_next(method, errno.EOPNOTSUPP)
        with pytest.raises(PartlyApplied) as partly:
            await network.apply(full=True)
        assert list(partly.value.failures) == ["flannel.1 offload"]
        assert (await machine.netlink.link("flannel.1")).mtu == 1450
    await network.apply(full=True)
    assert not await machine.netlink.tx_checksum("flannel.1")


async def test_a_mac_changed_before_attach_is_put_back(tmp_path):
    """udev and network managers do that; what is published must be what is there."""
    machine = Machine()
    made = backend(machine, tmp_path)
    attrs = await made.prepare(None)
    link = await machine.netlink.link("flannel.1")
    await machine.netlink.set_link(link.index, mac=mac(66))
    network = await made.attach(replace(lease(1, "vxlan"), attrs=attrs))
    link = await machine.netlink.link("flannel.1")
    assert (link.mac, link.up) == (published(attrs), True)
    assert network.own_attrs() == attrs


async def test_a_mac_that_cannot_be_put_back_is_published(tmp_path):
    machine = Machine()
    made = backend(machine, tmp_path)
    attrs = await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    link = await machine.netlink.link("flannel.1")
    await machine.netlink.set_link(link.index, mac=mac(66))
    machine.netlink.fail_next("set_link", errno.EBUSY)
    with pytest.raises(PartlyApplied, match=r"flannel\.1 mac"):
        await network.apply(full=True)
    assert published(network.own_attrs()) == mac(66)
    await network.apply(full=True)
    assert network.own_attrs() == attrs


async def test_a_lease_without_an_enabled_family_is_an_error(tmp_path):
    made = backend(Machine(), tmp_path, ipv6=True)
    await made.prepare(None)
    with pytest.raises(LeaseError, match="no IPv6 subnet"):
        await made.attach(lease(1, "vxlan"))


async def test_a_device_that_cannot_be_had_is_an_error_at_start(tmp_path):
    with pytest.raises(KernelError):
        await backend(Machine(kinds=()), tmp_path).prepare(None)


def test_an_interface_without_address_or_room_is_a_config_error(tmp_path):
    conf = config({"Type": "vxlan"})
    with pytest.raises(ConfigError, match="leaves 18 bytes"):
        create(Machine(mtu=68).context(conf, tmp_path))
    context = Machine().context(conf, tmp_path)
    with pytest.raises(ConfigError, match="no IPv4 address"):
        create(replace(context, underlay=replace(context.underlay, address=None)))


def test_an_mtu_above_the_interfaces_is_a_warning_at_start(tmp_path, caplog):
    create(Machine().context(config({"Type": "vxlan", "MTU": 9000}), tmp_path))
    assert "MTU is 9000, more than eth0 carries: its 1500 counts" in caplog.text


async def test_it_follows_another_underlay_address_in_place(tmp_path):
    machine = Machine()
    made = backend(machine, tmp_path)
    attrs = await made.prepare(None)
    network = await made.attach(lease(1, "vxlan"))
    network.update([LeaseAdded(lease(2, "vxlan"))])
    await network.apply(full=True)
    here = IPv4Address("192.0.2.51")
    moved = replace(machine.external(), address=here, public_ip=here, mtu=1400)
    new = await network.rebase(moved)
    assert new == replace(attrs, public_ip=here)
    assert network.mtu == 1350
    await network.apply(full=False)
    link = await machine.netlink.link("flannel.1")
    assert (link.vxlan.local, link.mac, link.mtu) == (here, published(attrs), 1350)
    assert len(await machine.netlink.fdb(link.index)) == 1
    with pytest.raises(ConfigError):
        await network.rebase(replace(moved, address=None))


def test_an_fdb_entry_of_another_daemons_neighbour_is_not_ours():
    machine = Machine()
    link = machine.plug("flannel.1")
    entry = FdbEntry(index=link.index, mac=mac(7), dst=IPv4Address("192.0.2.7"))
    stranger = Neighbour(index=link.index, ip=IPv4Address("10.9.7.0"), mac=mac(7))
    ours = plan(machine)
    assert ours.is_ours(entry, View(), startup=True)
    shared = View(strangers={link.index: {stranger.mac: stranger}})
    assert not ours.is_ours(entry, shared, startup=True)
    assert ours.is_ours(replace(entry, mac=mac(8)), shared, startup=True)
