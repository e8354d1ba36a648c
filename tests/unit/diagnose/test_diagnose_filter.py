"""Rules for one packet: what both tools print, and the verdicts that follow from it."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.diagnose import iptables, nftables
from pyflannel.diagnose.filter import (
    UNKNOWN,
    Chain,
    Drop,
    Hook,
    Match,
    Packet,
    Rule,
    Table,
    Verb,
    drops,
    translated,
)

PING = Packet(
    source=IPv4Address("10.5.2.2"),
    destination=IPv4Address("10.5.1.2"),
    iif="flannel.1",
    oif="docker0",
    protocol="icmp",
    to_us=False,
    from_us=False,
    returns=True,
)
SIX = replace(
    PING,
    source=IPv6Address("fd00:5:0:2::2"),
    destination=IPv6Address("fd00:5:0:1::2"),
    protocol="ipv6-icmp",
)
OUTER = Packet(
    source=IPv4Address("192.0.2.2"),
    destination=IPv4Address("192.0.2.1"),
    iif="eth0",
    oif="",
    protocol="udp",
    dport=8472,
)


def saved(*rules: str, policy: str = "ACCEPT", table: str = "filter") -> list[Table]:
    chains = sorted({"INPUT", "FORWARD"} | {rule.split()[1] for rule in rules})
    lines = [f"*{table}"]
    for chain in chains:
        lines.append(f":{chain} {policy if chain in ('INPUT', 'FORWARD') else '-'} [0:0]")
    return iptables.read("\n".join([*lines, *rules, "COMMIT"]))


def verdict(tables: list[Table], hook: Hook = Hook.FORWARD, packet: Packet = PING) -> str:
    found = drops(tables, hook, packet)
    if not found:
        return "passes"
    return "dropped" if any(drop.certain for drop in found) else "may"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "passes"),
        (["-A FORWARD -j DROP"], "dropped"),
        (["-A FORWARD -s 10.5.0.0/16 -j ACCEPT", "-A FORWARD -j REJECT"], "passes"),
        (["-A FORWARD -j REJECT", "-A FORWARD -s 10.5.0.0/16 -j ACCEPT"], "dropped"),
        (["-A FORWARD ! -s 10.5.0.0/16 -j DROP"], "passes"),
        (["-A FORWARD ! -i docker0 -o docker0 -j DROP"], "dropped"),
        (["-A FORWARD -i flannel+ -j DROP"], "dropped"),
        (["-A FORWARD -i cni+ -j DROP"], "passes"),
        (["-A FORWARD -p tcp -m tcp --dport 80 -j DROP"], "passes"),
        (["-A FORWARD -m limit --limit 5/sec -j DROP"], "may"),
        (["-A FORWARD -m set --match-set bad src -j DROP"], "may"),
        (["-A FORWARD -m conntrack --ctstate INVALID -j DROP"], "passes"),
        (["-A FORWARD -m conntrack --ctstate NEW,INVALID -j DROP"], "dropped"),
        (["-A FORWARD -m mark --mark 0x8000/0x8000 -j DROP"], "passes"),
        (['-A FORWARD -m comment --comment "a -j b" -j DROP'], "dropped"),
        (["-A FORWARD -j LOG --log-prefix DROP"], "passes"),
        (["-A FORWARD -j OTHER", "-A OTHER -j RETURN", "-A OTHER -j DROP"], "passes"),
        (["-A FORWARD -j OTHER", "-A OTHER -s 10.5.2.0/24 -j DROP"], "dropped"),
        (["-A FORWARD -g OTHER", "-A FORWARD -j DROP", "-A OTHER -j LOG"], "passes"),
        (["-A FORWARD -j NFQUEUE --queue-num 1"], "may"),
        (["-A FORWARD -m socket -j ACCEPT", "-A FORWARD -j DROP"], "may"),
    ],
)
def test_rules_of_iptables(rules, expected):
    assert verdict(saved(*rules)) == expected


@pytest.mark.parametrize(
    ("ports", "expected"),
    [("--dport 8472", "dropped"), ("--dport 8000:9000", "dropped"), ("--dport 53", "passes")],
)
def test_ports(ports, expected):
    tables = saved(f"-A INPUT -p udp -m udp {ports} -j DROP")
    assert verdict(tables, Hook.INPUT, OUTER) == expected
    many = saved("-A INPUT -p udp -m multiport --dports 53,8472 -j DROP")
    assert verdict(many, Hook.INPUT, OUTER) == "dropped"


def test_a_policy_is_told_from_a_rule():
    (drop,) = drops(saved(policy="DROP"), Hook.FORWARD, PING)
    assert drop == Drop(True, "policy drop of chain FORWARD in iptables filter", is_policy=True)
    assert verdict(saved("-A FORWARD -d 10.5.0.0/16 -j ACCEPT", policy="DROP")) == "passes"


def test_an_accept_ends_its_own_base_chain_only():
    accepting = saved("-A FORWARD -j ACCEPT")
    assert verdict([*accepting, *saved("-A FORWARD -j DROP", table="security")]) == "dropped"


def test_nothing_behind_a_certain_drop_is_told():
    tables = [*saved("-A FORWARD -j DROP", table="security"), *saved("-A FORWARD -j DROP")]
    (drop,) = drops(tables, Hook.FORWARD, PING)
    assert drop.rule == "iptables -t filter -A FORWARD -j DROP"


def test_chains_that_jump_in_a_circle_end():
    circle = [
        Chain(name="a", hook=Hook.FORWARD, rules=[Rule(verb=Verb.JUMP, target="b")]),
        Chain(name="b", rules=[Rule(verb=Verb.JUMP, target="a")]),
    ]
    table = Table(name="t", chains={chain.name: chain for chain in circle})
    assert drops([table], Hook.FORWARD, PING) == []


def test_what_is_not_known_of_a_packet_is_not_decided():
    assert Match("oif", ("docker0",)).holds(Packet(oif=None)) is None
    assert UNKNOWN.holds(PING) is None


def nft(*rules: list[dict], policy: str = "accept", family: str = "inet", sets=()) -> list[Table]:
    chain = {"family": family, "table": "t", "name": "f", "type": "filter", "hook": "forward"}
    listed = [{"metainfo": {"version": "1.0.6"}}, {"table": {"family": family, "name": "t"}}]
    listed += [{"chain": {**chain, "prio": 10, "policy": policy}}]
    listed += [{"chain": {"family": family, "table": "t", "name": "bad"}}]
    drop = {"family": family, "table": "t", "chain": "bad", "expr": [{"drop": None}]}
    listed += [{"rule": drop}, *sets]
    listed += [
        {"rule": {"family": family, "table": "t", "chain": "f", "expr": rule}} for rule in rules
    ]
    return nftables.read(json.loads(json.dumps({"nftables": listed})))


def match(left: dict, right, op: str = "==") -> dict:
    return {"match": {"op": op, "left": left, "right": right}}


SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
DPORT = {"payload": {"protocol": "udp", "field": "dport"}}
STATE = {"ct": {"key": "state"}}
MARK = {"&": [{"meta": {"key": "mark"}}, 0x4000]}
DROP = {"drop": None}
PREFIX = {"prefix": {"addr": "10.5.0.0", "len": 16}}
SET = {"set": {"family": "inet", "table": "t", "name": "s", "elem": [PREFIX, "192.0.2.1"]}}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ([DROP], "dropped"),
        ([match(SADDR, PREFIX), DROP], "dropped"),
        ([match(SADDR, PREFIX, "!="), DROP], "passes"),
        ([match(SADDR, "@s"), {"counter": {"packets": 0, "bytes": 0}}, {"reject": {}}], "dropped"),
        ([match(SADDR, "@nosuch"), DROP], "may"),
        ([match(SADDR, {"set": ["10.5.2.2", "10.5.2.3"]}), DROP], "dropped"),
        ([match({"meta": {"key": "iifname"}}, "flan*"), DROP], "dropped"),
        ([match({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), DROP], "passes"),
        ([match(STATE, ["established", "related"], "in"), DROP], "passes"),
        ([match(STATE, "invalid", "in"), DROP], "passes"),
        ([match(MARK, 0x4000), DROP], "passes"),
        ([match(MARK, 0), DROP], "dropped"),
        ([{"limit": {"rate": 5, "per": "second"}}, DROP], "may"),
        ([{"xt": None}], "passes"),
        ([{"xt": None}, DROP], "may"),
        ([{"jump": {"target": "bad"}}], "dropped"),
        ([{"vmap": {"key": STATE, "data": {"set": [["invalid", DROP]]}}}], "passes"),
        ([{"vmap": {"key": STATE, "data": {"set": [["new", DROP]]}}}], "dropped"),
        ([{"vmap": {"key": {"meta": {"key": "skuid"}}, "data": {"set": [["x", DROP]]}}}], "may"),
    ],
)
def test_rules_of_nftables(rule, expected):
    assert verdict(nft(rule, sets=[SET])) == expected


def test_ranges_and_policies_of_nftables():
    tables = nft([match(DPORT, {"set": [{"range": [8000, 9000]}, 53]}), {"accept": None}])
    assert verdict(tables, packet=OUTER) == "passes"
    closed = nft([match(DPORT, {"range": [8000, 9000]}), {"accept": None}], policy="drop")
    assert verdict(closed, packet=OUTER) == "passes"
    assert verdict(closed) == "dropped"  # a ping is no UDP
    ports = [match({"payload": {"protocol": "th", "field": "dport"}}, 80), {"accept": None}]
    assert verdict(nft(ports, policy="drop")) == "may"  # and has no port
    assert verdict(nft(policy="drop")) == "dropped"


def test_each_ip_version_meets_its_own_tables():
    assert verdict(nft([DROP], family="ip6")) == "passes"
    assert verdict(nft([DROP], family="ip6"), packet=SIX) == "dropped"
    assert verdict(nft([DROP], family="ip"), packet=SIX) == "passes"
    assert verdict(nft([DROP], family="inet"), packet=SIX) == "dropped"
    assert nft([DROP], family="bridge") == []
    assert verdict(saved("-A FORWARD -j DROP"), packet=SIX) == "passes"


NFPROTO = {"meta": {"key": "nfproto"}}
FIB_LOCAL = {"fib": {"result": "type", "flags": ["daddr"]}}
FIB_BACK = {"fib": {"result": "oif", "flags": ["saddr", "mark", "iif"]}}
SADDR6 = {"payload": {"protocol": "ip6", "field": "saddr"}}
TCP_PORT = {"payload": {"protocol": "tcp", "field": "dport"}}
TCP_FLAGS = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn"]]}
ICMP = {"payload": {"protocol": "icmp", "field": "type"}}
ICMP6 = {"payload": {"protocol": "icmpv6", "field": "type"}}
RANGE = {"range": ["10.5.2.1", "10.5.2.9"]}


@pytest.mark.parametrize(
    ("rule", "v4", "v6"),
    [
        ([match(NFPROTO, "ipv6"), DROP], "passes", "dropped"),
        ([match(NFPROTO, "ipv4"), DROP], "dropped", "passes"),
        # A look into a header is one that only such packets stand, also where it is negated.
        ([match(SADDR, PREFIX, "!="), DROP], "passes", "passes"),
        ([match(SADDR6, "fd00::1", "!="), DROP], "passes", "dropped"),
        ([match(TCP_PORT, 80, "!="), DROP], "passes", "passes"),
        ([match(TCP_FLAGS, ["syn"]), DROP], "passes", "passes"),
        ([match(SADDR, RANGE), DROP], "dropped", "passes"),
        ([match(ICMP, "echo-request"), DROP], "dropped", "passes"),
        ([match(ICMP6, "echo-request"), DROP], "passes", "dropped"),
        ([match(ICMP6, {"set": ["nd-neighbor-solicit"]}), DROP], "passes", "passes"),
        # firewalld's IPv6_rpfilter.
        ([match(NFPROTO, "ipv6"), match(FIB_BACK, False), DROP], "passes", "passes"),
        ([match(FIB_LOCAL, "local"), {"accept": None}], "passes", "passes"),
        ([match(FIB_LOCAL, "local"), DROP], "passes", "passes"),
        ([match({"ct": {"key": "status"}}, "dnat", "in"), DROP], "passes", "passes"),
        ([match({"ct": {"key": "direction"}}, "reply"), DROP], "passes", "passes"),
        ([match({"meta": {"key": "pkttype"}}, "broadcast"), DROP], "passes", "passes"),
    ],
)
def test_what_inet_tables_ask_of_both_versions(rule, v4, v6):
    assert verdict(nft(rule)) == v4
    assert verdict(nft(rule), packet=SIX) == v6


def test_without_a_known_route_a_reverse_path_filter_is_not_decided():
    tables = nft([match(FIB_BACK, False), DROP])
    assert verdict(tables, packet=replace(PING, returns=None)) == "may"
    assert verdict(tables, packet=replace(PING, returns=False)) == "dropped"
    assert (
        verdict(nft([match(FIB_LOCAL, "local"), DROP]), packet=replace(PING, to_us=None)) == "may"
    )


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("-A FORWARD -m addrtype --dst-type LOCAL -j DROP", "passes"),
        ("-A FORWARD -m addrtype ! --dst-type LOCAL -j DROP", "dropped"),
        ("-A FORWARD -m rpfilter --validmark --invert -j DROP", "passes"),
        ("-A FORWARD -m iprange --src-range 10.5.2.1-10.5.2.9 -j DROP", "dropped"),
        ("-A FORWARD -m iprange --src-range 10.5.3.1-10.5.3.9 -j DROP", "passes"),
        ("-A FORWARD -p icmp -m icmp --icmp-type 8 -j DROP", "dropped"),
        ("-A FORWARD -p icmp -m icmp --icmp-type 3/4 -j DROP", "passes"),
        ("-A FORWARD -m pkttype --pkt-type multicast -j DROP", "passes"),
        ("-A FORWARD -m conntrack --ctstatus DNAT -j DROP", "passes"),
        ("-A FORWARD -p 4 -j DROP", "passes"),
    ],
)
def test_extensions_of_iptables_that_can_be_decided(rule, expected):
    assert verdict(saved(rule)) == expected


def test_the_rules_of_ip6tables_are_for_ipv6():
    lines = ["*filter", ":FORWARD ACCEPT [0:0]", "-A FORWARD -s fd00:5:0:2::/64 -j DROP", "COMMIT"]
    tables = iptables.read("\n".join(lines), "ip6tables", 6)
    assert verdict(tables, packet=SIX) == "dropped"
    assert verdict(tables) == "passes"
    (drop,) = drops(tables, Hook.FORWARD, SIX)
    assert drop.rule == "ip6tables -t filter -A FORWARD -s fd00:5:0:2::/64 -j DROP"


class TestTranslation:
    """A DNAT gives a packet another destination, and rules behind it see that one."""

    SERVICE = replace(PING, destination=IPv4Address("10.96.0.1"), protocol="tcp", dport=443)

    @staticmethod
    def nat(*rules: str) -> list[Table]:
        lines = ["*nat", ":PREROUTING ACCEPT [0:0]", ":SVC - [0:0]", *rules, "COMMIT"]
        return iptables.read("\n".join(lines))

    def test_of_a_service(self):
        tables = self.nat(
            "-A PREROUTING -d 10.96.0.1/32 -p tcp -j SVC",
            "-A SVC -p tcp -j DNAT --to-destination 10.5.1.7:8443",
        )
        found = translated(tables, Hook.PREROUTING, self.SERVICE)
        assert (str(found.destination), found.dport) == ("10.5.1.7", 8443)
        assert translated(tables, Hook.PREROUTING, PING) == PING
        assert drops(tables, Hook.PREROUTING, self.SERVICE) == []

    def test_that_only_may_happen_changes_nothing(self):
        tables = self.nat(
            "-A PREROUTING -m statistic --mode random --probability 0.5 -j DNAT "
            "--to-destination 10.5.1.7",
        )
        assert translated(tables, Hook.PREROUTING, self.SERVICE) == self.SERVICE

    def test_of_nft(self):
        chain = {"family": "ip", "table": "t", "name": "c", "type": "nat", "hook": "prerouting"}
        rule = {
            "family": "ip",
            "table": "t",
            "chain": "c",
            "expr": [{"dnat": {"addr": "10.5.1.7"}}],
        }
        listed = [{"chain": {**chain, "prio": -100, "policy": "accept"}}, {"rule": rule}]
        found = translated(nftables.read({"nftables": listed}), Hook.PREROUTING, self.SERVICE)
        assert (str(found.destination), found.dport) == ("10.5.1.7", 443)


def test_a_rule_is_told_by_table_chain_and_words():
    (drop,) = drops(nft([match(SADDR, PREFIX), DROP]), Hook.FORWARD, PING)
    assert drop.rule == "nft inet t f: ip saddr 10.5.0.0/16 drop"
