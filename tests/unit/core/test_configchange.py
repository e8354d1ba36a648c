"""What another network config changes, for the keys, the leases and the nodes."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.configchange import MOST_NAMED, Change, changes, consequences, unfit
from pyflannel.core.configparse import load_network_config
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs


def config(text):
    return load_network_config(text, KINDS)


IPV6_ONLY = (
    '{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00::/48", '
    '"Backend": {"Type": "vxlan"}}'
)
UDP = config('{"Network": "10.5.0.0/16"}')


def lease(text, owner="192.0.2.1"):
    key = SubnetKey(v4=IPv4Network(text))
    return Lease(key=key, attrs=LeaseAttrs(public_ip=IPv4Address(owner)))


def test_the_same_meaning_is_no_change():
    spelt_out = config('{"Network": "10.5.0.0/16", "SubnetLen": 24, "Backend": {"Type": "udp"}}')
    assert changes(UDP, spelt_out) == ()
    assert consequences(UDP, spelt_out, [lease("10.5.7.0/24")]) == ["all 1 leases fit"]


def test_every_key_that_differs_is_named_with_both_values():
    vxlan = config('{"Network": "10.5.0.0/17", "Backend": {"Type": "vxlan", "VNI": 7}}')
    found = {change.key: change for change in changes(UDP, vxlan)}
    assert found["Network"] == Change("Network", "10.5.0.0/16", "10.5.0.0/17")
    assert found["Backend.Type"] == Change("Backend.Type", "udp", "vxlan")
    assert found["Backend.VNI"] == Change("Backend.VNI", None, 7)
    assert "EnableIPv4" not in found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"Network": "10.5.0.0/16"}', []),
        ('{"Network": "10.0.0.0/8"}', []),
        ('{"Network": "10.5.0.0/16", "SubnetLen": 25}', ["10.5.7.0/24", "10.5.200.0/24"]),
        ('{"Network": "10.5.0.0/16", "SubnetMax": "10.5.9.0"}', ["10.5.200.0/24"]),
        ('{"Network": "10.9.0.0/16"}', ["10.5.7.0/24", "10.5.200.0/24"]),
        (
            IPV6_ONLY,
            ["10.5.7.0/24", "10.5.200.0/24"],
        ),
    ],
)
def test_leases_that_do_not_fit(text, wanted):
    leases = [lease("10.5.200.0/24"), lease("10.5.7.0/24")]
    assert [each.key.describe() for each in unfit(leases, config(text))] == wanted


def test_who_has_a_lease_that_does_not_fit_is_said_up_to_a_number():
    leases = [lease(f"10.5.{k}.0/24", f"192.0.2.{k}") for k in range(1, MOST_NAMED + 4)]
    said = consequences(UDP, config('{"Network": "10.9.0.0/16"}'), leases)
    assert said[0].startswith(f"{len(leases)} of {len(leases)} leases do not fit")
    assert said[1] == "  10.5.1.0/24 of 192.0.2.1"
    assert said[1 + MOST_NAMED] == "  and 3 more"


@pytest.mark.parametrize(
    ("text", "restart", "cut"),
    [
        ('{"Network": "10.5.0.0/16", "SubnetMin": "10.5.8.0"}', False, False),
        ('{"Network": "10.5.0.0/16", "EnableNFTables": true}', True, False),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}', True, True),
        ('{"Network": "10.4.0.0/15"}', True, False),
        ('{"Network": "10.5.0.0/17"}', True, False),
        ('{"Network": "10.6.0.0/16"}', True, True),
        (IPV6_ONLY, True, True),
        ('{"Network": "10.5.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}', True, True),
    ],
)
def test_what_the_nodes_do(text, restart, cut):
    said = "\n".join(consequences(UDP, config(text), []))
    assert ("until they are restarted" in said) == restart
    assert ("cut off" in said) == cut


@pytest.mark.parametrize("network", ["10.4.0.0/15", "10.5.0.0/17"])
def test_where_one_network_contains_the_other_the_smaller_one_is_the_limit(network):
    said = "\n".join(consequences(UDP, config(f'{{"Network": "{network}"}}'), []))
    assert "smaller network do not reach" in said


def test_a_config_with_errors_stops_who_starts():
    (said,) = consequences(UDP, None, [lease("10.5.7.0/24")])
    assert "78" in said
