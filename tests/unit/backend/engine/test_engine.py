"""The reconciling engine, with the vxlan plan on a kernel in memory."""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyflannel.backend.base import Applied, PartlyApplied
from pyflannel.backend.engine import Engine
from pyflannel.backend.vxlan import VxlanPlan
from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family
from pyflannel.core.lease import LeaseAdded, LeaseRemoved
from pyflannel.kernel.base import (
    NUD_PERMANENT,
    NUD_STALE,
    Address,
    Delete,
    FdbEntry,
    LinkSpec,
    Neighbour,
    Notification,
    Route,
    Set,
    Topic,
    VxlanAttrs,
)
from tests.support.overlay import ME, Machine, config, key, lease, mac, moved, overflow, run

OWN_MAC = "0e:00:00:00:00:01"


class Node:
    """An engine that keeps vxlan, and what a test asks about it."""

    def __init__(self, machine: Machine | None = None, *, direct: bool = False) -> None:
        self.machine = machine or Machine()
        self.netlink = self.machine.netlink
        self.plan = VxlanPlan(
            config=config({"Type": "vxlan"}),
            settings=VxlanSettings(direct_routing=direct),
            external=self.machine.external(),
            macs={Family.V4: OWN_MAC},
            own=key(ME),
        )
        self._device = 0
        self.sysctls: dict[str, str] = {}

        def write_sysctl(name: str, value: str) -> bool:
            self.sysctls[name] = value
            return True

        self.engine = Engine(self.netlink, self.plan, write_sysctl=write_sysctl)

    def add(self, *numbers: int) -> None:
        self.engine.update([LeaseAdded(lease(number, "vxlan")) for number in numbers])

    def remove(self, *numbers: int) -> None:
        self.engine.update([LeaseRemoved(lease(number, "vxlan")) for number in numbers])

    async def apply(self, *, full: bool = True) -> Applied:
        return await self.engine.apply(full=full)

    async def heal(self) -> None:
        """Passes until nothing fails and nothing is left to do, as the driver would run them."""
        for _ in range(4):
            try:
                applied = await self.apply()
            except PartlyApplied:
                continue
            if not applied.changed and not applied.repaired:
                return

    @property
    def device(self) -> int:
        """Index of the vxlan device, or what it was before it was lost."""
        link = self.engine.links.get("flannel.1")
        self._device = link.index if link is not None else self._device
        return self._device

    def objects(self, number: int):
        device = self.device
        vtep = IPv4Address(f"10.5.{number}.0")
        return {
            Neighbour(index=device, ip=vtep, mac=mac(number)),
            FdbEntry(index=device, mac=mac(number), dst=IPv4Address(f"192.0.2.{number}")),
            Route(dst=IPv4Network(f"10.5.{number}.0/24"), gateway=vtep, oif=device, onlink=True),
        }

    async def has_exactly(self, *numbers: int) -> bool:
        there = set()
        for thing in await self.machine.state():
            match thing:
                case Neighbour() | FdbEntry():
                    there.add(thing)
                case Route(dst=dst) if dst.version == 4 and dst.subnet_of(
                    IPv4Network("10.5.0.0/16")
                ):
                    there.add(thing)
        return there == set().union(*(self.objects(number) for number in numbers))


async def test_a_peer_gets_neighbour_fdb_entry_and_route_in_this_order_and_the_reverse_on_removal():
    node = Node()
    node.engine.synced()
    await node.apply()
    node.netlink.applied.clear()
    node.add(2)
    assert await node.apply(full=False) == Applied(changed=3)
    assert [type(op.object) for op in node.netlink.applied] == [Neighbour, FdbEntry, Route]
    assert all(isinstance(op, Set) for op in node.netlink.applied)
    node.netlink.applied.clear()
    node.remove(2)
    await node.apply(full=False)
    assert [type(op.object) for op in node.netlink.applied] == [Route, FdbEntry, Neighbour]
    assert all(isinstance(op, Delete) for op in node.netlink.applied)
    assert await node.has_exactly()


