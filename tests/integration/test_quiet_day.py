"""A day without faults: nothing is said above information, nothing is wrong, nothing grows."""

from __future__ import annotations

import gc
import logging
import os
from pathlib import Path

import pytest

from pyflannel.report.problems import problems
from pyflannel.store.etcd import codec
from tests.support.node import PREFIX, WholeNode, whole_node
from tests.support.overlay import key

HOUR_S = 3600.0
HOURS = 26
"""More than a lease lasts, so that ours is renewed on the way."""
WARM = 4
PEERS = range(50, 70)
MIB_AN_HOUR = 1.0


def resident_mib() -> float:
    """What this process has in memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def hour(node: WholeNode, number: int) -> None:
    """One peer goes and is back, one has another address; all renew their leases."""
    node.etcd.delete(codec.lease_key(PREFIX, key(PEERS[number % len(PEERS)])))
    await node.advance(HOUR_S / 2)
    for peer in PEERS:
        moved = peer == PEERS[(number + 7) % len(PEERS)]
        node.put_peer(peer, f"192.0.2.{peer + 100}" if moved else "")
    await node.advance(HOUR_S / 2)
    node.echoes.sent.clear()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("probe_interval_s", [0.0, 10.0], ids=["without probes", "with probes"])
async def test_a_quiet_day(tmp_path, caplog, probe_interval_s):
    caplog.set_level(logging.INFO)
    async with whole_node(tmp_path, probe_interval_s=probe_interval_s) as node:
        for peer in PEERS:
            node.put_peer(peer)
        warm = 0.0
        for number in range(HOURS):
            if number == WARM:
                warm = resident_mib()
            await hour(node, number)
            assert problems(node.report()) == ()
            assert len(await node.routes()) == len(PEERS)
        assert node.manager.told == ["READY"]
        lease_report = node.report().lease
        assert lease_report is not None
        assert lease_report.held
        grown = (resident_mib() - warm) / (HOURS - WARM)
    loud = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert loud == []
    assert grown <= MIB_AN_HOUR
