"""The iptables rules to the byte, and the least that must be written."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from pyflannel.backend.udp import UdpSettings
from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.rules import Action, Rule, build
from pyflannel.traffic.iptables import (
    FORWARD,
    GUARD,
    MASQUERADE,
    Present,
    difference,
    names,
    parse_version,
    read_table,
    render,
)
from tests.unit.core.test_rules import OWN4, V4

RULES = build(NetworkConfig(network=V4), SubnetKey(OWN4), ip_masq=True, forward=True).of(Family.V4)
GOLDEN = """\
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.0.5.0/24 -d 10.0.0.0/16 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.0.0.0/16 -d 10.0.5.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.0.0.0/16 -d 10.0.5.0/24 -m comment --comment "flanneld masq" -j RETURN
-A FLANNEL-POSTRTG -s 10.0.0.0/16 ! -d 224.0.0.0/4 -m comment --comment "flanneld masq" -j \
MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.0.0.0/16 -d 10.0.0.0/16 -m comment --comment "flanneld masq" -j \
MASQUERADE --random-fully
"""
"""Upstream v0.28.9's rules, as it was seen to write them."""


def lines(chain=MASQUERADE, *, fully_random=True):
    rules = RULES.masquerade if chain is MASQUERADE else RULES.forward
    return tuple(render(rule, chain, fully_random=fully_random) for rule in rules)


def saved(rules, jump=MASQUERADE.jump, extra=""):
    body = "\n".join([*rules, jump])
    return f"*nat\n:POSTROUTING ACCEPT [0:0]\n:FLANNEL-POSTRTG - [0:0]\n{extra}{body}\nCOMMIT\n"


def test_the_masquerade_rules_are_upstreams_to_the_byte():
    assert "\n".join(lines()) + "\n" == GOLDEN


def test_the_forward_rules_are_upstreams_to_the_byte():
    assert lines(FORWARD) == (
        '-A FLANNEL-FWD -s 10.0.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
        '-A FLANNEL-FWD -d 10.0.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT',
    )
    assert FORWARD.jump == '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD'


def test_the_guard_is_about_the_tunnel_port_outside_of_the_network():
    config = NetworkConfig(network=V4, backend=UdpSettings(port=8285))
    part = build(config, SubnetKey(OWN4), ip_masq=False, forward=True).of(Family.V4)
    (rule,) = part.guard
    assert render(rule, GUARD, fully_random=True) == (
        "-A FLANNEL-GUARD -s 10.0.0.0/16 ! -d 10.0.0.0/16 -p udp -m udp --dport 8285 "
        '-m comment --comment "flanneld guard" -j DROP'
    )
    assert RULES.guard == ()


def test_the_guard_asks_for_udp_before_all_else():
    """Each packet of a pod passes that jump, some of them several times."""
    jump = '-A PREROUTING -p udp -m comment --comment "flanneld guard" -j FLANNEL-GUARD'
    assert jump == GUARD.jump


def test_a_jump_of_an_earlier_release_is_kept():
    there = '-A PREROUTING -m comment --comment "flanneld guard" -j FLANNEL-GUARD'
    rule = render(Rule(udp_port=8285, action=Action.DROP), GUARD, fully_random=True)
    saved = f"*raw\n:PREROUTING ACCEPT [0:0]\n:FLANNEL-GUARD - [0:0]\n{there}\n{rule}\nCOMMIT\n"
    assert difference(GUARD, (rule,), read_table(saved, GUARD)) == ""
    assert f"-D {there.removeprefix('-A ')}\n" in difference(GUARD, (), read_table(saved, GUARD))


@pytest.mark.parametrize(
    ("text", "nft", "fully_random", "wait"),
    [
        ("iptables v1.4.21", False, False, ()),
        ("iptables v1.6.1", False, False, ()),
        ("iptables v1.6.2", False, True, ("--wait",)),
        ("iptables v1.8.7 (nf_tables)", True, True, ("--wait",)),
        ("iptables v1.8.9 (legacy)", False, True, ("--wait",)),
        ("what?", False, False, ()),
    ],
)
def test_what_a_version_can_do(text, nft, fully_random, wait):
    flavour = parse_version(text)
    assert (flavour.nft, flavour.fully_random, flavour.restore_wait) == (nft, fully_random, wait)


def test_nothing_is_written_where_all_is_as_it_should_be():
    assert difference(MASQUERADE, lines(), read_table(saved(lines()), MASQUERADE)) == ""