async def test_one_changed_lease_writes_its_difference_and_reads_nothing():
    """However many peers there are: no dump, no look-up, one write."""

    node = Node()
    node.add(*range(2, 200))
    await node.apply()
    node.netlink.calls.clear()
    node.netlink.applied.clear()
    old = lease(7, "vxlan")
    node.engine.update([LeaseAdded(moved(old, "192.0.2.250"), old)])
    await node.apply(full=False)
    assert [type(op.object) for op in node.netlink.applied] == [FdbEntry]
    assert set(node.netlink.calls) == {"apply", "fdb_replace"}


async def test_a_restart_finds_everything_in_place_and_writes_nothing():
    first = Node()
    first.add(2, 3)
    await first.apply()
    first.netlink.applied.clear()
    second = Node(first.machine)
    second.add(2, 3)
    second.engine.synced()
    assert await second.apply() == Applied()
    assert not second.netlink.applied
    assert second.device == first.device


async def test_nothing_is_swept_before_the_first_snapshot_and_strangers_are_never():
    first = Node()
    first.add(2, 3)
    await first.apply()
    machine, netlink = first.machine, first.netlink
    eth0 = machine.eth0.index
    strangers = [
        Route(dst=IPv4Network("10.5.9.0/24"), gateway=IPv4Address("192.0.2.9"), oif=eth0),
        Neighbour(index=eth0, ip=IPv4Address("192.0.2.9"), mac=mac(9)),
        Address(index=first.device, interface=IPv4Interface("172.31.0.1/24")),
    ]
    netlink.meddle(*map(Set, strangers))
    second = Node(machine)
    second.add(3)
    await second.apply()
    assert set(second.objects(2)) <= await machine.state()
    second.engine.synced()
    assert (await second.apply()).repaired == {}
    state = await machine.state()
    assert not set(second.objects(2)) & state
    assert set(second.objects(3)) | set(strangers) <= state


async def test_what_others_changed_is_put_right_and_counted_by_kind():
    node = Node()
    node.add(2, 3)
    node.engine.synced()
    await node.apply()
    route = next(o for o in node.objects(2) if isinstance(o, Route))
    fdb = next(o for o in node.objects(3) if isinstance(o, FdbEntry))
    neighbour = next(o for o in node.objects(3) if isinstance(o, Neighbour))
    node.netlink.meddle(
        Set(replace(route, gateway=IPv4Address("192.0.2.9"), oif=node.machine.eth0.index,
                    onlink=False)),
        Set(replace(fdb, dst=IPv4Address("192.0.2.99"))),
        Delete(neighbour),
        Set(FdbEntry(index=node.device, mac=mac(77), dst=IPv4Address("192.0.2.77"))),
    )  # fmt: skip
    assert await node.apply() == Applied(repaired={"route": 1, "fdb": 2, "neighbour": 1})
    assert await node.has_exactly(2, 3)
    assert await node.apply() == Applied()


async def test_a_second_route_under_our_key_is_removed():
    """`ip route append`: the kernel would keep using whichever comes first."""

    node = Node()
    node.add(2)
    await node.apply()
    eth0 = node.machine.eth0.index
    wrong = Route(dst=key(2).v4, gateway=IPv4Address("192.0.2.9"), oif=eth0)
    node.netlink.append_route(wrong)
    await node.heal()
    assert await node.has_exactly(2)


async def test_a_batch_that_was_never_sent_is_made_again():
    """Also the removal of duplicates, which no listing of ours remembers."""

    node = Node()
    node.add(2)
    node.engine.synced()
    await node.apply()
    stale = [
        FdbEntry(index=node.device, mac=mac(66), dst=IPv4Address("192.0.2.66")),
        Neighbour(index=node.device, ip=IPv4Address("10.5.66.0"), mac=mac(66)),
    ]
    wrong = Route(
        dst=IPv4Network("10.5.2.0/24"),
        gateway=IPv4Address("192.0.2.9"),
        oif=node.machine.eth0.index,
    )
    node.netlink.meddle(*map(Set, stale))
    node.netlink.append_route(wrong)
    node.netlink.fail_next("apply", errno.EIO)
    with pytest.raises(KernelError):
        await node.apply()
    await node.apply(full=False)
    assert await node.has_exactly(2)


