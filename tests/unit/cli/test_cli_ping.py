"""`pyflannel ping`: whom a word means, and what is asked of them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pyflannel.cli import ping
from pyflannel.core.errors import UsageError
from pyflannel.report.model import (
    ConfigReport,
    DeviceReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
)

REPORT = NodeReport(
    lease=LeaseReport(subnet="10.5.1.0/24", public_ip="192.0.2.1"),
    network=NetworkReport(
        backend="vxlan",
        mtu=1450,
        devices={"flannel.1": DeviceReport(mtu=1450), "flannel-v6.1": DeviceReport(mtu=1430)},
    ),
    peers=[
        PeerReport(
            subnet="10.5.7.0/24",
            ipv6_subnet="fd00:5:0:7::/64",
            public_ip="192.0.2.7",
            public_ipv6="2001:db8::7",
            host="node7",
        ),
        PeerReport(subnet="10.5.8.0/24", public_ip="192.0.2.8"),
    ],
)


@pytest.mark.parametrize("word", ["10.5.7.0/24", "192.0.2.7", "node7", "10.5.7.0", "10.5.7.1"])
def test_a_peer_by_any_of_its_names(word):
    found = ping.find(REPORT, word)
    assert (found.pod, str(found.overlay), str(found.bridge)) == (None, "10.5.7.0", "10.5.7.1")
    assert str(found.public) == "192.0.2.7"


def test_a_pod_by_its_address_in_either_family():
    assert ping.find(REPORT, "10.5.8.33").pod == ip_address("10.5.8.33")
    six = ping.find(REPORT, "fd00:5:0:7::33")
    assert (str(six.pod), str(six.public)) == ("fd00:5:0:7::33", "2001:db8::7")


def test_ipv6_of_a_peer_with_both_if_that_is_asked_for():
    assert str(ping.find(REPORT, "node7", six=True).overlay) == "fd00:5:0:7::"
    assert str(ping.find(REPORT, "fd00:5:0:7::/64").overlay) == "fd00:5:0:7::"
    assert str(ping.find(REPORT, "192.0.2.8", six=True).overlay) == "10.5.8.0"


@pytest.mark.parametrize(
    ("word", "hint"), [("192.0.2.1", "it is this node"), ("10.9.9.9", "10.5.7.0/24"), ("x", "no")]
)
def test_who_is_no_peer_is_said_with_what_is_known(word, hint):
    with pytest.raises(ping.NoSuchPeer, match=hint) as caught:
        ping.find(REPORT, word)
    assert caught.value.exit_code == 3


def test_the_large_packet_is_the_tunnels_of_its_family():
    assert ping.mtu(REPORT, ip_address("10.5.7.0")) == 1450
    assert ping.mtu(REPORT, ip_address("fd00:5:0:7::")) == 1430


@pytest.mark.parametrize(
    ("backend", "config", "words"),
    [
        ("vxlan", {}, "UDP port 8472"),
        ("vxlan", {"Backend": {"Port": 4789}}, "UDP port 4789"),
        ("ipip", {}, "IP protocol 4"),
        ("host-gw", {}, ""),
    ],
)
def test_what_carries_the_overlay_has_a_name(backend, config, words):
    report = NodeReport(
        network=NetworkReport(backend=backend), config=ConfigReport(effective=config)
    )
    assert ping.carrier(report) == words


@pytest.mark.parametrize(
    "words", [["--size", "20"], ["--size", "70000"], ["--count", "0"], ["--port", "65536"]]
)
def test_numbers_that_make_no_sense_are_refused(words):
    with pytest.raises(UsageError):
        ping.main(["10.5.7.0/24", *words])
