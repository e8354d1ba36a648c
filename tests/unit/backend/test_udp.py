"""Backend udp without a TUN: which data path carries the packets, and what becomes of a bad one."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.backend import udp
from pyflannel.backend.base import Applied, PartlyApplied
from pyflannel.backend.udp import network as udp_network
from pyflannel.core.errors import DatapathError, DeviceUnavailable, KernelError
from pyflannel.core.ip import Family
from pyflannel.core.lease import LeaseAdded, LeaseRemoved
from pyflannel.core.lpm import PeerTable
from pyflannel.datapath import select
from pyflannel.datapath.base import Capabilities, Link
from pyflannel.kernel.base import Route, Set
from tests.support.overlay import ME, Machine, config, lease


class FakeTun:
    """A TUN that is a link of the kernel in memory."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.fd, self._other = os.pipe()
        self.vnet_hdr = False
        self.persistent: list[bool] = []

    def set_persistent(self, persistent: bool) -> None:
        self.persistent.append(persistent)

    def close(self) -> None:
        for fd in (self.fd, self._other):
            os.close(fd)


class FakePath:
    """A data path that does as it is told."""

    capabilities = Capabilities(name="fake")
    refuses = ""
    slow = ""

    def __init__(self, _config: object) -> None:
        self.started = self.stopped = 0
        self.tables: list[PeerTable] = []
        self.completed: list[int] = []
        """Peers in the table whenever that was asked for."""
        self.failed: str | None = None
        MADE.append(self)

    def prepare(self) -> None:
        pass

    def complete(self) -> None:
        self.completed.append(len(self.tables[-1]))

    def start(self) -> None:
        if self.refuses:
            raise DatapathError(self.refuses)
        self.started += 1

    def stop(self) -> None:
        self.stopped += 1

    def replace_table(self, table: PeerTable) -> None:
        self.tables.append(table)

    def counters(self) -> dict[str, int]:
        return {"tun_rx": 0}

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        return {"bytes_in": int(peer)}

    def failure(self) -> str | None:
        return self.failed

    def repair(self) -> Sequence[str]:
        return ()

    def slowed(self) -> str:
        return self.slow


class Refusing(FakePath):
    capabilities = Capabilities(name="refusing")
    refuses = "the kernel says no"


MADE: list[FakePath] = []


@pytest.fixture
def machine(monkeypatch):
    MADE.clear()
    made = Machine(kinds=("vxlan", "tun"))

    def open_tun(name: str, *, vnet_hdr: bool) -> FakeTun:
        made.netlink.add_link(name, kind="tun", up=False)
        return FakeTun(made)

    def create(kind: str, *, failed, link) -> select.Choice:
        del kind
        made.chosen_for.append(link)
        if "refusing" in failed or not made_of_refusing:
            return select.Choice(FakePath, f"after {dict(failed)}" if failed else "asked for")
        return select.Choice(Refusing, "the fastest")

    made.chosen_for = []
    made.ethernet = True
    monkeypatch.setattr(udp_network, "has_ethernet_header", lambda _: made.ethernet)
    made_of_refusing: list[bool] = []
    made.refuse = lambda: made_of_refusing.append(True)
    monkeypatch.setattr(udp_network, "open_tun", open_tun)
    monkeypatch.setattr(
        udp_network, "open_udp", lambda *_, **__: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    )
    monkeypatch.setattr(udp_network, "_remove_programs", lambda: None)
    monkeypatch.setattr(select, "create", create)
    return made


async def attached(machine: Machine, tmp_path):
    context = machine.context(config({"Type": "udp"}), tmp_path)
    backend = udp.UdpBackend(context)
    await backend.prepare(None)
    return await backend.attach(lease(ME, "udp"))


async def test_peers_are_rows_of_the_data_paths_table(machine, tmp_path):
    network = await attached(machine, tmp_path)
    network.update([LeaseAdded(lease(2, "udp")), LeaseAdded(lease(3, "udp"))])
    network.synced()
    await network.apply(full=True)
    (path,) = MADE
    assert len(path.tables[-1]) == 2
    network.update([LeaseRemoved(lease(3, "udp"))])
    await network.apply(full=False)
    assert len(path.tables[-1]) == 1
    assert network.report().peers == 1
    there = lease(2, "udp")
    assert network.peer_counters(there) == {"bytes_in": int(there.attrs.public_ip)}
    await network.detach()
    assert path.stopped == 1
    assert network.peer_counters(there) is None


async def test_a_data_path_is_completed_once_when_the_peers_are_in_its_table(machine, tmp_path):
    network = await attached(machine, tmp_path)
    await network.apply(full=True)
    assert MADE[0].completed == []
    network.update([LeaseAdded(lease(2, "udp"))])
    network.synced()
    for _ in range(2):
        await network.apply(full=True)
    assert MADE[0].completed == [1]
    MADE[0].failed = "EIO"
    await network.apply(full=False)
    assert MADE[1].completed == [1]
    await network.detach()


async def test_what_the_kernel_refuses_keeps_no_data_path_from_being_started(
    machine, tmp_path, monkeypatch
):
    network = await attached(machine, tmp_path)
    network.update([LeaseAdded(lease(2, "udp"))])
    network.synced()
    refused = {"route 10.5.0.0/16": KernelError("route", "10.5.0.0/16", errno.EPERM, "no")}

    async def apply(*, full):
        del full
        raise PartlyApplied(refused, Applied(changed=2, repaired={"address": 1}))

    monkeypatch.setattr(network._engine, "apply", apply)
    MADE[0].failed = "EIO"
    with pytest.raises(PartlyApplied, match=r"route 10\.5\.0\.0/16") as told:
        await network.apply(full=True)
    assert told.value.applied.repaired == {"address": 1, "datapath": 1}
    assert (MADE[1].started, MADE[1].completed) == (1, [1])
    await network.detach()


