"""What tests of data paths share."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from pyflannel.datapath.base import DatapathConfig

CONFIG = DatapathConfig(
    tun_fd=-1,
    udp_fd=-1,
    tun_name="flannel0",
    tun_address=IPv4Address("10.5.1.0"),
    network=IPv4Network("10.5.0.0/16"),
    mtu=1472,
    port=8285,
)
"""Of a node without descriptors, for tests in which no packet moves."""