DEVICE_FAULTS = {
    "down": lambda n: n.netlink.set_link(n.device, up=False),
    "mac": lambda n: n.netlink.set_link(n.device, mac="0a:ff:ff:ff:ff:ff"),
    "mtu": lambda n: n.netlink.set_link(n.device, mtu=1300),
    "txqlen": lambda n: n.netlink.set_link(n.device, txqlen=5),
    "deleted": lambda n: n.netlink.delete_link(n.device),
}


@pytest.mark.parametrize("fault", DEVICE_FAULTS)
async def test_a_damaged_device_is_put_right_and_all_peers_are_replayed(fault):
    node = Node()
    node.add(2, 3)
    node.engine.synced()
    await node.apply()
    await DEVICE_FAULTS[fault](node)
    repaired = (await node.apply()).repaired
    expected = {"down": "link", "txqlen": "link", "deleted": "device"}.get(fault, fault)
    assert repaired[expected] == 1
    link = await node.netlink.link("flannel.1")
    assert (link.mac, link.mtu, link.txqlen, link.up) == (OWN_MAC, 1450, 0, True)
    assert await node.has_exactly(2, 3)
    addresses = [a.interface for a in await node.netlink.addresses(index=link.index)]
    assert IPv4Interface("10.5.1.0/32") in addresses
    assert await node.apply() == Applied()


async def test_a_device_with_other_settings_is_created_anew():
    machine = Machine()
    attrs = VxlanAttrs(vni=9, link=machine.eth0.index, local=IPv4Address("192.0.2.1"))
    await machine.netlink.create_link(LinkSpec(name="flannel.1", kind="vxlan", vxlan=attrs))
    node = Node(machine)
    node.add(2)
    await node.apply()
    link = await node.netlink.link("flannel.1")
    assert link.vxlan.vni == 1
    assert link.mac == OWN_MAC
    assert await node.has_exactly(2)
    assert node.sysctls == {"net/ipv6/conf/flannel.1/accept_ra": "0"}


async def test_a_device_that_the_kernel_makes_otherwise_than_asked_is_not_created_without_end(
    monkeypatch,
):
    """Seen with the module parameter `udp_port`: port 0 is then not 8472."""

    node = Node()
    create = node.netlink.create_link

    async def other_port(spec):
        return await create(replace(spec, vxlan=replace(spec.vxlan, port=4789)))

    monkeypatch.setattr(node.netlink, "create_link", other_port)
    await node.apply()
    index = node.device
    await node.apply()
    assert node.device == index


async def test_a_lost_underlay_is_named_and_everything_returns_with_the_new_one():
    node = Node()
    node.add(2)
    node.engine.synced()
    await node.apply()
    await node.netlink.delete_link(node.machine.eth0.index)
    with pytest.raises(PartlyApplied) as caught:
        await node.apply()
    assert set(caught.value.failures) == {"eth0", "flannel.1"}
    assert "ENODEV" in str(caught.value)
    node.machine.plug("eth0")
    await node.apply()
    assert await node.has_exactly(2)
    assert node.engine.links["flannel.1"].mac == OWN_MAC


async def test_a_renamed_underlay_keeps_carrying_packets():
    """Until the daemon finds out and tells us its new name."""

    node = Node()
    node.add(2)
    node.engine.synced()
    await node.apply()
    node.netlink.rename_link(node.machine.eth0.index, "lan0")
    with pytest.raises(PartlyApplied) as caught:
        await node.apply()
    assert set(caught.value.failures) == {"eth0"}
    assert await node.has_exactly(2)
    external = replace(node.plan.external, name="lan0")
    node.engine.follow(node.plan.rebased(external, None))
    assert await node.apply() == Applied()


