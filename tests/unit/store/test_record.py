"""What a node remembers of its own lease over a restart."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address

from pyflannel.core.ip import parse_subnet_key
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.store.record import FILE_NAME, LeaseRecord

PREFIX = "/coreos.com/network"
KEY = parse_subnet_key("10.0.7.0-24")
ATTRS = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), public_ipv6=IPv6Address("2001:db8::1"))


def test_what_was_saved_is_loaded_with_the_addresses_it_was_published_with(tmp_path):
    record = LeaseRecord(str(tmp_path), PREFIX)
    record.save(Lease(key=KEY, attrs=ATTRS, store_lease=7))
    loaded = record.load()
    assert (loaded.key, loaded.store_lease) == (KEY, 7)
    assert loaded.public == (ATTRS.public_ip, ATTRS.public_ipv6)
    assert loaded.former.public == {ATTRS.public_ip, ATTRS.public_ipv6}
    assert LeaseRecord(str(tmp_path), "/other").load() is None


def test_a_file_without_addresses_is_still_good(tmp_path):
    entry = {"subnet": "10.0.7.0-24", "etcd_lease": 7, "prefix": PREFIX}
    (tmp_path / FILE_NAME).write_text(json.dumps(entry))
    loaded = LeaseRecord(str(tmp_path), PREFIX).load()
    assert (loaded.key, loaded.store_lease, loaded.public) == (KEY, 7, ())


def test_an_address_that_is_none_makes_the_file_damaged(tmp_path):
    entry = {"subnet": "10.0.7.0-24", "etcd_lease": 7, "prefix": PREFIX, "public": ["nonsense"]}
    (tmp_path / FILE_NAME).write_text(json.dumps(entry))
    assert LeaseRecord(str(tmp_path), PREFIX).load() is None
