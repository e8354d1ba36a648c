"""What every backend promises, held against each on a kernel in memory.

A restart after `kill -9` is a new backend over the same kernel: nothing else outlives a process but
the state directory and what the lease says. (The udp backend takes its device along when the
process ends, and needs a real TUN device; its tests are with the real kernel.)
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pyflannel.backend.base import Applied, ApplyError, Network
from pyflannel.backend.kinds import create
from pyflannel.core.errors import FlannelError
from pyflannel.core.lease import Lease, LeaseAdded, LeaseAttrs, LeaseRemoved
from pyflannel.kernel.base import Delete, KernelObject, Notification, Route, Topic
from tests.support.overlay import Machine, config, lease


@dataclass(frozen=True)
class Case:
    """One backend, in one set-up."""

    backend: dict[str, object]
    families: int = 4
    carries: bool = True
    """Whether it puts anything into the kernel."""

    @property
    def name(self) -> str:
        return str(self.backend["Type"])

    @property
    def ipv6(self) -> bool:
        return self.families in (6, 46)

    @property
    def ipv4(self) -> bool:
        return self.families in (4, 46)

    def peer(self, number: int) -> Lease:
        return lease(number, self.name, ipv4=self.ipv4, ipv6=self.ipv6)

    def __str__(self) -> str:
        extra = "-direct" if self.backend.get("DirectRouting") else ""
        return f"{self.name}{extra}-{self.families}"


CASES = [
    Case({"Type": "vxlan"}),
    Case({"Type": "vxlan"}, families=6),
    Case({"Type": "vxlan"}, families=46),
    Case({"Type": "vxlan", "DirectRouting": True}, families=46),
    Case({"Type": "host-gw"}),
    Case({"Type": "host-gw"}, families=6),
    Case({"Type": "host-gw"}, families=46),
    Case({"Type": "ipip"}),
    Case({"Type": "ipip", "DirectRouting": True}),
    Case({"Type": "alloc"}, carries=False),
    Case({"Type": "extension"}, carries=False),
]
CARRYING = [case for case in CASES if case.carries]
every = pytest.mark.parametrize("case", CASES, ids=str)
carrying = pytest.mark.parametrize("case", CARRYING, ids=str)


class Node:
    """A node whose daemon can be started any number of times."""

    def __init__(self, case: Case, state_dir: Path) -> None:
        self.case = case
        self.machine = Machine()
        self.state_dir = state_dir
        self.config = config(case.backend, ipv4=case.ipv4, ipv6=case.ipv6)
        self.attrs: LeaseAttrs | None = None
        self.network: Network

    async def start(self) -> Network:
        backend = create(self.machine.context(self.config, self.state_dir))
        self.attrs = await backend.prepare(self.attrs)
        self.network = await backend.attach(replace(self.case.peer(1), attrs=self.attrs))
        return self.network

    async def tell(self, *numbers: int, synced: bool = True) -> Applied:
        self.network.update([LeaseAdded(self.case.peer(number)) for number in numbers])
        if synced:
            self.network.synced()
        return await self.network.apply(full=True)

    async def state(self) -> frozenset[KernelObject]:
        return await self.machine.state()


@every
async def test_attributes_come_before_the_lease_and_stay_the_same(case: Case, tmp_path: Path):
    node = Node(case, tmp_path)
    network = await node.start()
    assert network.own_attrs() == node.attrs
    assert node.attrs is not None
    assert node.attrs.backend_type == case.peer(1).attrs.backend_type
    await node.tell(2, 3)
    assert network.own_attrs() == node.attrs


@every
async def test_mtu_fits_the_underlay_and_status_is_plain_json(case: Case, tmp_path: Path):
    network = await Node(case, tmp_path).start()
    assert 1280 <= network.mtu <= 1500
    assert network.report().mtu == network.mtu


@every
async def test_applying_again_changes_nothing(case: Case, tmp_path: Path):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2, 3, 4)
    node.machine.netlink.applied.clear()
    for full in (True, False, True):
        assert await node.network.apply(full=full) == Applied()
    assert not node.machine.netlink.applied


@every
async def test_what_peers_brought_goes_with_them(case: Case, tmp_path: Path):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell()
    before = await node.state()
    await node.tell(2, 3)
    assert (await node.state() != before) is case.carries
    node.network.update([LeaseRemoved(case.peer(2)), LeaseRemoved(case.peer(3))])
    await node.network.apply(full=False)
    assert await node.state() == before


@every
async def test_the_order_of_events_does_not_matter(case: Case, tmp_path: Path):
    one, other = Node(case, tmp_path / "a"), Node(case, tmp_path / "a")
    for node in (one, other):
        await node.start()
    await one.tell(2, 3, 4)
    for number in (4, 9, 3, 2):
        await other.tell(number, synced=False)
    other.network.update([LeaseRemoved(case.peer(9))])
    other.network.synced()
    await other.network.apply(full=True)
    assert set(map(str, await one.state())) == set(map(str, await other.state()))


@carrying
async def test_killed_and_started_again_it_recognises_its_own_work(case: Case, tmp_path: Path):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2, 3)
    before, attrs = await node.state(), node.attrs
    node.machine.netlink.applied.clear()
    await node.start()
    assert node.attrs == attrs
    assert await node.tell(2, 3) == Applied()
    assert not node.machine.netlink.applied
    assert await node.state() == before


@carrying
async def test_killed_in_the_middle_of_programming_it_finishes_the_work(case: Case, tmp_path: Path):
    whole, killed = Node(case, tmp_path / "a"), Node(case, tmp_path / "a")
    for node in (whole, killed):
        await node.start()
    await whole.tell(2, 3, 4, 5)
    for kind in ("route_replace", "fdb_replace", "neighbour_replace"):
        killed.machine.netlink.fail_next(kind, errno.EINTR, times=2)
    with pytest.raises(ApplyError):
        await killed.tell(2, 3, 4, 5, synced=False)
    killed.machine.netlink._failures.clear()
    await killed.start()
    await killed.tell(2, 3, 4, 5)
    assert set(map(str, await whole.state())) == set(map(str, await killed.state()))


@carrying
async def test_a_peer_that_left_while_we_were_down_is_swept_but_not_before_the_snapshot(
    case: Case, tmp_path: Path
):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2)
    without_it = await node.state()
    await node.tell(3)
    with_it = await node.state()
    await node.start()
    await node.tell(2, synced=False)
    assert await node.state() == with_it
    node.network.synced()
    applied = await node.network.apply(full=False)
    assert applied.changed > 0
    assert applied.repaired == {}
    assert await node.state() == without_it


@carrying
async def test_every_object_that_is_deleted_or_altered_returns_and_is_counted(
    case: Case, tmp_path: Path
):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell()
    without = await node.state()
    await node.tell(2, 3)
    whole = await node.state()
    for thing in whole - without:
        node.machine.netlink.meddle(Delete(thing))
        applied = await node.network.apply(full=True)
        assert sum(applied.repaired.values()) == 1
        assert await node.state() == whole


@carrying
async def test_a_failing_peer_is_named_the_others_work_and_it_is_retried(
    case: Case, tmp_path: Path
):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2, 3)
    whole = {str(thing) for thing in await node.state()}
    node.network.update([LeaseRemoved(case.peer(2)), LeaseRemoved(case.peer(3))])
    await node.network.apply(full=True)

    def of_two(thing: object) -> bool:
        subnets = (case.peer(2).key.v4, case.peer(2).key.v6)
        return isinstance(thing, Route) and thing.dst in subnets

    node.machine.netlink.fail_next("route_replace", errno.ENOBUFS, match=of_two)
    with pytest.raises(ApplyError) as caught:
        await node.tell(2, 3)
    assert list(caught.value.failures) == [f"peer {case.peer(2).key.describe()}"]
    assert any(str(case.peer(3).key.v4 or case.peer(3).key.v6) in str(thing)
               for thing in await node.state())  # fmt: skip
    await node.network.apply(full=True)
    assert {str(thing) for thing in await node.state()} == whole


@every
async def test_a_kernel_that_does_not_answer_is_an_error_of_ours_and_passes(
    case: Case, tmp_path: Path
):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2)
    before = await node.state()
    for kind in ("link", "routes", "neighbours", "fdb", "addresses", "apply"):
        node.machine.netlink.fail_next(kind, errno.EIO)
        with suppress(FlannelError):
            await node.network.apply(full=True)
        node.machine.netlink._failures.clear()
    await node.network.apply(full=False)
    assert await node.state() == before


NOTIFICATIONS: list[Callable[[], Notification]] = [
    lambda: Notification(topic=Topic.OVERFLOW),
    lambda: Notification(topic=Topic.LINK, name="eth0", index=2),
    lambda: Notification(topic=Topic.ADDRESS, index=2),
]


@carrying
async def test_the_external_interface_and_lost_notifications_concern_every_network(
    case: Case, tmp_path: Path
):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2)
    assert all(node.network.notice(make()) for make in NOTIFICATIONS)
    strange = Notification(topic=Topic.LINK, name="veth7", index=77)
    assert not node.network.notice(strange)


@every
async def test_peers_of_another_type_do_no_harm(case: Case, tmp_path: Path):
    node = Node(case, tmp_path)
    await node.start()
    await node.tell()
    before = await node.state()
    odd = replace(case.peer(2), attrs=replace(case.peer(2).attrs, backend_type="wireguard"))
    node.network.update([LeaseAdded(odd)])
    await node.network.apply(full=True)
    assert await node.state() == before


@carrying
async def test_it_follows_a_new_external_interface(case: Case, tmp_path: Path):
    """The old one is gone, one of another name and the same addresses took its place."""
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2, 3)
    machine = node.machine
    await machine.netlink.delete_link(machine.eth0.index)
    new = machine.plug("wlan0", mtu=1400)
    external = replace(machine.external(ipv6=case.ipv6), name="wlan0", index=new.index, mtu=1400)
    before = node.network.mtu
    attrs = await node.network.rebase(external)
    assert attrs == node.attrs, "nothing that is published has changed"
    assert node.network.mtu == before - 100
    await node.network.apply(full=False)
    fresh = Node(case, tmp_path)
    await fresh.start()
    await fresh.tell(2, 3)
    count = len([t for t in await fresh.state() if isinstance(t, Route)])
    assert len([t for t in await machine.state() if isinstance(t, Route)]) == count
    assert await node.network.apply(full=True) == Applied()


@every
async def test_the_orderly_end_leaves_the_kernel_as_it_is(case: Case, tmp_path: Path):
    """So that packets flow while the daemon is restarted or upgraded."""
    node = Node(case, tmp_path)
    await node.start()
    await node.tell(2)
    before = await node.state()
    await node.network.detach()
    assert await node.state() == before
