"""The composition root, over kernel, etcd and firewall in memory: built, ready, taken down."""

from __future__ import annotations

import asyncio
import json

import pytest

from pyflannel import daemon
from pyflannel.aio.clock import SystemClock
from pyflannel.aio.tasks import first_cause
from pyflannel.backend.kinds import KINDS
from pyflannel.cli.status import ask
from pyflannel.core.errors import ConfigError, DeviceUnavailable
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel.lock import SingleInstance
from pyflannel.node import claims
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.support.node import CONFIG, PREFIX, FakeFirewall, WholeNode


@pytest.fixture
def options(tmp_path, monkeypatch):
    """Paths below a directory of our own, and fakes where the daemon would touch the machine."""
    etcd = FakeEtcd()
    etcd.put(codec.config_key(PREFIX), CONFIG)
    machine = WholeNode(tmp_path, etcd=etcd)

    def store(options, kinds, previous, clock, tell, obstacles):
        del options, clock
        record = LeaseRecord(str(tmp_path), PREFIX)
        return EtcdLeaseStore(
            FakeStore(etcd),
            PREFIX,
            kinds=KINDS,
            clock=SystemClock(),
            record=record,
            previous=previous,
            obstacles=obstacles,
            tell=tell,
        )

    monkeypatch.setattr(daemon, "open_store", store)
    monkeypatch.setattr(daemon, "KernelNetlink", lambda: machine.netlink)
    monkeypatch.setattr(claims, "upstream_daemons", list)
    fakes = (FakeFirewall(), FakeFirewall())
    monkeypatch.setattr(daemon.select, "managers", lambda *_: fakes)
    monkeypatch.setattr(daemon.ndisc, "tell_neighbours", lambda _: None)
    return DaemonOptions(
        subnet_file=str(tmp_path / "run" / "subnet.env"),
        docker_opts_file=str(tmp_path / "docker_opts.env"),
        status_socket=str(tmp_path / "s.sock"),
        state_dir=str(tmp_path),
    )


async def until(probe) -> None:
    async with asyncio.timeout(10):
        while not await asyncio.to_thread(probe):
            await asyncio.sleep(0.01)


async def test_it_comes_up_answers_and_leaves_nothing_running(options, tmp_path):
    task = asyncio.create_task(daemon._run(options))
    try:
        await until((tmp_path / "run" / "subnet.env").exists)
        await until((tmp_path / "s.sock").exists)
        shown = await asyncio.to_thread(ask, options.status_socket)
        assert shown["ready"] is True
        assert shown["problems"] == []
        assert json.dumps(shown)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not (tmp_path / "s.sock").exists()
    assert (tmp_path / "run" / "subnet.env").exists(), "containers outlive the daemon"
    with SingleInstance(options.subnet_file):
        pass  # the lock is free again


def test_a_second_daemon_for_the_same_files_is_refused(options):
    with (
        SingleInstance(options.subnet_file),
        pytest.raises(DeviceUnavailable, match=r"subnet\.env"),
    ):
        asyncio.run(daemon._run(options))


def test_the_first_cause_of_a_group_of_failures_is_what_is_told():
    first = ConfigError("the cause")
    group = BaseExceptionGroup("tasks", [ExceptionGroup("inner", [first, ValueError()])])
    assert first_cause(group) is first
