"""Which interface carries the overlay: every rule, with interfaces made of values."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from pyflannel.core.errors import InterfaceError
from pyflannel.core.ip import Family, parse_subnet_key
from pyflannel.core.matching import select_interface
from pyflannel.core.moving import Homing, move, standing
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import Candidate, CandidateAddress, RouteFound, Surroundings

V4 = (Family.V4,)
V6 = (Family.V6,)
DUAL = (Family.V4, Family.V6)


def address(text, **flags):
    return CandidateAddress(ip=ip_address(text), **flags)


def candidate(index, name, *texts, mtu=1500, **flags):
    addresses = tuple(address(t) if isinstance(t, str) else t for t in texts)
    return Candidate(name=name, index=index, mtu=mtu, addresses=addresses, **flags)


LO = candidate(1, "lo", "127.0.0.1", "::1", mtu=65536, loopback=True)
ETH0 = candidate(2, "eth0", "192.0.2.1", "2001:db8::1", "fe80::1")
ETH1 = candidate(3, "eth1", "198.51.100.1", "198.51.100.2", "2001:db8:1::1", mtu=9000)
BARE = candidate(4, "bare0")
ALL = (LO, ETH0, ETH1, BARE)
DEFAULTS = {Family.V4: [RouteFound(2)], Family.V6: [RouteFound(2)]}


def select(families=V4, *, links=ALL, defaults=None, reach=None, **options):
    around = Surroundings(
        candidates=links,
        default_routes=DEFAULTS if defaults is None else defaults,
        reach=reach,
    )
    return select_interface(DaemonOptions(**options), families, around)


def chosen(families=V4, **rest):
    """Name, interface addresses, published addresses: the whole result but index and MTU."""
    found = select(families, **rest).interface
    return (
        found.name,
        [str(a) if a else None for a in (found.address, found.address6)],
        [str(a) if a else None for a in (found.public_ip, found.public_ipv6)],
    )


def refusal(families=V4, **rest):
    with pytest.raises(InterfaceError) as raised:
        select(families, **rest)
    return str(raised.value)


class TestPrecedence:
    def test_without_options_it_is_the_default_route(self):
        found = select()
        assert found.interface.name == "eth0"
        assert found.interface.index == 2
        assert found.interface.mtu == 1500
        assert found.reason == "default route"

    def test_iface_comes_before_regex_before_can_reach(self):
        reach = RouteFound(2, ip_address("192.0.2.1"))
        options = {"iface_can_reach": "203.0.113.1", "reach": reach}
        assert chosen(iface=("eth1",), iface_regex=("eth0",), **options)[0] == "eth1"
        assert chosen(iface_regex=("eth1",), **options)[0] == "eth1"
        assert chosen(**options)[0] == "eth0"

    def test_those_that_lead_to_nothing_are_told_and_the_next_is_tried(self):
        found = select(iface=("nope", "eth1"))
        assert found.interface.name == "eth1"
        assert found.failures == ("--iface nope: there is no such interface",)

    def test_an_explicit_wish_never_falls_back_to_the_default_route(self):
        text = refusal(iface=("nope",))
        assert text.startswith(
            "Failed to find interface to use that matches the interfaces and/or regexes provided: "
            "--iface nope: there is no such interface"
        )

    def test_public_ip_alone_selects_the_interface_by_that_address(self):
        assert chosen(public_ip="198.51.100.2") == (
            "eth1",
            ["198.51.100.2", None],
            ["198.51.100.2", None],
        )

    def test_a_nat_address_needs_an_explicit_iface(self):
        text = refusal(public_ip="203.0.113.9")
        assert "no interface has the address 203.0.113.9" in text
        assert "--iface if the public address is not on this host (NAT)" in text
        assert chosen(public_ip="203.0.113.9", iface=("eth1",)) == (
            "eth1",
            ["198.51.100.1", None],
            ["203.0.113.9", None],
        )

    def test_public_ipv6_alone_selects_in_an_ipv6_network(self):
        assert chosen(V6, public_ipv6="2001:db8:1::1")[0] == "eth1"

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"public_ip": "host.example"}, "--public-ip: 'host.example' is not an IP address"),
            ({"public_ip": "2001:db8::1"}, "--public-ip: '2001:db8::1' is not an IPv4 address"),
            ({"public_ipv6": "192.0.2.1"}, "--public-ipv6: '192.0.2.1' is not an IPv6 address"),
        ],
    )
    def test_a_public_address_must_be_one_of_its_family(self, options, reason):
        assert refusal(iface=("eth0",), **options) == reason


class TestByName:
    def test_the_name_must_be_exact(self):
        assert chosen(iface=("eth1",))[0] == "eth1"
        assert "no such interface" in refusal(iface=("eth",))

    def test_an_unknown_one_is_answered_with_what_is_there_and_what_to_do(self):
        text = refusal(iface=("nope",))
        assert "eth0 (192.0.2.1, 2001:db8::1, fe80::1, mtu 1500)" in text
        assert "bare0 (no address, mtu 1500)" in text
        assert text.endswith("Way out: correct --iface, --iface-regex or --iface-can-reach")

    def test_hundreds_of_interfaces_do_not_flood_the_message(self):
        links = (ETH0, *(candidate(n, f"veth{n}") for n in range(10, 400)))
        text = refusal(links=links, iface=("nope",))
        assert "eth0 (" in text
        assert "and 371 more" in text

    def test_an_interface_without_a_usable_address_is_no_match(self):
        assert "bare0 has no usable IPv4 address" in refusal(iface=("bare0",))
        assert chosen(iface=("bare0", "eth1"))[0] == "eth1"

    def test_an_mtu_of_0_is_an_error(self):
        broken = candidate(9, "x0", "192.0.2.77", mtu=0)
        assert "failed to determine MTU for x0" in refusal(links=(broken,), iface=("x0",))

    def test_one_that_is_down_can_be_chosen_like_upstream_and_is_shown_as_such(self):
        down = candidate(9, "x0", "192.0.2.77", up=False)
        assert chosen(links=(down,), iface=("x0",))[0] == "x0"
        assert "x0 (192.0.2.77, mtu 1500, down)" in refusal(links=(down,), iface=("y0",))


class TestByAddress:
    def test_the_first_interface_that_carries_it_and_the_address_is_settled(self):
        assert chosen(iface=("198.51.100.2",))[:2] == ("eth1", ["198.51.100.2", None])

    def test_in_an_ipv6_network_it_is_an_ipv6_address(self):
        assert chosen(V6, iface=("2001:db8:1::1",)) == (
            "eth1",
            [None, "2001:db8:1::1"],
            [None, "2001:db8:1::1"],
        )

    @pytest.mark.parametrize(("families", "text"), [(V4, "2001:db8::1"), (V6, "192.0.2.1")])
    def test_an_address_of_a_family_that_is_off_leads_nowhere(self, families, text):
        assert "is not enabled in the network config" in refusal(families, iface=(text,))

    def test_an_address_settled_by_name_may_even_be_loopback(self):
        assert chosen(iface=("127.0.0.1",))[:2] == ("lo", ["127.0.0.1", None])


class TestDualStack:
    def test_a_name_gives_the_best_address_of_each_family(self):
        assert chosen(DUAL, iface=("eth0",))[1] == ["192.0.2.1", "2001:db8::1"]

    def test_an_ipv4_address_names_the_interface(self):
        assert chosen(DUAL, iface=("198.51.100.2",))[1] == ["198.51.100.2", "2001:db8:1::1"]

    def test_with_public_ipv6_both_must_be_on_one_interface(self):
        same = {"iface": ("198.51.100.2",), "public_ipv6": "2001:db8:1::1"}
        assert chosen(DUAL, **same)[0] == "eth1"
        text = refusal(DUAL, iface=("198.51.100.2",), public_ipv6="2001:db8::1")
        assert "198.51.100.2 is on eth1, but --public-ipv6 2001:db8::1 is on eth0" in text

    def test_an_ipv6_address_works_only_with_public_ipv6(self):
        assert "needs --public-ipv6" in refusal(DUAL, iface=("2001:db8::1",))
        found = chosen(DUAL, iface=("2001:db8::1",), public_ipv6="2001:db8::1")
        assert found[:2] == ("eth0", ["192.0.2.1", "2001:db8::1"])

    def test_the_default_routes_must_lead_through_one_interface(self):
        assert chosen(DUAL)[0] == "eth0"
        apart = {Family.V4: [RouteFound(2)], Family.V6: [RouteFound(3)]}
        assert "eth0 for IPv4 and eth1 for IPv6" in refusal(DUAL, defaults=apart)

    def test_a_missing_family_on_the_interface_is_an_error(self):
        v4_only = candidate(9, "x0", "192.0.2.77")
        assert "no usable IPv6 address" in refusal(DUAL, links=(v4_only,), iface=("x0",))


class TestByRegex:
    def test_addresses_come_before_names(self):
        """`1` is in the name eth1, but eth0's address is looked at first."""
        assert chosen(iface_regex=("1",))[0] == "eth0"

    def test_an_address_that_matches_is_settled(self):
        assert chosen(iface_regex=(r"100\.2$",))[:2] == ("eth1", ["198.51.100.2", None])

    def test_it_is_searched_not_matched_whole(self):
        assert chosen(iface_regex=("51.100",))[0] == "eth1"
        assert chosen(iface_regex=("th1",))[0] == "eth1"

    def test_the_first_interface_by_index_wins(self):
        assert chosen(iface_regex=(r"^(198|192)\.",))[0] == "eth0"

    def test_ipv6_networks_match_ipv6_addresses_only(self):
        assert chosen(V6, iface_regex=("^2001:db8:1:",))[0] == "eth1"
        assert "matches no interface's IPv6 address" in refusal(V6, iface_regex=("^192",))

    def test_an_address_that_is_not_usable_does_not_match(self):
        old = candidate(9, "x0", address("192.0.2.77", deprecated=True), "192.0.2.78")
        assert chosen(links=(old,), iface_regex=("77|78",))[1] == ["192.0.2.78", None]
        assert "matches no" in refusal(links=(old,), iface_regex=("77",))
        assert "matches no" in refusal(iface_regex=(r"^127\.",))

    @pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=eth)"])
    def test_a_bad_pattern_is_an_error_for_that_entry_only(self, pattern):
        found = select(iface_regex=(pattern, "eth1"))
        assert found.interface.name == "eth1"
        assert "not a regular expression" in found.failures[0]

    def test_no_match_lists_the_interfaces(self):
        assert "eth1 (198.51.100.1" in refusal(iface_regex=("wlan",))

    def test_dual_stack_needs_a_match_in_both_families_of_one_interface(self):
        assert chosen(DUAL, iface_regex=(r"^198\.51|^2001:db8:1:",))[1] == [
            "198.51.100.1",
            "2001:db8:1::1",
        ]
        assert "matches no interface's IPv4 and IPv6 address" in refusal(
            DUAL, iface_regex=(r"^198\.51",)
        )

    def test_half_a_match_is_forgotten_when_another_interface_is_found_by_name(self):
        """Upstream keeps the IPv4 address of the one and takes the interface of the other."""
        links = (candidate(5, "a0", "192.0.2.7"), candidate(6, "b7", "198.51.100.9", "2001:db8::9"))
        found = chosen(DUAL, links=links, iface_regex=(r"2\.7$|^b7$",))
        assert found[:2] == ("b7", ["198.51.100.9", "2001:db8::9"])


