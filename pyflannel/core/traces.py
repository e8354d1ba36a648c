"""What a stopped daemon has left behind, told from what is there: pure, for `pyflannel cleanup`.

Nothing is remembered for this; devices are known to their kinds of backend, routes by the rule that
these use themselves, the network and the own subnet from `subnet.env`, files by their content.
"""

from __future__ import annotations

import json
from collections.abc import Set as AbstractSet
from typing import Final

from pyflannel.core.ip import IPAddress, IPNetwork
from pyflannel.core.subnetenv import SubnetEnv


def is_peer_route(
    former: SubnetEnv, dst: IPNetwork, gateway: IPAddress | None, *, plain: bool
) -> bool:
    """Whether a route leads to a peer as host-gw writes it.

    Args:
        former: what `subnet.env` says; without it no route can be told from an operator's.
        plain: protocol boot, unicast, no metric, no source.
    """
    network, own = (
        (former.network, former.subnet)
        if dst.version == 4
        else (former.ipv6_network, former.ipv6_subnet)
    )
    if not plain or gateway is None or network is None or own is None:
        return False
    if dst == own or dst.prefixlen != own.prefixlen or dst.version != network.version:
        return False
    low, high = int(network.network_address), int(network.broadcast_address)
    return low <= int(dst.network_address) <= high


def is_own_blackhole(former: SubnetEnv, dst: IPNetwork, *, blackhole: bool) -> bool:
    """Whether a route is the one that `--ip-blackhole-route` made."""
    return blackhole and dst in (former.subnet, former.ipv6_subnet)


LEASE_RECORD: Final = frozenset({"subnet", "etcd_lease", "prefix"})
"""The members of `lease.json`."""
DOCKER_RECORD: Final = frozenset({"drop_in"})
"""The members of `docker-setup.json`."""


def is_record(content: str, members: AbstractSet[str]) -> bool:
    """Whether a file of the state directory is one of ours: a JSON object with these members.

    It may have more: another release remembers more.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and members <= value.keys()
