"""A node by the text of its `/metrics`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyflannel.api.metrics import render
from pyflannel.report.metrics import MOST_PEERS
from pyflannel.report.model import (
    ConfigReport,
    LeaseReport,
    NetworkReport,
    NodeReport,
    PeerReport,
    StoreReport,
)
from pyflannel.report.scraped import NotTold, scraped, told_config

BACKEND = {"Type": "extension", "VNI": 7, "DirectRouting": True, "ShutdownCommand": "a secret"}
NODE = NodeReport(
    version="1.2",
    ready_since=5.0,
    store=StoreReport(kind="etcd", connected=False),
    config=ConfigReport(
        effective={
            "Network": "10.5.0.0/16",
            "EnableIPv4": True,
            "SubnetLen": 24,
            "Backend": BACKEND,
        }
    ),
    lease=LeaseReport(subnet="10.5.1.0/24", public_ip="192.0.2.1", backend="vxlan", held=True),
    network=NetworkReport(backend="vxlan"),
    peers=[
        PeerReport(subnet="10.5.2.0/24", public_ip="192.0.2.2", state="up"),
        PeerReport(subnet="10.5.3.0/24", public_ip="192.0.2.3", state="down"),
        PeerReport(subnet="10.5.4.0/24", public_ip="192.0.2.4"),
        PeerReport(ipv6_subnet="fd00:5::/64", public_ipv6="2001:db8::5"),
    ],
)


def test_what_a_node_tells_over_its_health_port_is_read_back():
    found = scraped(render(NODE).decode())
    assert found.complete
    assert found.codes == ("PF102",)
    report = found.report
    assert (report.version, report.ready) == ("1.2", True)
    assert report.lease.subnet == "10.5.1.0/24"
    assert report.lease.public_ip == "192.0.2.1"
    assert [(peer.subnet, peer.state) for peer in report.peers] == [
        ("10.5.3.0/24", "down"),
        ("10.5.2.0/24", "up"),
        ("10.5.4.0/24", "unknown"),
        ("fd00:5::/64", "unknown"),
    ]
    assert report.config.effective == told_config(NODE.config.effective)


def test_of_the_backend_nothing_is_told_but_its_type_and_its_numbers():
    assert "secret" not in render(NODE).decode()
    told = told_config(NODE.config.effective)
    assert told["Backend"] == {"Type": "extension", "VNI": 7, "DirectRouting": True}


def test_of_many_peers_a_part_is_told_and_that_is_known():
    many = [
        PeerReport(subnet=f"10.{n // 256}.{n % 256}.0/24", public_ip="192.0.2.9")
        for n in range(MOST_PEERS + 1)
    ]
    found = scraped(render(replace(NODE, peers=many)).decode())
    assert (found.complete, len(found.report.peers)) == (False, MOST_PEERS)


def test_labels_are_taken_as_they_were():
    odd = 'a "quoted" \\ line\nbreak'
    text = render(replace(NODE, version=odd)).decode()
    assert scraped(text).report.version == odd


@pytest.mark.parametrize("text", ["", "flanneld is running", "# HELP", "pyflannel_ready 1.0"])
def test_who_tells_no_lease_is_not_taken_for_a_node(text):
    with pytest.raises(NotTold):
        scraped(text)


WORDS = ("pyflannel_node_info", "pyflannel_config_info", "pyflannel_peer_info", "pyflannel_peer_up")


@given(
    st.lists(
        st.builds(
            lambda name, label, text, value: f'{name}{{{label}="{text}"}} {value}',
            st.sampled_from(WORDS),
            st.sampled_from(["subnet", "public_ip", "backend", "network"]),
            st.text(),
            st.one_of(st.text(), st.floats().map(str)),
        )
    )
)
@example(
    ['pyflannel_node_info{subnet="x"} 1', f'pyflannel_config_info{{backend="{"[" * 9999}"}} 1']
)
def test_any_answer_of_a_stranger_is_read_or_refused(lines):
    try:
        scraped("\n".join(lines))
    except NotTold:
        assert not any(line.startswith(WORDS[0]) and line.endswith(" 1") for line in lines[:1])
