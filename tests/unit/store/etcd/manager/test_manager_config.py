"""The network config: waited for, read, and followed."""

from __future__ import annotations

import asyncio
import shlex
from ipaddress import IPv4Network

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import (
    StoreDenied,
)
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.manager import EtcdLeaseStore
from pyflannel.store.record import LeaseRecord
from pyflannel.testing.fakeclock import FakeClock, settle
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.unit.store.etcd.manager.node import CONFIG, PREFIX


class TestConfig:
    async def test_it_waits_for_etcd_and_for_the_key_and_says_which(self, etcd, make):
        """Nothing but an answer ends the wait; each state is reported once, by name."""
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        node.store.down()
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(300)
        node.store.up()
        await etcd.clock.advance(300)
        assert not waiting.done()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(2)
        assert (await waiting).network == IPv4Network("10.0.0.0/16")
        assert len(node.reports) == 3
        assert "waiting for etcd" in node.reports[0]
        assert f"{PREFIX}/config" in node.reports[1]
        assert node.reports[2] == ""

    async def test_a_bad_config_is_waited_out(self, etcd, make):
        """Like upstream's, a wrong config does not end the daemon."""
        etcd.put(codec.config_key(PREFIX), b'{"Netwrok":"10.0.0.0/16"}')
        node = make()
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(10)
        assert not waiting.done()
        etcd.put(codec.config_key(PREFIX), CONFIG)
        await etcd.clock.advance(2)
        assert waiting.done()

    async def test_being_refused_ends_the_wait(self, etcd, make):
        """A wrong password does not get right by waiting."""
        node = make()
        node.store.fail_next("get", StoreDenied("wrong password"))
        with pytest.raises(StoreDenied):
            await node.manager.network_config()

    async def test_a_change_of_the_config_is_told(self, etcd, make):
        """Writes and the deletion of the key are yielded, other keys are not."""
        node = make()
        await node.manager.network_config()
        seen: list[bytes | None] = []

        async def watch() -> None:
            async for raw in node.manager.watch_config():
                seen.append(raw)

        task = asyncio.create_task(watch())
        await settle()
        etcd.put(codec.config_key(PREFIX) + b"-old", b"x")
        etcd.put(codec.config_key(PREFIX), b"garbage")
        etcd.delete(codec.config_key(PREFIX))
        await settle()
        assert seen == [b"garbage", None]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_prefix_that_is_no_utf8_is_waited_for_in_readable_words(tmp_path) -> None:
    """etcd's keys are bytes; `--etcd-prefix=$(printf '/\\xff')` ended with a traceback."""
    etcd = FakeEtcd(FakeClock())
    said: list[str] = []
    store = EtcdLeaseStore(
        FakeStore(etcd),
        "/\udcff",
        kinds=KINDS,
        clock=etcd.clock,
        record=LeaseRecord(str(tmp_path), "/\udcff"),
        previous=None,
        tell=said.append,
    )
    waiting = asyncio.create_task(store.network_config())
    await settle()
    assert "/\\xff/config" in said[-1]
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_the_remedy_for_a_missing_config_writes_it_where_it_is_read(
    etcd, make, caplog
) -> None:
    """Pasted without the endpoints it wrote into another etcd."""
    with caplog.at_level("WARNING"):
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        waiting = asyncio.create_task(node.manager.network_config())
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        endpoints = node.store.describe().replace(", ", ",")
        fields = caplog.records[-1].pyflannel_fields
        assert f"--etcd-endpoints={endpoints}" in shlex.split(fields["remedy"])
        assert f"--etcd-prefix={PREFIX}" in shlex.split(fields["remedy"])


@pytest.mark.parametrize(("held", "told"), [(None, False), (set(), False), ({"config"}, True)])
async def test_a_config_in_the_store_of_the_v2_api_is_told_with_the_way_to_copy_it(
    etcd, make, caplog, held, told
) -> None:
    with caplog.at_level("WARNING"):
        etcd.delete(codec.config_key(PREFIX))
        node = make()
        node.store.v2 = held and {codec.config_key(PREFIX)}
        waiting = asyncio.create_task(node.manager.network_config())
        await etcd.clock.advance(30)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert node.store.calls.count("holds_v2") == 1, "once for each line in the log"
        fields = caplog.records[-1].pyflannel_fields
        assert (fields["v2"] is not None) is told
        assert (f"get {PREFIX}/config | pyflannel config set -" in fields["remedy"]) is told
