"""The records of peers: made at once, or first without what the data path counted."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.datapath.base import PEER_COUNTERS
from pyflannel.node.reports import key_of, peer_report, with_counts
from pyflannel.report.model import NetworkReport

V4, V6 = IPv4Network("10.5.7.0/24"), IPv6Network("fd00:5:7::/64")
KEYS = [SubnetKey(v4=V4), SubnetKey(v4=V4, v6=V6), SubnetKey(v4=None, v6=V6)]
COUNTS = {name: number for number, name in enumerate(PEER_COUNTERS, 1)}


@pytest.mark.parametrize("key", KEYS, ids=SubnetKey.describe)
def test_counts_that_come_later_make_the_same_record(key):
    lease = Lease(key=key, attrs=LeaseAttrs(public_ip=None), expires=1e9)
    at_once = peer_report(lease, "udp", NetworkReport(), counted=COUNTS)
    before = peer_report(lease, "udp", NetworkReport())
    assert before.bytes_in is None
    assert with_counts(before, COUNTS) == at_once
    assert with_counts(before, None) == before
    assert key_of(before) == key
