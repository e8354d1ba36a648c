"""A file as the store: it is followed, and a broken one changes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import SubnetsOverlap
from pyflannel.core.lease import LeaseAttrs, Snapshot
from pyflannel.core.overlap import Judge, Obstacles, Surroundings
from pyflannel.store.base import no_obstacles
from pyflannel.store.static import LOOK_S, StaticLeaseStore
from pyflannel.testing.fakeclock import FakeClock
from tests.unit.core.test_staticnet import CONFIG, node

HERE = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"))
SECOND = 1.0


class Follower:
    """A store over a file, and what it has told."""

    def __init__(self, directory, name: str = "", obstacles=no_obstacles) -> None:
        self.path = directory / "network.json"
        self.clock = FakeClock()
        self.told: list[str] = []
        self.store = StaticLeaseStore(
            str(self.path),
            node_name=name,
            kinds=KINDS,
            clock=self.clock,
            obstacles=obstacles,
            tell=self.told.append,
        )
        self.seen: list[list[str]] = []
        self.moves: list[str] = []
        self.configs: list[bytes | None] = []
        self.tasks: list[asyncio.Task[None]] = []

    def write(self, *nodes: dict[str, object], config: object = None) -> None:
        """Renamed over, as those do who distribute files."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"Config": config or CONFIG, "Nodes": list(nodes)}))
        fresh.rename(self.path)

    async def start(self) -> None:
        await self.store.network_config()
        await self.store.acquire(HERE)
        for work in (self._leases(), self._keep(), self._config()):
            self.tasks.append(asyncio.create_task(work))
        await self.clock.advance(0)

    async def _leases(self) -> None:
        async for update in self.store.watch_leases():
            assert isinstance(update, Snapshot)
            self.seen.append([str(lease.key.v4) for lease in update.leases])

    async def _keep(self) -> None:
        async for lease in self.store.keep():
            self.moves.append(str(lease.key.v4))

    async def _config(self) -> None:
        async for text in self.store.watch_config():
            self.configs.append(text)

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.store.close()
        await self.store.close()


@asynccontextmanager
async def following(
    directory: Path, *, name: str = "", first: bool = True
) -> AsyncIterator[Follower]:
    follower = Follower(directory, name)
    try:
        if first:
            follower.write(node(1), node(2))
            await follower.start()
        yield follower
    finally:
        await follower.stop()


@pytest.fixture
def follower(tmp_path):
    return following(tmp_path)


async def test_peers_that_come_go_and_change_are_followed_within_a_second(follower: Follower):
    assert follower.seen == [["10.244.1.0/24", "10.244.2.0/24"]]
    follower.write(node(1), node(3))
    await follower.clock.advance(SECOND)
    assert follower.seen[-1] == ["10.244.1.0/24", "10.244.3.0/24"]
    assert follower.moves == []


async def test_a_file_written_in_place_is_followed(follower: Follower):
    text = json.dumps({"Config": CONFIG, "Nodes": [node(1), node(4)]})
    follower.path.write_text(text)
    await follower.clock.advance(SECOND)
    assert follower.seen[-1] == ["10.244.1.0/24", "10.244.4.0/24"]


async def test_a_symbolic_link_that_is_swapped_is_followed(tmp_path):
    """As ConfigMaps do it: the file is behind a link in a directory that is a link itself."""
    for name, peer in (("..1", 2), ("..2", 5)):
        (tmp_path / name).mkdir()
        text = json.dumps({"Config": CONFIG, "Nodes": [node(1), node(peer)]})
        (tmp_path / name / "network.json").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    follower = Follower(tmp_path)
    follower.path.symlink_to("..data/network.json")
    await follower.start()
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    await follower.clock.advance(SECOND)
    assert follower.seen[-1] == ["10.244.1.0/24", "10.244.5.0/24"]
    await follower.stop()