class TestCanReach:
    def test_the_kernels_interface_and_source_address_are_taken(self):
        reach = RouteFound(3, ip_address("198.51.100.2"))
        found = chosen(iface_can_reach="203.0.113.1", reach=reach)
        assert found[:2] == ("eth1", ["198.51.100.2", None])

    def test_without_a_source_address_the_interfaces_best_is_taken(self):
        found = chosen(iface_can_reach="203.0.113.1", reach=RouteFound(3))
        assert found[:2] == ("eth1", ["198.51.100.1", None])

    def test_in_dual_stack_the_other_family_is_filled_in(self):
        reach = RouteFound(3, ip_address("198.51.100.2"))
        found = chosen(DUAL, iface_can_reach="203.0.113.1", reach=reach)
        assert found[1] == ["198.51.100.2", "2001:db8:1::1"]

    @pytest.mark.parametrize(
        ("target", "reach", "reason"),
        [
            ("nope", None, "'nope' is not an IP address"),
            ("203.0.113.1", None, "there is no route to it"),
            ("192.0.2.1", RouteFound(1, ip_address("192.0.2.1")), "this node itself"),
            ("203.0.113.1", RouteFound(77), "has vanished"),
        ],
    )
    def test_what_cannot_be_reached_says_why(self, target, reach, reason):
        assert reason in refusal(iface_can_reach=target, reach=reach)


