"""The keys of the network config beside `Backend`, in words: for help and documents.

What they mean is decided in `config`; tests hold this table to it. Not imported by the daemon.
"""

from __future__ import annotations

from typing import Final

from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S, MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.records import dataclass

AT_LEASE: Final = "a restart of a node that is to lease by it"
AT_RESTART: Final = "a restart of each node"
NETWORK: Final = (
    "a restart of all nodes; until then old and new ones are cut off, unless one network contains "
    "the other"
)
ALL_TOGETHER: Final = "a restart of all nodes; until then old and new ones are cut off"


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """One key."""

    key: str
    default: str
    """What it is without it."""
    wanted: str
    """What it may be."""
    effect: str
    change: str
    """What it takes until another value is in force."""


KEYS: Final = (
    ConfigKey(
        "Network",
        "none: it must be there unless EnableIPv4 is false",
        "an IPv4 prefix, /28 or shorter; not loopback, link-local or multicast",
        "the prefix of the whole overlay; each node leases a part of it",
        NETWORK,
    ),
    ConfigKey(
        "SubnetLen",
        "24; two more than Network's length where that is longer than /22",
        "two more than Network's length, to 30",
        "prefix length of a node's subnet",
        AT_LEASE,
    ),
    ConfigKey(
        "SubnetMin",
        "the second subnet of Network",
        "the address of a subnet in Network",
        "the first subnet that is leased",
        AT_LEASE,
    ),
    ConfigKey(
        "SubnetMax",
        "the last subnet of Network",
        "the address of a subnet in Network",
        "the last subnet that is leased",
        AT_LEASE,
    ),
    ConfigKey(
        "IPv6Network",
        "none: it must be there if EnableIPv6 is true",
        "an IPv6 prefix, /124 or shorter; not loopback, link-local or multicast",
        "as Network, for IPv6",
        NETWORK,
    ),
    ConfigKey(
        "IPv6SubnetLen",
        "64; two more than IPv6Network's length where that is longer than /62",
        "two more than IPv6Network's length, to 126",
        "as SubnetLen, for IPv6",
        AT_LEASE,
    ),
    ConfigKey(
        "IPv6SubnetMin",
        "the second subnet of IPv6Network",
        "the address of a subnet in IPv6Network, or null",
        "as SubnetMin, for IPv6",
        AT_LEASE,
    ),
    ConfigKey(
        "IPv6SubnetMax",
        "the last subnet of IPv6Network",
        "the address of a subnet in IPv6Network, or null",
        "as SubnetMax, for IPv6",
        AT_LEASE,
    ),
    ConfigKey("EnableIPv4", "true", "true or false", "whether pods get IPv4", ALL_TOGETHER),
    ConfigKey("EnableIPv6", "false", "true or false", "whether pods get IPv6", ALL_TOGETHER),
    ConfigKey(
        "EnableNFTables",
        "false",
        "true or false",
        "the traffic rules by nftables, not iptables",
        AT_RESTART,
    ),
    ConfigKey(
        "LeaseTTL",
        str(DEFAULT_LEASE_TTL_S),
        f"seconds, {MIN_LEASE_TTL_S} to {MAX_LEASE_TTL_S}",
        "how long a lease lasts unless it is renewed; flannel ignores it",
        AT_LEASE,
    ),
    ConfigKey(
        "Backend",
        '{"Type": "udp"}',
        "an object with Type and the keys of that type",
        "how packets reach the other nodes",
        ALL_TOGETHER,
    ),
)
"""In the order in which they are explained."""