def test_a_missing_rule_rewrites_the_chain_and_leaves_the_jump_where_it_is():
    payload = difference(MASQUERADE, lines(), read_table(saved(lines()[:-1]), MASQUERADE))
    assert payload.startswith("*nat\n:FLANNEL-POSTRTG - [0:0]\n")
    assert payload.endswith("COMMIT\n")
    assert "POSTROUTING" not in payload


def test_another_order_is_a_difference():
    swapped = (*lines()[1:], lines()[0])
    assert difference(MASQUERADE, lines(), read_table(saved(swapped), MASQUERADE)) != ""


def test_a_missing_jump_is_appended_and_a_double_one_removed():
    none = read_table(saved(lines(), jump=""), MASQUERADE)
    assert MASQUERADE.jump in difference(MASQUERADE, lines(), none).splitlines()
    twice = read_table(saved(lines(), extra=f"{MASQUERADE.jump}\n"), MASQUERADE)
    payload = difference(MASQUERADE, lines(), twice)
    assert payload.count(f"-D {MASQUERADE.jump.removeprefix('-A ')}") == 1


def test_foreign_rules_are_not_ours():
    """Also one whose comment or chain merely looks alike."""
    text = "*nat\n-A POSTROUTING -j FLANNEL-POSTRTG2\n-A POSTROUTING -j MASQUERADE\nCOMMIT\n"
    assert read_table(text, MASQUERADE) == Present(exists=False, rules=(), jumps=())


def test_removing_takes_the_jump_before_the_chain():
    payload = difference(MASQUERADE, (), read_table(saved(lines()), MASQUERADE)).splitlines()
    assert payload[1].startswith("-D POSTROUTING")
    assert payload[2:4] == ["-F FLANNEL-POSTRTG", "-X FLANNEL-POSTRTG"]
    assert difference(MASQUERADE, (), Present(exists=False, rules=(), jumps=())) == ""


NETWORKS = (V4,)
THEIRS = "-A FLANNEL-POSTRTG -s 10.9.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE"


def beside(rules, wanted=None, networks=NETWORKS):
    wanted = lines() if wanted is None else wanted
    return difference(MASQUERADE, wanted, read_table(saved(rules), MASQUERADE), networks)


def test_beside_rules_of_others_nothing_is_written_where_ours_are_right():
    assert beside((THEIRS, *lines())) == ""
    assert beside((*lines(), THEIRS)) == ""
    assert beside((*lines()[:3], THEIRS, *lines()[3:])) == ""


def test_beside_rules_of_others_only_ours_are_taken_out_and_appended():
    payload = beside((THEIRS, *lines()[:-1])).splitlines()
    assert payload[0] == "*nat"
    assert payload[-1] == "COMMIT"
    assert payload[1:5] == [f"-D {line.removeprefix('-A ')}" for line in lines()[1:-1]]
    assert payload[5:-1] == list(lines()[1:])


def test_the_rule_about_the_mark_is_added_once_and_before_ours():
    first = beside((THEIRS,)).splitlines()
    assert first[1:-1] == list(lines())
    behind = beside((*lines()[1:], THEIRS, lines()[0])).splitlines()
    assert lines()[0] not in behind, "there already; ours come behind it"
    assert behind[-2] == lines()[-1]


def test_beside_rules_of_others_chain_and_jump_stay_without_ours():
    payload = beside((THEIRS, *lines()), wanted=()).splitlines()
    assert payload[1:-1] == [f"-D {line.removeprefix('-A ')}" for line in lines()[1:]]
    assert beside((THEIRS,), wanted=()) == ""
    assert beside((lines()[0], THEIRS), wanted=()) == "", "they masquerade, so they need it"
    plain = THEIRS.replace("MASQUERADE", "RETURN")
    payload = beside((plain, *lines()), wanted=()).splitlines()
    assert sorted(payload[1:-1]) == sorted(f"-D {x.removeprefix('-A ')}" for x in lines())


def test_rules_of_a_network_that_we_had_go():
    payload = beside((THEIRS, *lines()), networks=(V4, IPv4Network("10.9.0.0/16")))
    assert payload.splitlines()[1] == ":FLANNEL-POSTRTG - [0:0]"
    assert "10.9.0.0" not in payload


def test_a_network_is_named_by_a_whole_word():
    assert names("-A FLANNEL-FWD -s 10.0.0.0/16 -j ACCEPT", NETWORKS)
    assert names("-A FLANNEL-FWD ! -d 10.0.0.0/16 -j ACCEPT", NETWORKS)
    for other in ("-s 10.0.0.0/160", "-s 110.0.0.0/16", '-m comment --comment "-s 10.0.0.0/16"'):
        assert not names(f"-A FLANNEL-FWD {other} -j ACCEPT", NETWORKS)