async def test_one_failing_peer_holds_up_no_other_and_is_named_until_it_works():
    node = Node()
    await node.apply()
    node.netlink.fail_next("route_replace", errno.ENOBUFS, match="10.5.3.0", times=2)
    node.add(2, 3, 4)
    with pytest.raises(PartlyApplied) as caught:
        await node.apply(full=False)
    assert set(caught.value.failures) == {"peer 10.5.3.0/24"}
    assert caught.value.applied == Applied(changed=8)
    # Another lease changes: the failed one is named again, but not tried again.
    node.add(5)
    with pytest.raises(PartlyApplied) as caught:
        await node.apply(full=False)
    assert caught.value.applied == Applied(changed=3)
    assert node.netlink.calls["route_replace"] == 4
    # A full pass is the retry.
    with pytest.raises(PartlyApplied):
        await node.apply()
    assert await node.apply() == Applied(changed=1)
    assert await node.has_exactly(2, 3, 4, 5)


async def test_a_table_that_cannot_be_read_is_named_and_nothing_is_swept_by_guess():
    first = Node()
    first.add(2)
    await first.apply()
    second = Node(first.machine)
    second.engine.synced()
    second.netlink.fail_next("routes", errno.EIO)
    with pytest.raises(PartlyApplied, match="list of routes"):
        await second.apply()
    assert (await second.apply()).repaired == {}
    assert await second.has_exactly()


async def test_an_interrupted_pass_is_made_up_for():
    node = Node()
    node.add(2, 3)
    node.netlink.fail_next("link", errno.EIO)
    with pytest.raises(KernelError):
        await node.apply()
    await node.apply(full=False)
    assert await node.has_exactly(2, 3)
    task = asyncio.ensure_future(node.apply())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    node.netlink.meddle(Delete(next(iter(node.objects(2)))))
    await node.apply(full=False)
    assert await node.has_exactly(2, 3)


async def test_two_peers_with_one_vtep_mac_the_later_wins_and_the_other_inherits():
    """Cloned machines: both are reached again as soon as one of them gets a MAC of its own."""

    node = Node()
    node.engine.synced()
    twin = replace(
        lease(3, "vxlan"),
        attrs=replace(lease(3, "vxlan").attrs, backend_data=lease(2, "vxlan").attrs.backend_data),
    )
    node.add(2)
    node.engine.update([LeaseAdded(twin)])
    await node.apply()
    assert [e.dst for e in await node.netlink.fdb(node.device)] == [IPv4Address("192.0.2.3")]
    node.engine.update([LeaseRemoved(twin)])
    await node.apply(full=False)
    assert await node.has_exactly(2)


async def test_a_subnet_that_moves_to_another_lease_key_stays_reachable():
    node = Node()
    node.engine.synced()
    node.add(2)
    await node.apply()
    dual = lease(2, "vxlan", ipv6=True)
    for events in ([LeaseRemoved(lease(2, "vxlan")), LeaseAdded(dual)],
                   [LeaseAdded(lease(2, "vxlan")), LeaseRemoved(dual)]):  # fmt: skip
        node.engine.update(events)
        await node.apply(full=False)
        assert await node.has_exactly(2)


async def test_peers_of_another_backend_are_ignored_and_told_once(caplog):
    node = Node()
    for _ in range(2):
        node.engine.update([LeaseAdded(lease(2, "host-gw")), LeaseAdded(lease(3, "vxlan"))])
        await node.apply(full=False)
    assert await node.has_exactly(3)
    assert "10.5.2.0/24" in node.engine.report().ignored
    assert [r.message for r in caplog.records].count("peer ignored") == 1


async def test_of_very_many_the_first_are_logged_and_all_are_in_the_report(caplog):
    caplog.set_level("INFO")

    node = Node()
    leases = [LeaseAdded(lease(number, "host-gw")) for number in range(2, 102)]
    node.engine.update(leases)
    await node.apply(full=False)
    assert len(node.engine.report().ignored) == 100
    node.engine.update([LeaseRemoved(each.lease) for each in leases[:40]])
    node.engine.update([LeaseAdded(lease(number, "vxlan")) for number in range(50, 102)])
    await node.apply(full=False)
    assert len(node.engine.report().ignored) == 8
    said = [record.message for record in caplog.records]
    assert said.count("peer ignored") == 20
    assert said.count("peer is no longer ignored") == 20
    assert (
        said.count("more messages about peers are left out; pyflannel peers lists all of them") == 2
    )


