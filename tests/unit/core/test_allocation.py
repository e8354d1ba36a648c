"""Which subnet a node asks for, against a naive model and upstream's rules one by one."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core import allocation, freesubnets, ownleases
from pyflannel.core.allocation import Reuse, TakeFree, TakePrevious
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import SubnetsExhausted, SubnetsOverlap
from pyflannel.core.ip import Family, SubnetKey, parse_subnet_key
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import Judge, Obstacles, Surroundings
from pyflannel.core.ownleases import Former

CONFIG = NetworkConfig(
    network=IPv4Network("10.0.0.0/16"),
    subnet_len=24,
    subnet_min=IPv4Address("10.0.1.0"),
    subnet_max=IPv4Address("10.0.20.0"),
)
DUAL = replace(
    CONFIG,
    enable_ipv6=True,
    ipv6_network=IPv6Network("fd00::/48"),
    ipv6_subnet_len=64,
    ipv6_subnet_min=IPv6Address("fd00:0:0:1::"),
    ipv6_subnet_max=IPv6Address("fd00:0:0:ffff::"),
)
WIDE = replace(
    CONFIG,
    network=IPv4Network("10.0.0.0/8"),
    subnet_max=IPv4Address("10.255.255.0"),
)
V6_ONLY = replace(DUAL, enable_ipv4=False, network=None)
ME = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), public_ipv6=IPv6Address("2001:db8::1"))
OTHER = LeaseAttrs(public_ip=IPv4Address("192.0.2.2"), public_ipv6=IPv6Address("2001:db8::2"))


def key(text):
    found = parse_subnet_key(text)
    assert found is not None
    return found


def lease(text, attrs=OTHER, **more):
    return Lease(key=key(text), attrs=attrs, **{"store_lease": 7, **more})


def plan(config, leases, attrs=ME, previous=None, seed=1, **more):
    return allocation.plan(
        config,
        leases,
        attrs,
        previous=key(previous) if previous else None,
        rng=Random(seed),
        **more,
    )


def vxlan(host, mac, spelling='{{"VNI":1,"VtepMAC":"{}"}}'):
    """Attributes of a vxlan node."""
    return LeaseAttrs(
        public_ip=IPv4Address(f"192.0.2.{host}"),
        backend_type="vxlan",
        backend_data=spelling.format(mac),
    )


class TestCandidates:
    def test_the_walk_goes_from_min_to_max_both_included(self):
        found = freesubnets.candidates(CONFIG, [], Family.V4)
        assert [str(n) for n in (found[0], found[-1])] == ["10.0.1.0/24", "10.0.20.0/24"]
        assert len(found) == 20

    def test_only_the_hundred_lowest_free_ones_count(self):
        wide = replace(CONFIG, subnet_max=IPv4Address("10.0.255.0"))
        taken = [key("10.0.1.0-24"), key("10.0.50.0-24")]
        found = freesubnets.candidates(wide, taken, Family.V4)
        assert len(found) == 100
        assert str(found[0]) == "10.0.2.0/24"
        assert str(found[-1]) == "10.0.102.0/24"

    def test_a_lease_of_another_length_blocks_all_it_overlaps(self):
        taken = [key("10.0.0.0-22"), key("10.0.5.128-25"), key("10.0.5.0-26"), key("10.0.16.0-20")]
        found = [str(n) for n in freesubnets.candidates(CONFIG, taken, Family.V4)]
        assert found == ["10.0.4.0/24", *(f"10.0.{n}.0/24" for n in range(6, 16))]

    def test_the_walk_stops_at_the_top_of_the_address_space(self):
        """Upstream's wraps around and offers 0.0.0.0."""
        top = replace(
            CONFIG,
            network=IPv4Network("255.255.0.0/16"),
            subnet_min=IPv4Address("255.255.254.0"),
            subnet_max=IPv4Address("255.255.255.0"),
        )
        found = [str(n) for n in freesubnets.candidates(top, [], Family.V4)]
        assert found == ["255.255.254.0/24", "255.255.255.0/24"]

    def test_min_above_max_leaves_nothing(self):
        crossed = replace(CONFIG, subnet_min=IPv4Address("10.0.30.0"))
        assert freesubnets.candidates(crossed, [], Family.V4) == []

    def test_families_are_walked_on_their_own(self):
        found = freesubnets.candidates(DUAL, [key("10.0.1.0-24&fd00:0:0:1::-64")], Family.V6)
        assert str(found[0]) == "fd00:0:0:2::/64"
        assert len(found) == 100

    def test_a_short_ipv6_lease_is_jumped_over(self):
        """One /32 covers 2^32 of the subnets; walking them would take an hour."""
        wide = replace(
            V6_ONLY,
            ipv6_network=IPv6Network("fd00::/16"),
            ipv6_subnet_max=IPv6Address("fd00:ffff:ffff:ffff::"),
        )
        found = freesubnets.candidates(wide, [key("0.0.0.0-0&fd00::-32")], Family.V6)
        assert str(found[0]) == "fd00:1::/64"

    @given(data=st.data())
    def test_it_agrees_with_the_naive_walk(self, data):
        length = data.draw(st.integers(26, 30))
        step = 1 << (32 - length)
        base = int(IPv4Address("10.0.0.0"))
        slots = st.integers(0, 256 // step - 1)
        low, high = data.draw(slots), data.draw(slots)
        config = NetworkConfig(
            network=IPv4Network("10.0.0.0/24"),
            subnet_len=length,
            subnet_min=IPv4Address(base + low * step),
            subnet_max=IPv4Address(base + high * step),
        )
        networks = st.builds(
            lambda host, prefix: IPv4Network((base + host, prefix), strict=False),
            st.integers(0, 511),
            st.integers(22, 31),
        )
        leases = data.draw(st.lists(networks, max_size=12))
        limit = data.draw(st.integers(1, 20))
        naive = [
            IPv4Network((base + slot * step, length))
            for slot in range(low, high + 1)
            if not any(
                IPv4Network((base + slot * step, length)).overlaps(taken) for taken in leases
            )
        ][:limit]
        taken = [SubnetKey(network) for network in leases]
        assert freesubnets.candidates(config, taken, Family.V4, limit) == naive

    @pytest.mark.slow
    def test_a_full_network_of_65536_subnets_is_no_effort(self):
        """A scan of all leases per candidate would take hours. Aim: 50 ms on an idle machine."""
        config = replace(
            CONFIG,
            network=IPv4Network("10.0.0.0/8"),
            subnet_min=IPv4Address("10.0.0.0"),
            subnet_max=IPv4Address("10.255.255.0"),
        )
        base = int(IPv4Address("10.0.0.0"))
        taken = [SubnetKey(IPv4Network((base + (n << 8), 24))) for n in range(65535)]
        times = []
        for _ in range(3):
            begun = time.perf_counter()
            found = freesubnets.candidates(config, taken, Family.V4)
            times.append(time.perf_counter() - begun)
        assert [str(n) for n in found] == ["10.255.255.0/24"]
        assert min(times) < 0.5


class TestChoose:
    def test_every_candidate_is_drawn_sooner_or_later_and_nothing_else(self):
        rng = Random(7)
        drawn = {str(freesubnets.choose(CONFIG, [], rng)) for _ in range(600)}
        assert drawn == {f"10.0.{n}.0-24" for n in range(1, 21)}

    def test_who_lost_races_draws_from_more(self):
        """A thousand nodes that start at once are a thousand rivals for the first hundred."""
        sizes = []

        class Drawing(Random):
            def choice(self, free):
                sizes.append(len(free))
                return free[-1]

        for races_lost in (0, 1, 2, 50):
            freesubnets.choose(WIDE, [], Drawing(1), races_lost=races_lost)
        assert sizes == [100, 200, 400, 12_800]

    def test_dual_stack_draws_a_subnet_of_each_family(self):
        found = freesubnets.choose(DUAL, [], Random(3))
        assert found.v4 is not None
        assert found.v6 is not None
        assert found.v6.prefixlen == 64

    def test_ipv6_only_has_no_ipv4_part(self):
        found = freesubnets.choose(V6_ONLY, [], Random(3))
        assert found.v4 is None
        assert str(found).startswith("0.0.0.0-0&fd00:0:0:")

    def test_when_all_are_taken_it_says_how_many_of_how_many_and_where(self):
        taken = [key(f"10.0.{n}.0-24") for n in range(1, 21)]
        with pytest.raises(SubnetsExhausted, match=r"^out of subnets: 20 of 20 ") as raised:
            freesubnets.choose(CONFIG, taken, Random(1))
        assert "10.0.1.0..10.0.20.0 (/24 each)" in str(raised.value)

    def test_one_exhausted_family_is_enough_to_fail(self):
        with pytest.raises(SubnetsExhausted, match=r"fd00:0:0:1::\.\.fd00:0:0:ffff::"):
            freesubnets.choose(DUAL, [key("0.0.0.0-0&fd00::-48")], Random(1))


class TestCompatible:
    @pytest.mark.parametrize(
        ("config", "text", "fits"),
        [
            (CONFIG, "10.0.1.0-24", True),
            (CONFIG, "10.0.20.0-24", True),
            (CONFIG, "10.0.0.0-24", False),
            (CONFIG, "10.0.21.0-24", False),
            (CONFIG, "10.0.4.0-25", False),
            (CONFIG, "10.0.4.0-24&fd00:0:0:1::-64", False),
            (DUAL, "10.0.4.0-24", False),
            (DUAL, "10.0.4.0-24&fd00:0:0:1::-64", True),
            (DUAL, "10.0.4.0-24&fd00:0:0:1::-66", False),
            (DUAL, "10.0.4.0-24&fd00::-64", False),
            (DUAL, "0.0.0.0-0&fd00:0:0:1::-64", False),
            (V6_ONLY, "0.0.0.0-0&fd00:0:0:1::-64", True),
            (V6_ONLY, "10.0.4.0-24&fd00:0:0:1::-64", False),
        ],
    )
    def test_range_length_and_families_must_be_the_configs(self, config, text, fits):
        assert freesubnets.is_compatible(key(text), config) is fits


class TestPlan:
    def test_a_lease_under_our_public_ip_is_used_again(self):
        mine = lease("10.0.7.0-24", ME)
        made = plan(CONFIG, [lease("10.0.2.0-24"), mine], previous="10.0.9.0-24")
        assert made.step == Reuse(mine)
        assert made.reuse is mine
        assert made.key == mine.key
        assert not made.is_previous
        assert made.incompatible == ()

    def test_of_several_the_first_in_etcds_order_counts(self):
        """By the bytes of the key: `10.0.10.0` comes before `10.0.9.0`."""
        leases = [lease("10.0.9.0-24", ME), lease("10.0.10.0-24", ME)]
        assert plan(CONFIG, leases).key == key("10.0.10.0-24")
        assert ownleases.own_leases(leases, ME, CONFIG) == [leases[1], leases[0]]

    def test_an_incompatible_one_has_to_go_and_a_compatible_one_is_still_used(self):
        wrong, right = lease("10.0.1.0-25", ME), lease("10.0.7.0-24", ME)
        made = plan(CONFIG, [right, wrong])
        assert made.reuse is right
        assert made.incompatible == (wrong,)

    def test_what_has_to_go_does_not_block_a_free_subnet(self):
        tiny = replace(CONFIG, subnet_max=IPv4Address("10.0.1.0"))
        wrong = lease("10.0.1.0-25", ME)
        made = plan(tiny, [wrong])
        assert made.step == TakeFree(key("10.0.1.0-24"))
        assert made.incompatible == (wrong,)

    def test_without_a_lease_the_previous_subnet_is_taken_back(self):
        made = plan(CONFIG, [lease("10.0.2.0-24")], previous="10.0.9.0-24")
        assert made.step == TakePrevious(key("10.0.9.0-24"))
        assert made.is_previous
        assert made.reuse is None

    @pytest.mark.parametrize(
        ("held", "previous", "reason"),
        [
            ("10.0.9.0-24", "10.0.9.0-24", "is leased as 10.0.9.0/24"),
            ("10.0.8.0-22", "10.0.9.0-24", "is leased as 10.0.8.0/22"),
            ("10.0.2.0-24", "10.0.9.0-25", "does not fit"),
            ("10.0.2.0-24", "10.0.99.0-24", "does not fit"),
        ],
    )
    def test_a_previous_subnet_that_is_taken_or_does_not_fit_is_given_up(
        self, held, previous, reason
    ):
        made = plan(CONFIG, [lease(held)], previous=previous)
        assert isinstance(made.step, TakeFree)
        assert reason in made.previous_refused

    def test_in_dual_stack_both_parts_of_the_previous_subnet_must_be_free(self):
        held = lease("10.0.2.0-24&fd00:0:0:9::-64")
        made = plan(DUAL, [held], previous="10.0.9.0-24&fd00:0:0:9::-64")
        assert isinstance(made.step, TakeFree)
        assert "fd00:0:0:9::/64" in made.previous_refused

    def test_switching_dual_stack_on_makes_the_old_lease_incompatible(self):
        old = lease("10.0.7.0-24", ME)
        made = plan(DUAL, [old], previous="10.0.7.0-24")
        assert made.incompatible == (old,)
        assert isinstance(made.step, TakeFree)

    def test_a_free_one_overlaps_nothing(self):
        leases = [lease(f"10.0.{n}.0-24") for n in range(1, 20)]
        assert plan(CONFIG, leases).step == TakeFree(key("10.0.20.0-24"))

    def test_nothing_free_is_an_error(self):
        leases = [lease(f"10.0.{n}.0-24") for n in range(1, 21)]
        with pytest.raises(SubnetsExhausted):
            plan(CONFIG, leases)

    def test_in_dual_stack_the_ipv4_address_says_whose_a_lease_is(self):
        theirs = replace(OTHER, public_ipv6=ME.public_ipv6)
        assert ownleases.own_leases([lease("10.0.7.0-24", theirs)], ME, DUAL) == []

    def test_in_ipv6_only_the_ipv6_address_does(self):
        """There every node's IPv4 address is 0.0.0.0; upstream's nodes all take the first lease."""
        mine = replace(ME, public_ip=None)
        theirs = replace(OTHER, public_ip=None)
        first = lease("0.0.0.0-0&fd00:0:0:1::-64", theirs)
        second = lease("0.0.0.0-0&fd00:0:0:2::-64", mine)
        assert ownleases.own_leases([first, second], mine, V6_ONLY) == [second]
        made = plan(V6_ONLY, [first], mine)
        assert isinstance(made.step, TakeFree)

    def test_without_a_public_address_no_lease_is_ours(self):
        nobody = LeaseAttrs()
        assert ownleases.own_leases([lease("10.0.7.0-24", nobody)], nobody, CONFIG) == []

    @given(
        slots=st.lists(st.tuples(st.integers(0, 30), st.sampled_from([ME, OTHER])), max_size=25),
        previous=st.none() | st.integers(0, 30),
        seed=st.integers(0, 9),
    )
    def test_each_planned_subnet_fits_and_belongs_to_no_other_node(self, slots, previous, seed):
        leases = [lease(f"10.0.{slot}.0-24", attrs) for slot, attrs in dict(slots).items()]
        try:
            made = plan(
                CONFIG,
                leases,
                previous=None if previous is None else f"10.0.{previous}.0-24",
                seed=seed,
            )
        except SubnetsExhausted:
            held = {str(known.key.v4) for known in leases}
            assert held >= {f"10.0.{n}.0/24" for n in range(1, 21)}
            return
        assert freesubnets.is_compatible(made.key, CONFIG)
        others = {known.key for known in leases if known.attrs == OTHER}
        assert made.key not in others
        assert not {gone.key for gone in made.incompatible} & others
        assert ip_network(str(made.key.v4)).subnet_of(IPv4Network("10.0.0.0/16"))


NOW = replace(ME, public_ip=IPv4Address("192.0.2.77"), public_ipv6=None)
"""This node with another address than before."""
FORMER = Former(key=key("10.0.7.0-24"), store_lease=7, public=frozenset([ME.public_ip]))


class TestRecognition:
    """Which lease is ours when the address does not tell."""

    def test_our_records_lease_is_kept_when_the_address_has_changed(self):
        old = lease("10.0.7.0-24", ME)
        made = plan(CONFIG, [lease("10.0.2.0-24"), old], NOW, "10.0.7.0-24", former=FORMER)
        assert made.step == Reuse(old)
        assert made.previous_refused == ""

    def test_the_record_goes_before_the_address(self):
        """A virtual address failed over to us; its former holder is down, its pods are not."""
        ours, theirs = lease("10.0.7.0-24", ME), lease("10.0.2.0-24", NOW, store_lease=8)
        made = plan(CONFIG, [theirs, ours], NOW, former=FORMER)
        assert made.step == Reuse(ours)
        assert made.superseded == ()

    def test_and_so_it_does_when_our_own_lease_is_gone(self):
        theirs = lease("10.0.2.0-24", NOW, store_lease=8)
        assert plan(CONFIG, [theirs], NOW, former=FORMER).step == TakePrevious(key("10.0.7.0-24"))

    def test_what_does_not_fit_is_deleted_only_if_it_is_ours(self):
        ours = lease("10.0.7.0-24", ME)
        theirs = lease("10.0.2.0-25", NOW, store_lease=8)
        made = plan(CONFIG, [ours, theirs], NOW, former=FORMER)
        assert made.incompatible == ()
        wide = replace(CONFIG, subnet_len=25)
        made = plan(wide, [ours, theirs], NOW, former=FORMER)
        assert made.incompatible == (ours,)
        assert isinstance(made.step, TakeFree)

    def test_a_reservation_for_our_address_holds_with_any_record(self):
        reserved = lease("10.0.3.0-24", NOW, store_lease=0)
        assert plan(CONFIG, [reserved], NOW, former=FORMER).step == Reuse(reserved)

    def test_the_lease_that_subnet_env_names_is_ours_by_its_address(self):
        """Another daemon ran on this node meanwhile; our record is old."""
        current = lease("10.0.9.0-24", NOW, store_lease=8)
        made = plan(CONFIG, [current], NOW, "10.0.9.0-24", former=FORMER)
        assert made.step == Reuse(current)

    def test_our_former_subnet_under_our_address_is_ours_on_any_etcd_lease(self):
        """Upstream's daemon ran here meanwhile, and a reboot took subnet.env away."""
        current = lease("10.0.7.0-24", NOW, store_lease=8)
        assert plan(CONFIG, [current], NOW, former=FORMER).step == Reuse(current)

    def test_what_we_were_about_to_write_is_ours_and_goes_before_what_we_had(self):
        intended = Former(key=key("10.0.9.0-24"), store_lease=9, public=FORMER.public)
        had, written = lease("10.0.7.0-24", ME), lease("10.0.9.0-24", ME, store_lease=9)
        made = plan(CONFIG, [had, written], NOW, former=FORMER, intended=intended)
        assert made.step == Reuse(written)
        assert made.superseded == (had,)
        made = plan(CONFIG, [had], NOW, former=FORMER, intended=intended)
        assert made.step == Reuse(had)

    def test_what_we_did_not_come_to_write_says_nothing_about_our_address(self):
        """At a first start: the lease under our address is of a daemon before us."""
        intended = Former(key=key("10.0.7.0-24"), store_lease=9, public=FORMER.public)
        theirs = lease("10.0.7.0-24", NOW, store_lease=8)
        assert plan(CONFIG, [theirs], NOW, intended=intended).step == Reuse(theirs)

    @pytest.mark.parametrize(
        ("held", "more"),
        [
            (OTHER, {}),
            (ME, {"store_lease": 8}),
        ],
        ids=["another address than we ever published", "another etcd lease"],
    )
    def test_what_another_node_wrote_under_our_old_key_is_not_ours(self, held, more):
        made = plan(CONFIG, [lease("10.0.7.0-24", held, **more)], NOW, former=FORMER)
        assert isinstance(made.step, TakeFree)
        assert "is leased as 10.0.7.0/24 by" in made.previous_refused

    def test_a_record_that_names_no_address_is_believed(self):
        old = lease("10.0.7.0-24", ME)
        former = replace(FORMER, public=frozenset())
        assert plan(CONFIG, [old], NOW, former=former).step == Reuse(old)

    def test_a_reservation_is_not_known_by_a_record(self):
        """It belongs to its address, and to the node that has that now."""
        reserved = lease("10.0.7.0-24", ME, store_lease=0)
        former = replace(FORMER, store_lease=0)
        assert isinstance(plan(CONFIG, [reserved], NOW, former=former).step, TakeFree)

    @pytest.mark.parametrize(
        "spelling",
        ['{{"VNI":1,"VtepMAC":"{}"}}', '{{"vtepmac":"{}"}}', '{{"VtepMAC":"{}","X":[1]}}'],
    )
    @pytest.mark.parametrize("mac", ["02:00:00:00:00:0a", "02-00-00-00-00-0A", "0200.0000.000a"])
    def test_a_lease_with_our_vtep_mac_is_ours(self, mac, spelling):
        old = lease("10.0.7.0-24", vxlan(1, mac, spelling))
        other = lease("10.0.2.0-24", vxlan(2, "02:00:00:00:00:0b"))
        made = plan(CONFIG, [other, old], vxlan(77, "02:00:00:00:00:0a"))
        assert made.step == Reuse(old)

    @pytest.mark.parametrize(
        "theirs",
        [
            LeaseAttrs(backend_type="extension", backend_data='"02:00:00:00:00:0a"'),
            vxlan(1, "02:00:00:00:00:0a", '{{"Note":"{}","VtepMAC":"02:00:00:00:00:0b"}}'),
            vxlan(1, "02:00:00:00:00:0a", "{}"),
            vxlan(1, "02:00:00:00:00:0a", '{{"VtepMAC":["{}"]}}'),
        ],
    )
    def test_a_mac_elsewhere_in_the_data_says_nothing(self, theirs):
        mine = vxlan(77, "02:00:00:00:00:0a")
        assert ownleases.own_leases([lease("10.0.7.0-24", theirs)], mine, CONFIG) == []

    def test_of_two_with_our_mac_the_newer_is_used_and_the_other_has_to_go(self):
        mine = vxlan(77, "02:00:00:00:00:0a")
        old = lease("10.0.7.0-24", vxlan(1, "02:00:00:00:00:0a"), revision=5)
        new = lease("10.0.8.0-24", vxlan(2, "02:00:00:00:00:0a"), revision=9)
        made = plan(CONFIG, [old, new], mine)
        assert made.step == Reuse(new)
        assert made.superseded == (old,)
        reserved = replace(old, store_lease=0)
        assert plan(CONFIG, [reserved, new], mine).superseded == ()

    def test_a_lease_whose_holder_is_alive_is_not_ours_after_all(self):
        """The record came with a copied disk."""
        old = lease("10.0.7.0-24", ME)
        made = plan(CONFIG, [old], NOW, "10.0.7.0-24", former=FORMER, foreign={old.key})
        assert isinstance(made.step, TakeFree)
        assert made.key != old.key


def lan(*prefixes: str, bridges: tuple[str, ...] = ()) -> Obstacles:
    """Connected prefixes of a node; of a subnet that it has, bridges are none."""

    def judge(texts):
        return Judge(Surroundings(connected={ip_network(t): f"{t} of eth0" for t in texts}))

    return Obstacles(new=judge((*prefixes, *bridges)), kept=judge(prefixes))


class TestObstacles:
    """The own subnet neither equals nor contains what the node is connected to."""

    def test_a_free_subnet_is_drawn_beside_it(self):
        around = lan("10.0.1.0/24", "10.0.3.0/25", bridges=("10.0.2.0/24",))
        drawn = {plan(CONFIG, [], seed=seed, obstacles=around).key for seed in range(200)}
        assert drawn == {key(f"10.0.{n}.0-24") for n in range(4, 21)}

    def test_an_own_lease_in_its_way_is_given_back_and_another_one_is_taken(self):
        mine = lease("10.0.7.0-24", ME)
        made = plan(CONFIG, [mine], previous="10.0.7.0-24", obstacles=lan("10.0.7.0/24"))
        assert isinstance(made.step, TakeFree)
        assert made.key != mine.key
        ((given_back, conflict),) = made.overlapping
        assert given_back == mine
        assert "10.0.7.0/24 of eth0" in str(conflict)
        assert made.incompatible == ()

    def test_of_two_own_leases_the_one_that_is_in_no_ones_way_is_used(self):
        bad, good = lease("10.0.7.0-24", ME), lease("10.0.9.0-24", ME)
        made = plan(CONFIG, [bad, good], obstacles=lan("10.0.7.0/24"))
        assert made.step == Reuse(good)
        assert [one for one, _ in made.overlapping] == [bad]

    def test_the_bridge_of_the_containers_takes_no_subnet_from_its_node(self):
        mine = lease("10.0.7.0-24", ME)
        around = lan(bridges=("10.0.7.0/24",))
        assert plan(CONFIG, [mine], obstacles=around).step == Reuse(mine)
        made = plan(CONFIG, [], previous="10.0.7.0-24", obstacles=around)
        assert made.step == TakePrevious(mine.key)

    def test_a_previous_subnet_in_its_way_is_refused_with_both_sides(self):
        made = plan(CONFIG, [], previous="10.0.7.0-24", obstacles=lan("10.0.7.0/26"))
        assert isinstance(made.step, TakeFree)
        assert made.previous_refused == (
            "previous subnet 10.0.7.0/24 equals or contains the connected prefix "
            "10.0.7.0/26 of eth0"
        )

    def test_none_is_left_with_any_leases(self):
        tiny = replace(CONFIG, subnet_max=IPv4Address("10.0.2.0"))
        with pytest.raises(SubnetsOverlap) as told:
            plan(tiny, [], obstacles=lan("10.0.1.0/24", "10.0.2.7/32"))
        assert told.value.exit_code == 78
        assert "10.0.1.0/24 of eth0; choose a Network" in str(told.value)

    def test_that_others_have_them_as_well_makes_no_difference(self):
        tiny = replace(CONFIG, subnet_max=IPv4Address("10.0.1.0"))
        with pytest.raises(SubnetsOverlap):
            plan(tiny, [lease("10.0.0.0-22")], obstacles=lan("10.0.1.0/24"))

    def test_none_is_left_because_others_have_the_rest(self):
        """Which may end, so it is waited for."""
        tiny = replace(CONFIG, subnet_max=IPv4Address("10.0.2.0"))
        with pytest.raises(SubnetsExhausted) as told:
            plan(tiny, [lease("10.0.2.0-24")], obstacles=lan("10.0.1.0/24"))
        assert "1 of 2 subnets" in str(told.value)
        assert "1 overlap what this node is connected to (10.0.1.0/24" in str(told.value)

    @pytest.mark.parametrize("remembered", ["subnet.env", "record"])
    def test_the_one_that_the_node_had_is_waited_for_if_another_has_it(self, remembered):
        """Its bridge of containers is in it, which is no obstacle to the same subnet."""
        tiny = replace(CONFIG, subnet_max=IPv4Address("10.0.1.0"))
        known = (
            {"previous": "10.0.1.0-24"}
            if remembered == "subnet.env"
            else {"former": Former(key=key("10.0.1.0-24"), store_lease=99)}
        )
        bridge = lan(bridges=("10.0.1.0/24",))
        with pytest.raises(SubnetsExhausted):
            plan(tiny, [lease("10.0.1.0-24")], obstacles=bridge, **known)
        with pytest.raises(SubnetsOverlap):
            plan(tiny, [lease("10.0.1.0-24")], obstacles=lan("10.0.1.0/24"), **known)
        assert plan(tiny, [], obstacles=bridge, **known).key == key("10.0.1.0-24")

    def test_each_family_counts(self):
        held = lease("10.0.7.0-24&fd00:0:0:7::-64", ME)
        made = plan(DUAL, [held], obstacles=lan("fd00:0:0:7::/64"))
        assert [one for one, _ in made.overlapping] == [held]
