"""What tests of commands share."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from pyflannel.cli import leases
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> FakeEtcd:
    """What the command reads."""
    etcd = FakeEtcd()

    def with_store(_options, work):
        return asyncio.run(work(FakeStore(etcd)))

    monkeypatch.setattr(leases, "with_store", with_store)
    here = frozenset({ip_address("192.0.2.1"), ip_address("127.0.0.1")})
    monkeypatch.setattr(leases, "local_addresses", lambda: here)
    return etcd
