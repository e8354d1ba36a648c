"""Which traffic manager is in use, and what an earlier run may have left."""

from __future__ import annotations

from pyflannel.core import rules
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family
from pyflannel.core.options import DaemonOptions
from pyflannel.core.subnetenv import SubnetEnv
from pyflannel.traffic.base import TrafficManager
from pyflannel.traffic.iptables import IptablesManager
from pyflannel.traffic.nftables import NftablesManager


def managers(
    config: NetworkConfig, options: DaemonOptions
) -> tuple[TrafficManager, TrafficManager]:
    """The manager that the config asks for, and the other one, whose rules have to go."""
    fully_random = not options.ip_masq_fully_random_disable
    resync_s = float(options.iptables_resync)
    iptables = IptablesManager(fully_random=fully_random, resync_s=resync_s)
    nftables = NftablesManager(fully_random=fully_random, resync_s=resync_s)
    return (nftables, iptables) if config.enable_nftables else (iptables, nftables)


def former_rules(former: SubnetEnv) -> rules.RuleSet | None:
    """The rules of the run that wrote `subnet.env`; `None` if the file does not tell."""
    parts = []
    for family in Family:
        network = former.network if family is Family.V4 else former.ipv6_network
        subnet = former.subnet if family is Family.V4 else former.ipv6_subnet
        if network is not None and subnet is not None:
            masquerade = rules.masquerade_rules(family, network, subnet)
            parts.append(rules.FamilyRules(family=family, network=network, masquerade=masquerade))
    return rules.RuleSet(families=tuple(parts)) if parts else None