class TestDefaultRoute:
    def test_none_is_an_error_with_the_way_out(self):
        text = refusal(defaults={})
        assert "unable to find an IPv4 default route" in text
        assert text.endswith("Way out: name one with --iface")

    def test_several_next_hops_have_no_interface(self):
        text = refusal(defaults={Family.V4: [RouteFound(None)]})
        assert "found default route but could not determine interface" in text

    def test_an_ipv6_network_looks_at_the_ipv6_one(self):
        assert chosen(V6, defaults={Family.V6: [RouteFound(3)]})[0] == "eth1"
        assert "IPv6 default route" in refusal(V6, defaults={Family.V4: [RouteFound(2)]})


class TestAddressChoice:
    @pytest.mark.parametrize(
        ("addresses", "best"),
        [
            (["169.254.1.1", "10.0.0.1"], "10.0.0.1"),
            (["169.254.1.1"], "169.254.1.1"),
            (["10.0.0.1", "10.0.0.2"], "10.0.0.1"),
            ([address("10.0.0.1", permanent=False), "10.0.0.2"], "10.0.0.2"),
            ([address("10.0.0.1", permanent=False), "169.254.1.1"], "10.0.0.1"),
            (["fe80::1", "fd00::1"], "fd00::1"),
            ([address("2001:db8::2", temporary=True, permanent=False),
              address("2001:db8::1", permanent=False)], "2001:db8::1"),
            ([address("2001:db8::2", temporary=True),
              address("2001:db8::1", permanent=False)], "2001:db8::2"),
            (["2001:db8::1", address("2001:db8::2", deprecated=True)], "2001:db8::1"),
            # No host beyond the link can send to the other one.
            ([address("2001:db8::2", deprecated=True), "fe80::1"], "2001:db8::2"),
        ],
    )  # fmt: skip
    def test_global_permanent_and_public_addresses_come_first(self, addresses, best):
        link = candidate(5, "x0", *addresses)
        families = V4 if "." in best else V6
        found = select(families, links=(link,), iface=("x0",)).interface
        assert str(found.local(families[0])) == best

    @pytest.mark.parametrize("text", ["127.0.0.2", "224.0.0.1", "0.0.0.0", "255.255.255.255"])
    def test_what_is_not_unicast_is_never_taken(self, text):
        link = candidate(5, "x0", text)
        assert "no usable IPv4 address" in refusal(links=(link,), iface=("x0",))