@pytest.mark.parametrize("text", ["{", "", None, '{"Config": {"Network": "x"}, "Nodes": []}'])
async def test_a_broken_file_changes_nothing_and_is_named(follower, text):
    before = follower.store.report()
    assert before.connected is True
    if text is None:
        follower.path.unlink()
    else:
        follower.path.write_text(text)
    await follower.clock.advance(SECOND)
    report = follower.store.report()
    assert report.connected is False
    assert report.reason
    assert report.since > before.since
    assert len(follower.seen) == 1
    assert follower.configs == []
    assert follower.store.standing().held is True
    follower.write(node(1), node(2))
    await follower.clock.advance(SECOND)
    assert follower.store.report().connected is True
    assert len(follower.seen) == 1, "it says the same as before"


async def test_a_file_that_is_being_written_is_not_called_broken(follower: Follower):
    """Torn at one look, whole at the next."""
    text = json.dumps({"Config": CONFIG, "Nodes": [node(1), node(6)]})
    follower.path.write_text(text[:40])
    await follower.clock.advance(LOOK_S)
    assert follower.store.report().connected is True
    follower.path.write_text(text)
    await follower.clock.advance(SECOND)
    assert follower.seen[-1] == ["10.244.1.0/24", "10.244.6.0/24"]


async def test_another_subnet_for_this_node_is_told_to_the_agent(follower: Follower):
    follower.write(node(1, Subnet="10.244.9.0/24"), node(2))
    await follower.clock.advance(SECOND)
    assert follower.moves == ["10.244.9.0/24"]
    assert str(follower.store.lease.key.v4) == "10.244.9.0/24"


async def test_a_node_that_is_no_longer_named_keeps_its_subnet_and_says_so(follower: Follower):
    follower.write(node(2))
    await follower.clock.advance(SECOND)
    standing = follower.store.standing()
    assert standing.held is False
    assert "192.0.2.1" in standing.reason
    assert str(follower.store.lease.key.v4) == "10.244.1.0/24"
    follower.write(node(1), node(2))
    await follower.clock.advance(SECOND)
    assert follower.store.standing().held is True


async def test_another_address_than_the_file_says_is_told(tmp_path):
    async with following(tmp_path, name="n1") as follower:
        moved = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"))
        await follower.store.publish(moved)
        assert "192.0.2.77" in follower.store.standing().reason


async def test_a_changed_config_is_told_once(follower: Follower):
    follower.write(node(1), config=CONFIG | {"Backend": {"Type": "host-gw"}})
    await follower.clock.advance(SECOND)
    assert [json.loads(text)["Backend"]["Type"] for text in follower.configs] == ["host-gw"]


async def test_a_node_waits_for_the_file_and_for_its_entry_and_says_for_what(tmp_path):
    async with following(tmp_path, first=False) as follower:
        starting = asyncio.create_task(follower.start())
        await follower.clock.advance(SECOND)
        assert "is not there" in follower.told[-1]
        follower.write(node(2))
        await follower.clock.advance(SECOND)
        assert "no node in it has our address 192.0.2.1" in follower.told[-1]
        follower.write(node(1), node(2))
        await follower.clock.advance(SECOND)
        assert starting.done()
        assert follower.told[-1] == ""


async def test_by_name_the_interface_is_chosen_by_the_address_in_the_file(tmp_path):
    async with following(tmp_path, name="n1") as follower:
        assert follower.store.published() == [IPv4Address("192.0.2.1")]


async def test_a_subnet_that_takes_something_away_from_the_node_ends_the_start(tmp_path):
    """There is no other one to be taken."""
    lan = Judge(Surroundings(connected={IPv4Network("10.244.1.0/25"): "10.244.1.7/25 of eth1"}))

    async def look(networks, store, public) -> Obstacles:
        assert networks == (IPv4Network("10.244.0.0/16"),)
        assert list(public) == [IPv4Address("192.0.2.1")]
        return Obstacles(new=lan, kept=lan)

    follower = Follower(tmp_path, obstacles=look)
    follower.write(node(1), node(2))
    with pytest.raises(SubnetsOverlap, match=r"10\.244\.1\.7/25 of eth1; give it another"):
        await follower.start()
    await follower.stop()