async def test_another_plan_re_points_the_device_and_the_peers():
    node = Node()
    node.add(2)
    node.engine.synced()
    await node.apply()
    external = replace(node.plan.external, address=IPv4Address("192.0.2.51"), mtu=1400)
    node.engine.follow(node.plan.rebased(external, lease(8, "vxlan")))
    applied = await node.apply()
    assert applied.repaired == {}
    link = await node.netlink.link("flannel.1")
    assert (link.vxlan.local, link.mtu, link.mac) == (external.address, 1350, OWN_MAC)
    addresses = {a.interface for a in await node.netlink.addresses(index=link.index)}
    assert IPv4Interface("10.5.8.0/32") in addresses
    assert IPv4Interface("10.5.1.0/32") not in addresses
    assert await node.has_exactly(2)


# Notifications.


async def noticed(node: Node) -> list[bool]:
    """Feeds all notifications that came since the subscription."""
    answers = []
    while True:
        try:
            async with asyncio.timeout(0.001):
                answers.append(node.engine.notice(await anext(node.subscription)))
        except TimeoutError:
            return answers


async def watched() -> Node:
    node = Node()
    node.add(2, 3)
    node.engine.synced()
    await node.apply()
    node.subscription = node.netlink.notifications()
    return node


async def test_our_own_writes_are_no_news_and_the_same_change_by_others_is():
    node = await watched()
    node.add(4, 5)
    node.remove(3)
    await node.apply(full=False)
    assert not any(await noticed(node))
    node.netlink.calls.clear()
    assert await node.apply(full=False) == Applied()
    assert not node.netlink.calls, "nothing is read back because of our own writes"
    for thing in node.objects(4):
        node.netlink.meddle(Delete(thing))
        assert await noticed(node) == [True]
    await node.apply(full=False)
    assert await node.has_exactly(2, 4, 5)


async def test_a_write_that_the_kernel_is_silent_about_hides_no_change_by_others():
    """Another program has restored it before we write it again, so our write has no echo."""

    node = await watched()
    route = next(o for o in node.objects(2) if isinstance(o, Route))
    node.netlink.meddle(Delete(route))
    assert await noticed(node) == [True]
    await node.apply(full=False)
    node.subscription = node.netlink.notifications()
    wrong = replace(route, gateway=IPv4Address("10.5.4.9"))
    node.netlink.meddle(Set(wrong))
    assert await noticed(node) == [True]


def test_traffic_on_the_device_is_no_news():
    """Neighbours that come and go by themselves, and routes of others inside the network."""

    async def scenario() -> None:
        node = await watched()
        stranger = Neighbour(
            index=node.device, ip=IPv4Address("10.5.9.9"), mac=mac(9), state=NUD_STALE
        )
        node.netlink.meddle(Set(stranger), Delete(stranger))
        assert await noticed(node) == [False, False]
        node.netlink.meddle(Set(replace(stranger, state=NUD_PERMANENT)))
        assert await noticed(node) == [True]
        ours = next(o for o in node.objects(2) if isinstance(o, Neighbour))
        node.netlink.meddle(Set(replace(ours, state=NUD_STALE)))
        assert await noticed(node) == [True]

    run(scenario())

    run(scenario())


def address_of_another_link(text: str) -> Notification:
    address = Address(index=77, interface=IPv4Interface(text))
    return Notification(topic=Topic.ADDRESS, index=77, family=Family.V4, object=address)


@pytest.mark.parametrize(
    ("notification", "concerns_us"),
    [
        (Notification(topic=Topic.OVERFLOW), True),
        (Notification(topic=Topic.LINK, name="flannel.1", deleted=True), True),
        (Notification(topic=Topic.LINK, name="eth0"), True),
        (Notification(topic=Topic.LINK, index=77, name="vethabc"), False),
        (address_of_another_link("172.31.0.1/16"), False),
        (address_of_another_link("10.5.40.1/24"), True),
        (address_of_another_link("10.1.2.3/8"), True),
        (Notification(topic=Topic.NEIGHBOUR, index=77, family=Family.V4), False),
        (Notification(topic=Topic.ROUTE, dst=IPv4Network("10.5.2.0/24")), True),
        (Notification(topic=Topic.ROUTE, dst=IPv4Network("10.5.1.7/32")), False),
        (Notification(topic=Topic.ROUTE, dst=IPv4Network("172.16.0.0/12")), False),
        (Notification(topic=Topic.ROUTE), True),
    ],
)
async def test_only_what_may_concern_us_is_noticed(notification, concerns_us):
    """A container that starts on this node, or a neighbour of eth0, is none of our business."""

    node = await watched()
    assert node.engine.notice(notification) is concerns_us