class TestExternalAddress:
    def test_an_ipv6_network_publishes_no_ipv4_address_unless_told_to(self):
        assert chosen(V6)[2] == [None, "2001:db8::1"]
        given = chosen(V6, iface=("eth0",), public_ip="203.0.113.9")
        assert given[1:] == ([None, "2001:db8::1"], ["203.0.113.9", "2001:db8::1"])

    def test_an_ipv4_network_publishes_no_ipv6_address_unless_told_to(self):
        assert chosen()[2] == ["192.0.2.1", None]
        assert chosen(iface=("eth0",), public_ipv6="2001:db8::99")[2] == [
            "192.0.2.1",
            "2001:db8::99",
        ]


def test_one_line_tells_the_choice_the_reason_and_the_alternatives():
    found = select(DUAL, iface=("nope", "eth0"), public_ip="203.0.113.9")
    assert found.describe() == (
        "eth0 (192.0.2.1, 2001:db8::1, mtu 1500) by --iface eth0; published as 203.0.113.9; "
        "in vain: --iface nope: there is no such interface; "
        "others: eth1 (198.51.100.1, 198.51.100.2, 2001:db8:1::1, mtu 9000)"
    )
    alone = select(links=(ETH0,))
    assert alone.describe() == "eth0 (192.0.2.1, mtu 1500) by default route; others: none"


