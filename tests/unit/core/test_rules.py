"""Masquerade and forward rules as values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.rules import Action, FamilyRules, RuleSet, build
from pyflannel.core.settings import Settings

V4, OWN4 = IPv4Network("10.0.0.0/16"), IPv4Network("10.0.5.0/24")
V6, OWN6 = IPv6Network("fd00::/48"), IPv6Network("fd00:0:0:5::/64")
DUAL = NetworkConfig(network=V4, ipv6_network=V6, enable_ipv6=True)
KEY = SubnetKey(OWN4, OWN6)


def test_a_family_has_rules_only_if_it_is_enabled_and_has_a_network():
    """Upstream looks at the network only and calls ip6tables for a disabled family."""
    config = NetworkConfig(network=V4, ipv6_network=V6, enable_ipv6=False)
    rules = build(config, KEY, ip_masq=True, forward=True)
    assert [part.family for part in rules.families] == [Family.V4]
    assert rules.of(Family.V6) == FamilyRules(family=Family.V6)


def test_flags_switch_the_parts():
    assert build(DUAL, KEY, ip_masq=False, forward=True).of(Family.V4).masquerade == ()
    assert build(DUAL, KEY, ip_masq=True, forward=False).of(Family.V6).forward == ()


def test_the_guard_is_there_with_either_part_and_a_tunnel_port():
    tunnelled = replace(DUAL, backend=VxlanSettings(port=0))
    for ip_masq, forward in ((True, False), (False, True)):
        for family in Family:
            (rule,) = build(tunnelled, KEY, ip_masq=ip_masq, forward=forward).of(family).guard
            assert (rule.udp_port, rule.action) == (8472, Action.DROP)
    assert build(tunnelled, KEY, ip_masq=False, forward=False).of(Family.V4).guard == ()
    routed = replace(DUAL, backend=Settings())
    assert build(routed, KEY, ip_masq=True, forward=True).of(Family.V4).guard == ()


def test_both_families_get_the_same_rules_with_their_own_networks():
    rules = build(DUAL, KEY, ip_masq=True, forward=True)
    for family, own, cluster in ((Family.V4, OWN4, V4), (Family.V6, OWN6, V6)):
        masquerade = rules.of(family).masquerade
        assert [rule.action for rule in masquerade] == [Action.RETURN] * 4 + [Action.MASQUERADE] * 2
        assert masquerade[1].source == own
        assert masquerade[5].destination == cluster
    assert rules == RuleSet(families=rules.families)