# Direct routing.


async def test_direct_routing_follows_the_routes_of_the_underlay():
    node = Node(direct=True)
    node.add(2)
    node.engine.synced()
    await node.apply()
    eth0 = node.machine.eth0.index
    dst, public = IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2")
    direct = Route(dst=dst, gateway=public, oif=eth0)
    assert direct in await node.machine.state()
    assert not await node.netlink.fdb(node.device)
    detour = Route(dst=IPv4Network("192.0.2.2/32"), gateway=IPv4Address("192.0.2.77"), oif=eth0)
    node.netlink.meddle(Set(detour))
    await node.apply()
    assert set(node.objects(2)) <= await node.machine.state()
    node.netlink.calls.clear()
    await node.apply()
    assert not node.netlink.calls["route_lookup"], "looked up again without a reason"
    node.netlink.meddle(Delete(detour))
    await node.apply()
    assert direct in await node.machine.state()


# Any faults.

PEERS = (2, 3, 4, 5)


def _objects(draw, node: Node):
    return draw(st.sampled_from(sorted(set().union(*map(node.objects, PEERS)), key=str)))


async def break_something(node: Node, draw) -> None:
    """One fault of any kind; refused by the kernel is fine as well."""
    netlink = node.netlink
    link = await netlink.link("flannel.1")
    eth0 = await netlink.link("eth0")
    kind = draw(
        st.sampled_from(
            ("delete", "replace", "stale", "append", "down", "gone", "mac", "mtu", "address",
             "failure", "lease", "eth0 down", "eth0 up", "pass")
        )
    )  # fmt: skip
    thing = _objects(draw, node)
    other = IPv4Address(f"192.0.2.{draw(st.integers(90, 93))}")
    match kind:
        case "delete":
            netlink.meddle(Delete(thing))
        case "replace" if isinstance(thing, Route) and eth0:
            netlink.meddle(Set(replace(thing, gateway=other, oif=eth0.index, onlink=True)))
        case "replace" if isinstance(thing, FdbEntry):
            netlink.meddle(Set(replace(thing, dst=other)))
        case "replace" if isinstance(thing, Neighbour):
            netlink.meddle(Set(replace(thing, mac=mac(99))))
        case "stale" if link:
            netlink.meddle(Set(FdbEntry(index=link.index, mac=mac(98), dst=other)))
        case "append" if isinstance(thing, Route) and eth0:
            netlink.append_route(replace(thing, gateway=other, oif=eth0.index))
        case "down" if link:
            await netlink.set_link(link.index, up=False)
        case "gone" if link:
            await netlink.delete_link(link.index)
        case "mac" if link:
            await netlink.set_link(link.index, mac="0a:ff:ff:ff:ff:01")
        case "mtu" if link:
            await netlink.set_link(link.index, mtu=draw(st.integers(100, 1450)))
        case "address" if link:
            for address in await netlink.addresses(index=link.index):
                netlink.meddle(Delete(address))
        case "failure":
            operations = (
                "route_replace",
                "fdb_replace",
                "set_link",
                "fdb",
                "neighbour_delete",
                "create_link",
                "routes",
            )
            operation = draw(st.sampled_from(operations))
            netlink.fail_next(operation, errno.ENOBUFS)
        case "lease":
            number = draw(st.sampled_from(PEERS))
            old = lease(number, "vxlan")
            node.engine.update(
                draw(
                    st.sampled_from(
                        ([LeaseRemoved(old)], [LeaseAdded(moved(old, "192.0.2.200"), old)])
                    )
                )
            )
        case "eth0 down" | "eth0 up" if eth0:
            await netlink.set_link(eth0.index, up=kind.endswith("up"))
        case _:
            pass


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_after_any_sequence_of_faults_the_kernel_converges_to_the_desired_state(data):
    """Faults between passes, in any order and number; then the leases as they were."""

    async def scenario() -> None:
        node = Node()
        node.add(*PEERS)
        node.engine.synced()
        await node.apply()
        wanted = await node.machine.state()
        before = node.device
        for _ in range(data.draw(st.integers(1, 8))):
            with suppress(KernelError):
                await break_something(node, data.draw)
            if data.draw(st.booleans()):
                with suppress(PartlyApplied, KernelError):
                    await node.apply(full=data.draw(st.booleans()))
        node.netlink._failures.clear()
        await node.netlink.set_link(node.machine.eth0.index, up=True)
        node.add(*PEERS)
        await node.heal()
        assert await node.has_exactly(*PEERS)
        link = await node.netlink.link("flannel.1")
        assert (link.mac, link.mtu, link.up) == (OWN_MAC, 1450, True)
        if node.device == before:
            assert await node.machine.state() >= {o for o in wanted if not isinstance(o, Address)
                                                  and "10.5" in str(o)}  # fmt: skip
        assert await node.apply() == Applied()

    run(scenario())