class TestOurOwnDevices:
    """What leads into the overlay cannot carry it."""

    OVERLAY = candidate(9, "flannel0", "10.5.1.0", "2001:db8:9::1", ours=True)

    def test_by_name_or_address_it_is_refused_and_the_reason_is_said(self):
        for wish in ("flannel0", "10.5.1.0"):
            text = refusal(links=(*ALL, self.OVERLAY), iface=(wish,))
            assert "flannel0 is a device of flannel's own" in text

    def test_a_pattern_passes_it_over(self):
        first = candidate(2, "flannel.1", "10.5.1.0", ours=True)
        other = candidate(3, "lan0", "10.9.0.1")
        assert chosen(links=(first, other), iface_regex=("^10\\.",))[0] == "lan0"
        assert "matches no interface" in refusal(links=(first, other), iface_regex=("flannel",))

    def test_a_default_route_through_it_does_not_count(self):
        links = (*ALL, self.OVERLAY)
        assert (
            chosen(links=links, defaults={Family.V4: [RouteFound(9), RouteFound(3)]})[0] == "eth1"
        )
        text = refusal(links=links, defaults={Family.V4: [RouteFound(9)]})
        assert "unable to find an IPv4 default route" in text


HOME = select(DUAL).interface
"""eth0 with 192.0.2.1 and 2001:db8::1."""
OWN = parse_subnet_key("10.5.1.0-24")


def followed(*links, families=DUAL, current=HOME, home=HOME, defaults=None, **options):
    """Name and addresses of what carries the overlay from now on; a sentence if nothing can."""
    around = Surroundings(
        candidates=links, default_routes=DEFAULTS if defaults is None else defaults
    )
    options = DaemonOptions(**options)
    found = standing(current, home, options, families, around)
    if found is None:
        try:
            found = move(current, home, options, families, around, OWN).interface
        except InterfaceError as error:
            return str(error)
    return (found.name, *(str(ip) for family in families if (ip := found.local(family))))


STAYED = ("eth0", "192.0.2.1", "2001:db8::1")
BY_ETH1 = {Family.V4: [RouteFound(3)], Family.V6: [RouteFound(3)]}


class TestStaying:
    """As long as the interface works and has its address, nothing else matters."""

    def test_another_default_route_is_no_reason_to_move(self):
        assert followed(LO, ETH0, ETH1, defaults=BY_ETH1) == STAYED
        assert followed(LO, ETH0, ETH1, defaults={}) == STAYED

    @pytest.mark.parametrize(
        "addresses",
        [
            ("192.0.2.200", "192.0.2.1", "2001:db8::1", "fe80::1"),
            ("192.0.2.1", "2001:db8::2", "2001:db8::1"),
            (address("192.0.2.1", permanent=False), "192.0.2.200", "2001:db8::1"),
            ("192.0.2.1", address("2001:db8::1", deprecated=True), "fe80::1"),
            ("192.0.2.1", address("2001:db8::1", deprecated=True), "2001:db8::2"),
        ],
        ids=[
            "listed first after a renewal by DHCP",
            "a second IPv6 address, the newest first",
            "a permanent one beside the dynamic one",
            "deprecated, and only a link-local one beside it",
            "deprecated, and its successor is there",
        ],
    )
    def test_an_address_beside_ours_is_none_either(self, addresses):
        assert followed(LO, candidate(2, "eth0", *addresses), ETH1) == STAYED

    def test_name_and_mtu_are_the_present_ones(self):
        renamed = replace(ETH0, name="lan0", mtu=1400)
        around = Surroundings(candidates=(LO, renamed))
        found = standing(HOME, HOME, DaemonOptions(iface=("eth0",)), DUAL, around)
        assert found == replace(HOME, name="lan0", mtu=1400)

    def test_an_interface_made_of_ours_is_followed_with_the_address(self):
        """A bridge over the card has it now, with or without the default route."""
        port = candidate(2, "eth0")
        bridge = candidate(7, "br0", "192.0.2.1", "2001:db8::1", "fe80::7")
        assert followed(LO, port, ETH1, bridge, defaults=BY_ETH1) == ("br0", *STAYED[1:])

    def test_but_not_against_an_explicit_wish(self):
        port = candidate(2, "eth0")
        bridge = candidate(7, "br0", "192.0.2.1", "2001:db8::1")
        assert "eth0 has lost its address" in followed(LO, port, bridge, iface=("eth0",))
        by_address = followed(LO, port, bridge, families=V4, iface=("192.0.2.1",))
        assert by_address == ("br0", "192.0.2.1")

    def test_the_same_address_elsewhere_takes_nothing_from_ours(self):
        macvlan = candidate(3, "mac0", "192.0.2.1", "2001:db8::1")
        assert followed(LO, ETH0, macvlan) == STAYED

    def test_on_loopback_an_address_reaches_no_other_node(self):
        lo = replace(LO, addresses=(*LO.addresses, address("192.0.2.1"), address("2001:db8::1")))
        assert followed(lo, candidate(2, "eth0", "fe80::1"), ETH1, defaults=BY_ETH1)[0] == "eth1"


