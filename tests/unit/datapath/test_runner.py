"""Which data path a node has: chosen, started, completed, passed over, stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.errors import DatapathError
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath import runner, select
from pyflannel.datapath.base import Capabilities, DatapathConfig, Link
from pyflannel.datapath.runner import Runner
from tests.support.datapaths import CONFIG

TABLE = PeerTable([Peer(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.2"))])


class Path:
    """Writes down what is asked of it."""

    capabilities = Capabilities(name="ebpf", devices=("flannelgro0",))

    def __init__(self, done: list[str], refuses: str) -> None:
        self.done = done
        self.refuses = refuses
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()

    def prepare(self) -> None:
        self.done.append("prepare")
        self.begun.set()
        self.may_go_on.wait(10)

    def start(self) -> None:
        if self.refuses:
            raise DatapathError(self.refuses)
        self.done.append("start")

    def complete(self) -> None:
        self.done.append("complete")

    def replace_table(self, table: PeerTable) -> None:
        self.done.append(f"table of {len(table)}")

    def repair(self) -> Sequence[str]:
        return ["pin peers"]

    def slowed(self) -> str:
        return "its slow path has most"

    def failure(self) -> str | None:
        return None

    def stop(self) -> None:
        self.done.append("stop")


class Factory:
    def __init__(self, done: list[str], name: str, refuses: str = "") -> None:
        self.capabilities = Capabilities(name=name)
        self._done, self._refuses = done, refuses
        self.slow: Path | None = None
        """The next one, if its preparation is to last."""

    def __call__(self, _config: DatapathConfig) -> Path:
        return self.slow or Path(self._done, self._refuses)


@pytest.fixture
def done(monkeypatch):
    """What was asked of the data paths: `ebpf` refuses to start, `python` starts."""
    asked: list[str] = []

    def create(kind, *, failed, link):
        del kind, link
        if "ebpf" in failed:
            return select.Choice(Factory(asked, "python"), f"not ebpf: {failed['ebpf']}")
        return select.Choice(Factory(asked, "ebpf", refuses="the verifier says no"), "fastest")

    monkeypatch.setattr(runner.select, "create", create)
    return asked


async def test_one_that_cannot_start_is_passed_over_with_its_reason(done):
    path = Runner(select.AUTO)
    assert path.choose(Link()).name == "ebpf"
    with pytest.raises(DatapathError, match="verifier") as refused:
        await path.start(CONFIG, None)
    assert done == ["prepare", "stop"]
    assert not path.running
    assert path.pass_over(refused.value)
    assert path.choose(Link()).name == "python"
    assert "the verifier says no" in path.why
    await path.start(CONFIG, TABLE)
    assert done[2:] == ["table of 1", "prepare", "start", "table of 1"]
    assert path.restarts == 0
    path.stop()


@pytest.mark.parametrize(
    ("wanted", "following", "leaves"),
    [
        (select.AUTO, "native", True),
        pytest.param(select.AUTO, "python", False, id="python is its slow path"),
        pytest.param("ebpf", "native", False, id="asked for"),
    ],
)
async def test_one_that_is_slow_here_is_left_for_a_better_one(
    monkeypatch, wanted, following, leaves
):
    def create(kind, *, failed, link):
        del kind, link
        name = following if "ebpf" in failed else "ebpf"
        return select.Choice(Factory([], name), str(dict(failed)))

    monkeypatch.setattr(runner.select, "create", create)
    path = Runner(wanted)
    assert not path.leave_slow(), "none runs"
    path.choose(Link())
    await path.start(CONFIG, TABLE)
    assert path.leave_slow() is leaves
    path.stop()
    assert path.choose(Link()).name == (following if leaves else "ebpf")
    assert ("its slow path has most" in path.why) is leaves


@pytest.mark.parametrize("wanted", ["ebpf", "python"])
async def test_one_that_was_asked_for_is_not_passed_over(done, wanted):
    path = Runner(wanted)
    path.choose(Link())
    assert not path.pass_over(DatapathError("no"))


async def test_each_start_is_completed_once(done):
    path = Runner(select.AUTO)
    await path.complete()
    assert done == []
    path.choose(Link())
    path.pass_over(DatapathError("no"))
    path.choose(Link())
    for starts in (1, 2):
        await path.start(CONFIG, TABLE)
        for _ in range(2):
            await path.complete()
        assert done.count("complete") == starts
        path.stop()
    assert path.restarts == 1


async def test_what_does_not_run_is_asked_nothing(done):
    path = Runner(select.AUTO)
    path.replace_table(TABLE)
    path.stop()
    assert (path.failure(), path.name, path.why) == (None, None, "")
    assert (path.repair(), path.offloads(), path.counters()) == ((), {}, {})
    assert path.peer_counters(IPv4Address("192.0.2.2")) is None
    assert not path.minds("flannelgro0")
    path.choose(Link())
    path.pass_over(DatapathError("no"))
    path.choose(Link())
    await path.start(CONFIG, None)
    assert [path.minds(name) for name in ("flannelgro0", "", "eth0")] == [True, True, False]
    path.stop()
    path.stop()
    assert done == ["prepare", "start", "stop"]


async def test_one_that_is_being_started_is_named(monkeypatch):
    factory = Factory([], "ebpf")
    factory.slow = slow = Path([], "")
    slow.may_go_on.clear()
    monkeypatch.setattr(runner.select, "create", lambda *_, **__: select.Choice(factory, "fastest"))
    path = Runner(select.AUTO)
    path.choose(Link())
    assert path.name is None
    start = asyncio.create_task(path.start(CONFIG, None))
    while not slow.begun.is_set():
        await asyncio.sleep(0.001)
    assert (path.running, path.name) == (False, "ebpf")
    slow.may_go_on.set()
    await start
    assert (path.running, path.name) == (True, "ebpf")
    path.stop()
    assert path.name is None
