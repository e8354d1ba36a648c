"""Addresses, prefixes and the spelling of a subnet in an etcd key."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.core.ip import (
    Family,
    SubnetKey,
    family_of,
    format_ip,
    format_network,
    parse_ip,
    parse_ipv4,
    parse_ipv4_network,
    parse_ipv6,
    parse_ipv6_network,
    parse_subnet_key,
    spell_ip,
)


@pytest.mark.parametrize("text", ["10.3.5.0", "0.0.0.0", "255.255.255.255"])
def test_dotted_quads_are_ipv4_addresses(text: str) -> None:
    assert parse_ipv4(text) == IPv4Address(text)


def test_ipv4_mapped_text_is_taken_for_the_ipv4_address_it_stands_for() -> None:
    assert parse_ipv4("::ffff:10.3.5.0") == IPv4Address("10.3.5.0")
    assert parse_ipv4("::ffff:a03:500") == IPv4Address("10.3.5.0")
    assert parse_ip("::ffff:10.3.5.0") == IPv4Address("10.3.5.0")


@pytest.mark.parametrize(
    "text",
    [
        "", "10.3.5", "10.03.5.0", "10.3.5.00", "10.3.5.256", "10.3.5.0.1", " 10.3.5.0",
        "10.3.5.0 ", "10.3.5.0/24", "0x0a.3.5.0", "10.3.5.-1", "\u0661.2.3.4", "fd00::1", "::1",
        "::ffff:10.3.5.256", "localhost", "1_0.3.5.0", "10.3.5.0\n",
    ],
)  # fmt: skip
def test_anything_else_is_no_ipv4_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv4 address"):
        parse_ipv4(text)


@pytest.mark.parametrize(
    "text", ["", "10.3.5.0", "fe80::1%eth0", "fd00:::1", "1::2::3", "12345::", "fd00::/64", "::g"]
)
def test_what_is_no_ipv6_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv6 address"):
        parse_ipv6(text)


def test_parse_ip_takes_both_families_and_says_so_when_it_is_neither() -> None:
    assert parse_ip("fd00::1") == IPv6Address("fd00::1")
    assert parse_ip("10.0.0.1") == IPv4Address("10.0.0.1")
    with pytest.raises(ValueError, match="'x' is not an IP address"):
        parse_ip("x")


def test_host_bits_of_a_prefix_are_masked_off() -> None:
    assert parse_ipv4_network("10.3.77.5/16") == IPv4Network("10.3.0.0/16")
    assert parse_ipv6_network("fd00::1/64") == IPv6Network("fd00::/64")
    assert parse_ipv4_network("10.3.0.0/016") == IPv4Network("10.3.0.0/16")
    assert parse_ipv4_network("1.2.3.4/32") == IPv4Network("1.2.3.4/32")
    assert parse_ipv4_network("1.2.3.4/0") == IPv4Network("0.0.0.0/0")


@pytest.mark.parametrize(
    "text",
    [
        "", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/8 ",
        "10.0.0.0/255.0.0.0", "10.3/16", "10.03.0.0/16", "fd00::/48", "::ffff:10.0.0.0/104",
        "10.0.0.0/8/8", "10.0.0.0/1_6",
    ],
)  # fmt: skip
def test_other_notations_of_a_prefix_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_ipv4_network(text)


@pytest.mark.parametrize("text", ["", "fd00::", "fd00::/129", "10.0.0.0/8", "fe80::1%eth0/64"])
def test_other_notations_of_an_ipv6_prefix_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_ipv6_network(text)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("::", "::"),
        ("::1", "::1"),
        ("::ff:ffff", "::ff:ffff"),
        ("::1.2.3.4", "1.2.3.4"),
        ("::100:0", "1.0.0.0"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("::1:0:0", "::1:0:0"),
        ("FD00:0:0:1::", "fd00:0:0:1::"),
        ("1:0:0:2:0:0:3:4", "1::2:0:0:3:4"),
        ("1:0:2:3:4:5:6:7", "1:0:2:3:4:5:6:7"),
        ("1:0:0:2:0:0:0:3", "1:0:0:2::3"),
    ],
)
def test_ipv6_addresses_print_as_upstream_prints_them(address: str, text: str) -> None:
    assert format_ip(IPv6Address(address)) == text


def test_spelling_keeps_the_family_where_upstream_does_not() -> None:
    assert spell_ip(IPv6Address("::1.2.3.4")) == "::102:304"
    assert spell_ip(IPv6Address("::ffff:1.2.3.4")) == "::ffff:102:304"
    assert spell_ip(IPv4Address("1.2.3.4")) == "1.2.3.4"


def test_prefixes_print_with_their_length() -> None:
    assert format_network(IPv4Network("10.5.34.0/24")) == "10.5.34.0/24"
    assert format_network(IPv6Network("fd00:5:34::/64")) == "fd00:5:34::/64"


def test_a_family_knows_its_width_its_number_and_its_members() -> None:
    assert (Family.V4.bits, Family.V6.bits) == (32, 128)
    assert (Family.V4.af, Family.V6.af) == (2, 10)
    assert family_of(IPv4Address(1)) is Family.V4
    assert family_of(IPv6Network("::/0")) is Family.V6
    assert str(Family.V6) == "IPv6"


@settings(deadline=None)
@given(st.ip_addresses())
def test_a_spelled_address_reads_back(address: IPv4Address | IPv6Address) -> None:
    parse = parse_ipv4 if isinstance(address, IPv4Address) else parse_ipv6
    assert parse(spell_ip(address)) == address


@pytest.mark.parametrize(
    ("text", "v4", "v6"),
    [
        ("10.5.34.0-24", "10.5.34.0/24", None),
        ("10.12.13.0-24&fd00:12:13::-56", "10.12.13.0/24", "fd00:12:13::/56"),
        ("10.0.0.0-8", "10.0.0.0/8", None),
        ("0.0.0.0-0&fd00::-64", None, "fd00::/64"),
        ("255.255.255.254-31", "255.255.255.254/31", None),
    ],
)
def test_subnet_keys_are_read_and_written(text: str, v4: str | None, v6: str | None) -> None:
    key = parse_subnet_key(text)
    assert key == SubnetKey(IPv4Network(v4) if v4 else None, IPv6Network(v6) if v6 else None)
    assert str(key) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "10.5.34.0",
        "10.5.34.0-",
        "10.5.34-24",
        "10.5.34.0.1-24",
        "10.5.34.0/24",
        "10.5.34.256-24",
        "10.5.34.0-x",
        "10.5.34.0--24",
        "10.05.34.0-24",
        "10.5.34.7-24",
        "255.255.255.255-32",
        "10.5.34.0-33",
        "0.0.0.0-0",
        "0.0.0.0-0&::-0",
        "10.5.34.0-24&",
        "10.5.34.0-24&fd00::",
        "10.5.34.0-24&fd00::-128",
        "10.5.34.0-24&fd00::1-64",
        "10.5.34.0-24&FD00::-64",
        "10.5.34.0-24&zz::-64",
        "10.5.34.0-24&::ffff:1.2.3.4-120",
        "10.5.34.0-24&fd00::-64&fd01::-64",
        "10.5.34.0-24\n",
        "10.5.34.0-24/x",
        "x10.5.34.0-24",
        "fd00::-64",
    ],
)
def test_other_keys_are_no_subnets(text: str) -> None:
    assert parse_subnet_key(text) is None


_v4_nets = st.builds(
    lambda n, length: IPv4Network((n, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 31),
)
_v6_nets = st.builds(
    lambda n, length: IPv6Network((n, length), strict=False),
    st.integers(0, 2**128 - 1) | st.integers(0, 2**48),
    st.integers(1, 127),
)
_keys = st.builds(SubnetKey, _v4_nets, st.none() | _v6_nets) | st.builds(
    SubnetKey, st.none(), _v6_nets
)


@settings(deadline=None)
@given(_keys)
def test_a_written_key_reads_back(key: SubnetKey) -> None:
    """Also for networks in ::/96, whose addresses upstream would print as dotted quads."""
    assert parse_subnet_key(str(key)) == key


@settings(deadline=None)
@given(st.text(alphabet="0123456789.-&:abcdf x", max_size=40))
def test_reading_a_key_never_raises(text: str) -> None:
    key = parse_subnet_key(text)
    assert key is None or key.v4 is not None or key.v6 is not None


@settings(deadline=None, max_examples=30)
@given(st.lists(_keys, max_size=8))
def test_keys_have_an_order_without_any_of_their_parts(keys: list[SubnetKey]) -> None:
    ordered = sorted(keys)
    assert all(not b < a for a, b in itertools.pairwise(ordered))
    keys.reverse()
    assert sorted(keys) == ordered


def test_a_key_gives_its_parts_by_family_and_describes_itself() -> None:
    key = SubnetKey(IPv4Network("10.5.34.0/24"), IPv6Network("fd00:5:34::/64"))
    assert key.subnet(Family.V4) == IPv4Network("10.5.34.0/24")
    assert key.subnet(Family.V6) == IPv6Network("fd00:5:34::/64")
    assert key.describe() == "10.5.34.0/24 + fd00:5:34::/64"