class TestMoving:
    @pytest.mark.parametrize("broken", [{"up": False}, {"running": False}], ids=str)
    def test_down_or_without_carrier_it_is_left(self, broken):
        assert followed(LO, replace(ETH0, **broken), ETH1, defaults=BY_ETH1) == (
            "eth1",
            "198.51.100.1",
            "2001:db8:1::1",
        )

    def test_a_default_route_through_what_is_dead_does_not_count(self):
        """The kernel keeps the route of an interface that has lost its carrier."""
        ways = {family: [RouteFound(2), RouteFound(3)] for family in DUAL}
        assert followed(LO, replace(ETH0, running=False), ETH1, defaults=ways)[0] == "eth1"

    def test_an_address_that_was_exchanged_is_followed_and_the_other_family_stays(self):
        new = candidate(2, "eth0", "192.0.2.77", "2001:db8::2", "2001:db8::1")
        assert followed(LO, new) == ("eth0", "192.0.2.77", "2001:db8::1")

    def test_the_first_one_is_gone_back_to_when_it_works_again(self):
        away = select(DUAL, iface=("eth1",)).interface
        assert followed(LO, replace(ETH0, running=False), ETH1, current=away)[0] == "eth1"
        assert followed(LO, ETH0, ETH1, current=away, defaults=BY_ETH1) == STAYED
        again = replace(ETH0, index=11)
        assert followed(LO, ETH1, again, current=away, defaults=BY_ETH1) == STAYED

    def test_nothing_is_taken_that_belongs_to_the_overlay_or_its_containers(self):
        dead = replace(ETH0, up=False)
        for other in (
            candidate(5, "docker0", "10.5.1.1", "2001:db8:7::1"),
            candidate(5, "flannel.1", "10.9.9.9", "2001:db8:7::1", ours=True),
        ):
            ways = {family: [RouteFound(5)] for family in DUAL}
            text = followed(LO, dead, other, defaults=ways)
            assert text.startswith("eth0 is down. ")
            assert "unable to find an IPv4 default route" in text

    def test_a_link_local_address_is_never_moved_to(self):
        lost = candidate(2, "eth0", "192.0.2.1", "fe80::1")
        text = followed(LO, lost)
        assert text.startswith("eth0 has lost its address 2001:db8::1. ")
        assert "no IPv6 address that other nodes can reach" in text

    def test_what_is_wrong_is_said_first(self):
        assert followed(LO, defaults={}).startswith("eth0 is gone. ")
        unplugged = replace(ETH0, running=False)
        assert followed(LO, unplugged).startswith("eth0 has no carrier. ")
        assert "eth0 (192.0.2.1, 2001:db8::1, fe80::1, mtu 1500, no carrier)" in refusal(
            links=(unplugged,), iface=("nope",)
        )


class TestHoming:
    def test_the_first_return_is_at_once_and_each_further_one_later(self):
        homing, now, waits = Homing(), 0.0, []
        for _ in range(8):
            homing.left(now)
            waits.append(homing.remaining(now))
            now += waits[-1]
            assert homing.remaining(now) == 0
            homing.returned(now)
            now += 1
        assert waits == [0, 2, 4, 8, 16, 32, 64, 64]

    def test_after_a_calm_time_all_is_forgotten(self):
        homing = Homing()
        for now in (0.0, 10.0, 20.0):
            homing.left(now)
            homing.returned(now + 5)
        homing.left(25 + Homing.CALM_S + 1)
        assert homing.remaining(25 + Homing.CALM_S + 1) == 0
