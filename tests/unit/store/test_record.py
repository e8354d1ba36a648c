"""What a node remembers of its own lease over a restart. With any content a start goes on."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.ownleases import Former
from pyflannel.core.traces import LEASE_RECORD, is_record
from pyflannel.kernel import files
from pyflannel.store.record import FILE_NAME, LeaseRecord, Remembered

ATTRS = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), public_ipv6=IPv6Address("2001:db8::1"))
LEASE = Lease(key=SubnetKey(IPv4Network("10.0.1.0/24")), attrs=ATTRS, store_lease=(1 << 62) + 1)


def test_what_was_saved_is_loaded_with_the_addresses_it_was_published_with(tmp_path):
    LeaseRecord(str(tmp_path), "/net").save(LEASE)
    loaded = LeaseRecord(str(tmp_path), "/net").load()
    assert loaded == Remembered(
        former=Former(
            key=LEASE.key,
            store_lease=LEASE.store_lease,
            public=frozenset({ATTRS.public_ip, ATTRS.public_ipv6}),
        ),
        public=(ATTRS.public_ip, ATTRS.public_ipv6),
    )


def test_what_is_about_to_be_written_is_noted_beside_what_is_there(tmp_path):
    record = LeaseRecord(str(tmp_path), "/net")
    record.save(LEASE, cluster=7)
    had = record.load()
    intended = replace(LEASE, key=SubnetKey(IPv4Network("10.0.2.0/24")), store_lease=9)
    record.intend(intended)
    loaded = LeaseRecord(str(tmp_path), "/net").load()
    assert loaded == replace(
        had,
        intended=Former(key=intended.key, store_lease=9, public=had.former.public),
    )
    record.save(intended)
    assert LeaseRecord(str(tmp_path), "/net").load().intended is None


def test_at_a_first_start_there_is_only_what_is_about_to_be_written(tmp_path):
    LeaseRecord(str(tmp_path), "/net").intend(LEASE)
    loaded = LeaseRecord(str(tmp_path), "/net").load()
    assert loaded.former is None
    assert is_record((tmp_path / FILE_NAME).read_text(), LEASE_RECORD)
    assert (loaded.intended.key, loaded.intended.store_lease) == (LEASE.key, LEASE.store_lease)


def test_what_another_prefix_had_is_not_kept_beside_it(tmp_path):
    LeaseRecord(str(tmp_path), "/other").save(LEASE)
    LeaseRecord(str(tmp_path), "/net").intend(LEASE)
    assert LeaseRecord(str(tmp_path), "/other").load() is None
    assert LeaseRecord(str(tmp_path), "/net").load().former is None


def test_a_file_without_addresses_is_still_good(tmp_path):
    entry = {"subnet": "10.0.7.0-24", "etcd_lease": 7, "prefix": "/net"}
    (tmp_path / FILE_NAME).write_text(json.dumps(entry))
    loaded = LeaseRecord(str(tmp_path), "/net").load()
    assert (str(loaded.former.key), loaded.former.store_lease) == ("10.0.7.0-24", 7)
    assert loaded.public == ()


def test_the_cluster_is_remembered_and_a_record_of_before_has_none(tmp_path):
    LeaseRecord(str(tmp_path), "/net").save(LEASE, cluster=(1 << 64) - 1)
    assert LeaseRecord(str(tmp_path), "/net").load().cluster == (1 << 64) - 1
    old = '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":"/net"}'
    (tmp_path / FILE_NAME).write_text(old)
    assert LeaseRecord(str(tmp_path), "/net").load().cluster == 0


def test_another_prefix_is_another_lease(tmp_path):
    LeaseRecord(str(tmp_path), "/net").save(LEASE)
    assert LeaseRecord(str(tmp_path), "/other").load() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        "7",
        "null",
        "{}",
        '{"subnet":"10.0.1.0-24","etcd_lease":1e999,"prefix":"/net"}',
        '{"subnet":"10.0.1.0-24","etcd_lease":-1,"prefix":"/net"}',
        '{"subnet":"10.0.1.0-24","etcd_lease":99999999999999999999999,"prefix":"/net"}',
        '{"subnet":"10.0.1.0-24","etcd_lease":"7","prefix":"/net"}',
        '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":["/net"]}',
        '{"subnet":"10.0.1.7","etcd_lease":7,"prefix":"/net"}',
        '{"subnet":{},"etcd_lease":7,"prefix":"/net"}',
        '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":"/net","public":["nonsense"]}',
        '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":"/net","public":[7]}',
        '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":"/net","public":7}',
        '{"subnet":"10.0.1.0-24","etcd_lease":7,"prefix":"/net","intended":7}',
        '{"intended":{"subnet":"10.0.1.0-24"},"prefix":"/net"}',
        "x" * (2 << 20),
        "\0",
    ],
    ids=lambda text: text[:40] or "empty",
)
def test_damage_is_a_warning_and_nothing_else(tmp_path, caplog, text):
    (tmp_path / FILE_NAME).write_text(text)
    assert LeaseRecord(str(tmp_path), "/net").load() is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(("uid", "mode"), [(65534, 0o600), (-1, 0o666), (-1, 0o620)])
def test_what_others_may_have_written_is_not_believed(tmp_path, caplog, monkeypatch, uid, mode):
    record = LeaseRecord(str(tmp_path), "/net")
    record.save(LEASE)
    assert record.load() is not None
    (tmp_path / FILE_NAME).chmod(mode)
    if uid >= 0:
        real = os.fstat

        def fstat(descriptor):
            found = list(real(descriptor))
            found[4] = uid
            return os.stat_result(found)

        monkeypatch.setattr(files.os, "fstat", fstat)
    assert record.load() is None
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_fifo_or_a_directory_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / FILE_NAME)
    assert LeaseRecord(str(tmp_path), "/net").load() is None
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    assert LeaseRecord(str(tmp_path), "/net").load() is None


def test_what_could_not_be_written_is_written_once_there_is_room(tmp_path, caplog):
    """A file in the directory's place stands for a disk that takes nothing."""
    state = tmp_path / "state"
    state.write_text("in the way")
    record = LeaseRecord(str(state), "/net")
    for _ in range(3):
        record.save(LEASE)
        record.save_again()
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    state.unlink()
    record.save_again()
    assert LeaseRecord(str(state), "/net").load() is not None
    before = (state / FILE_NAME).stat().st_mtime_ns
    record.save_again()
    assert (state / FILE_NAME).stat().st_mtime_ns == before
