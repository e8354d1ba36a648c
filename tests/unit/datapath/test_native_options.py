"""What can be asked of the native data path before it starts, and how it answers."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.core.errors import DatapathError
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath.base import COUNTERS, Capabilities, DatapathConfig
from pyflannel.datapath.native import NativeDatapath, parse_off, probe

CONFIG = DatapathConfig(
    tun_fd=1 << 20,
    udp_fd=1 << 20,
    tun_name="flannel0",
    tun_address=IPv4Address("10.5.1.0"),
    network=IPv4Network("10.5.0.0/16"),
    mtu=1472,
    port=8285,
)


def test_groups_of_offloads_have_one_name() -> None:
    assert parse_off("tso, gro") == {"tso4", "tso6", "tso_ecn", "gro"}
    assert parse_off("") == frozenset()


def test_an_unknown_offload_is_named_with_those_that_exist() -> None:
    with pytest.raises(DatapathError, match="no offload 'tos'; known: csum, tso,"):
        parse_off("gso,tos")


@pytest.mark.parametrize("name", ["THREADS", "QUEUES", "SPIN_US"])
@pytest.mark.parametrize("value", ["x", "-1", "100000"])
def test_a_number_out_of_range_is_refused(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PYFLANNEL_NATIVE_{name}", value)
    with pytest.raises(DatapathError, match=f"PYFLANNEL_NATIVE_{name}: '{value}'"):
        NativeDatapath(CONFIG)


def test_it_wants_the_virtio_header() -> None:
    found = probe()
    assert isinstance(found, Capabilities)
    assert found.wants_vnet_hdr


def test_without_the_extension_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel built without a compiler has everything but `_native`."""
    monkeypatch.setitem(sys.modules, "pyflannel.datapath.native._native", None)
    monkeypatch.delattr("pyflannel.datapath.native._native")
    assert "the extension was not built" in str(probe())
    with pytest.raises(DatapathError, match="the extension was not built"):
        NativeDatapath(CONFIG)


def test_a_descriptor_that_is_none_is_an_error_and_nothing_runs() -> None:
    path = NativeDatapath(CONFIG)
    with pytest.raises(DatapathError, match="start the native data path on flannel0: EBADF"):
        path.start()
    path.replace_table(PeerTable([Peer(IPv4Network("10.5.2.0/24"), IPv4Address("192.0.2.1"))]))
    assert path.counters() == dict.fromkeys(COUNTERS, 0)
    assert path.failure() is None
    path.stop()
