"""This node's lease over a fake etcd: won in upstream's order, kept, lost, and won again."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.store.etcd import codec
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from tests.unit.store.etcd.manager.node import CONFIG, PREFIX, Node


@pytest.fixture
def etcd():
    """One that holds the config."""
    etcd = FakeEtcd(FakeClock())
    etcd.put(codec.config_key(PREFIX), CONFIG)
    return etcd


@pytest.fixture
@asynccontextmanager
async def make(etcd, tmp_path):
    """Makes nodes of this etcd; they are stopped at the end."""
    nodes: list[Node] = []

    def node(state: str = "a", previous: SubnetKey | None = None, ttl: int = 0) -> Node:
        nodes.append(Node(etcd, str(tmp_path / state), previous, ttl))
        return nodes[-1]

    try:
        yield node
    finally:
        for node_made in nodes:
            await node_made.stop()