async def test_the_backend_says_when_it_has_device_and_socket(machine, tmp_path):
    begun: list[int] = []
    context = replace(
        machine.context(config({"Type": "udp"}), tmp_path), held=lambda: begun.append(len(MADE))
    )
    network = await udp.UdpBackend(context).attach(lease(ME, "udp"))
    assert begun[0] == 0, "before the slow part"
    await network.detach()


async def test_the_network_is_routed_into_the_device(machine, tmp_path):
    network = await attached(machine, tmp_path)
    link = await machine.netlink.link("flannel0")
    routes = {(r.dst, r.oif) for r in await machine.netlink.routes(Family.V4)}
    assert (IPv4Network("10.5.0.0/16"), link.index) in routes
    report = network.report()
    assert (report.port, report.mtu) == (8285, 1472)
    assert report.devices["flannel0"].up is True
    await network.detach()


async def test_routes_of_others_through_the_device_stay_and_those_into_the_network_do_not(
    machine, tmp_path
):
    network = await attached(machine, tmp_path)
    link = await machine.netlink.link("flannel0")
    stays = Route(dst=IPv4Network("172.31.0.0/24"), oif=link.index)
    goes = Route(dst=IPv4Network("10.5.9.0/24"), oif=link.index)
    machine.netlink.meddle(Set(stays), Set(goes))
    network.synced()
    for _ in range(2):
        await network.apply(full=True)
    there = await machine.netlink.routes(Family.V4)
    assert stays in there
    assert goes not in there
    await network.detach()


async def test_a_device_that_another_daemon_keeps_is_refused_before_anything_is_done(
    machine, tmp_path, monkeypatch
):
    done: list[str] = []
    monkeypatch.setattr(udp_network, "_remove_programs", lambda: done.append("programs"))

    def claim(name: str) -> None:
        raise DeviceUnavailable("link", name, errno.EBUSY, "pyflanneld (pid 7) keeps this device")

    context = machine.context(config({"Type": "udp"}), tmp_path)
    backend = udp.UdpBackend(replace(context, claim_device=claim))
    with pytest.raises(DeviceUnavailable, match=r"flannel0.*pid 7"):
        await backend.prepare(None)
    assert done == []


async def test_a_data_path_that_cannot_start_is_passed_over_and_the_reason_kept(machine, tmp_path):
    machine.refuse()

    network = await attached(machine, tmp_path)
    assert [path.capabilities.name for path in MADE] == ["refusing", "fake"]
    assert MADE[0].stopped == 1
    report = network.report().datapath
    assert report.name == "fake"
    assert "the kernel says no" in report.why
    await network.detach()


async def test_a_data_path_that_died_is_started_again_with_the_same_peers(machine, tmp_path):
    network = await attached(machine, tmp_path)
    network.update([LeaseAdded(lease(2, "udp"))])
    network.synced()
    await network.apply(full=True)
    MADE[0].failed = "EIO"
    # The device goes with the descriptor.
    link = await machine.netlink.link("flannel0")
    if link is not None:
        await machine.netlink.delete_link(link.index)
    applied = await network.apply(full=False)
    assert applied.repaired.get("datapath") == 1
    assert len(MADE) == 2
    assert len(MADE[1].tables[-1]) == 1
    assert network.report().datapath.restarts == 1
    await network.detach()


async def test_another_kind_of_interface_has_the_data_path_chosen_anew(machine, tmp_path):
    """A node that moves to a tunnel without Ethernet headers."""
    network = await attached(machine, tmp_path)
    assert machine.chosen_for == [Link()]
    machine.ethernet = False
    await network.rebase(replace(machine.external(), mtu=1420))
    await network.apply(full=True)
    assert machine.chosen_for == [Link(), Link(ethernet=False)]
    await network.rebase(replace(machine.external(), mtu=1400))
    await network.apply(full=True)
    assert machine.chosen_for == [Link(), Link(ethernet=False)]
    machine.ethernet = True
    await network.rebase(replace(machine.external(), mtu=65520))
    await network.apply(full=True)
    assert machine.chosen_for[2:] == [Link(long=True)]
    await network.detach()


async def test_where_one_is_slow_another_one_is_taken(machine, tmp_path, monkeypatch):
    network = await attached(machine, tmp_path)
    network.update([LeaseAdded(lease(number, "udp")) for number in (2, 3)])
    network.synced()
    await network.apply(full=True)
    monkeypatch.setattr(FakePath, "slow", "2 of 2 peers")
    await network.apply(full=True)
    assert len(MADE) == 2
    assert network.report().datapath.why == "after {'fake': '2 of 2 peers'}"
    await network.detach()


def test_a_device_of_the_name_that_is_no_tun_is_not_ours():
    assert udp.KIND.is_device("flannel0", "tun")
    assert not udp.KIND.is_device("flannel0", "vxlan")


async def test_while_another_releases_programs_carry_packets_ours_wait_for_their_table(
    machine, tmp_path, monkeypatch
):
    """After an upgrade whose peer table has another shape: ours would be empty."""
    monkeypatch.setattr(FakePath, "capabilities", Capabilities(name="fake", meanwhile=True))

    network = await attached(machine, tmp_path)
    network.update([LeaseAdded(lease(2, "udp"))])
    await network.apply(full=True)
    assert MADE == []
    network.synced()
    await network.apply(full=False)
    (path,) = MADE
    assert path.started == 1
    assert len(path.tables[0]) == 1, "before its first packet"
    await network.detach()