async def test_overflow_means_reading_everything():
    node = await watched()
    node.netlink.meddle(Delete(next(iter(node.objects(2)))))
    assert node.engine.notice(overflow())
    await node.apply(full=False)
    assert await node.has_exactly(2, 3)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_of_two_leases_with_one_vtep_mac_the_newer_says_where_it_is(order):
    """A node has a new address and a new lease; its old one names the same MAC for up to a day."""

    node = Node()
    old = replace(lease(2, "vxlan"), revision=5)
    new = replace(lease(3, "vxlan"), revision=9)
    new = replace(new, attrs=replace(new.attrs, backend_data=old.attrs.backend_data))
    both = [old, new]
    node.engine.update([LeaseAdded(both[number]) for number in order])
    node.engine.synced()
    await node.heal()
    (entry,) = await node.netlink.fdb(node.device)
    assert (entry.mac, str(entry.dst)) == (mac(2), "192.0.2.3")
    node.engine.update([LeaseRemoved(new)])
    await node.heal()
    (entry,) = await node.netlink.fdb(node.device)
    assert str(entry.dst) == "192.0.2.2"


# A device that another daemon keeps, too.

STRANGERS_MAC = "0a:00:00:00:09:02"


def strangers_peer(node: Node) -> list[Neighbour | FdbEntry]:
    """What another daemon of the network 10.9.0.0/16 sets for a peer, in its order."""
    return [
        Neighbour(index=node.device, ip=IPv4Address("10.9.2.0"), mac=STRANGERS_MAC),
        FdbEntry(index=node.device, mac=STRANGERS_MAC, dst=IPv4Address("192.0.2.92")),
    ]


@pytest.mark.parametrize("first", ["the other", "we"])
async def test_another_daemons_peers_on_our_device_stay_and_are_told_once(first, caplog):
    """With one VNI by mistake; who started first makes no difference."""
    node = Node()
    node.add(2)
    node.engine.synced()
    if first == "we":
        await node.apply()
    else:
        await node.engine.ensure_devices()
    node.subscription = node.netlink.notifications()
    theirs = strangers_peer(node)
    for thing in theirs:
        node.netlink.meddle(Set(thing))
        await noticed(node)
    for full in (False, True, True):
        await node.apply(full=full)
    assert set(theirs) | node.objects(2) <= await node.machine.state()
    assert "10.9.2.0" in node.engine.report().shared["flannel.1"]
    assert len([r for r in caplog.records if "another daemon" in r.getMessage()]) == 1

    # It is gone, and what it left behind belongs to no one.
    node.netlink.meddle(Delete(theirs[0]))
    await node.apply()
    assert await node.has_exactly(2)
    assert node.engine.report().shared == {}
