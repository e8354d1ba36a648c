"""What tests of commands share."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.cli import leases
from pyflannel.testing.fakestore import FakeEtcd, FakeStore


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> FakeEtcd:
    """What the command reads."""
    etcd = FakeEtcd()

    def with_store(_options, work):
        return asyncio.run(work(FakeStore(etcd)))

    monkeypatch.setattr(leases, "with_store", with_store)
    return etcd
