"""What a sighting of our own key means, by value."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.ownership import Verdict, judge

OURS = Lease(
    key=SubnetKey(IPv4Network("10.0.1.0/24")),
    attrs=LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan"),
    store_lease=7,
    revision=5,
)
OTHER_NODE = LeaseAttrs(public_ip=IPv4Address("192.0.2.9"), backend_type="vxlan")
OTHER_DATA = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="host-gw")


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        (OURS, Verdict.OURS),
        (replace(OURS, revision=6), Verdict.TOUCHED),
        (replace(OURS, revision=6, store_lease=8), Verdict.MOVED),
        (replace(OURS, revision=6, store_lease=0), Verdict.RESERVED),
        (replace(OURS, revision=6, attrs=OTHER_DATA), Verdict.ALTERED),
        (replace(OURS, revision=6, attrs=OTHER_NODE), Verdict.TAKEN),
        (None, Verdict.GONE),
    ],
)
def test_each_case_has_its_verdict(seen, verdict):
    assert judge(OURS, seen) is verdict


def test_a_value_that_cannot_be_read_is_altered():
    assert judge(OURS, None, readable=False) is Verdict.ALTERED


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({"attrs": OTHER_NODE}, Verdict.TAKEN),
        ({"attrs": OTHER_DATA}, Verdict.ALTERED),
        ({"store_lease": 8}, Verdict.MOVED),
    ],
)
def test_the_same_revision_in_a_store_that_counts_anew_proves_nothing(change, verdict):
    assert judge(OURS, replace(OURS, **change)) is verdict
