"""Keys and values as upstream writes and reads them."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import KeyValue

A = SubnetKey(IPv4Network("10.5.34.0/24"))
DUAL = SubnetKey(IPv4Network("10.5.34.0/24"), IPv6Network("fd00:5:34::/64"))


@pytest.mark.parametrize(
    ("prefix", "config", "subnets"),
    [
        ("/coreos.com/network", b"/coreos.com/network/config", b"/coreos.com/network/subnets/"),
        ("/coreos.com/network/", b"/coreos.com/network/config", b"/coreos.com/network/subnets/"),
        ("//a///b//", b"/a/b/config", b"/a/b/subnets/"),
        ("a/b", b"a/b/config", b"a/b/subnets/"),
        ("", b"config", b"subnets/"),
        ("/", b"/config", b"/subnets/"),
        ("//", b"/config", b"/subnets/"),
        ("/a/./b/../c", b"/a/c/config", b"/a/c/subnets/"),
        ("/netz-ä", "/netz-ä/config".encode(), "/netz-ä/subnets/".encode()),
    ],
)
def test_keys_are_joined_as_gos_path_join_does(prefix, config, subnets):
    assert codec.config_key(prefix) == config
    assert codec.subnets_prefix(prefix) == subnets
    assert codec.lease_key(prefix, A) == subnets + b"10.5.34.0-24"


def test_a_dual_stack_key_has_the_ipv6_part_behind_an_ampersand():
    assert codec.lease_key("/p", DUAL) == b"/p/subnets/10.5.34.0-24&fd00:5:34::-64"
    assert codec.parse_key("/p", b"/p/subnets/10.5.34.0-24&fd00:5:34::-64") == DUAL


@pytest.mark.parametrize(
    "key",
    [
        b"/p/subnets2/10.5.34.0-24",
        b"/p/subnets-old/10.5.34.0-24",
        b"/p/subnets/old/10.5.34.0-24",
        b"/p/subnets/10.5.34.0-24/extra",
        b"/p/subnets/10.5.34.0-24/",
        b"/p/subnets/",
        b"/p/subnets",
        b"/p/config",
        b"/p/subnets/x10.5.34.0-24",
        b"/p/subnets/10.5.34.0-32",
        b"/p/subnets/10.5.34.0-24&fd00::-128",
        b"/p/subnets/10.5.34.0-24&FD00::-64",
        b"/p/subnets/10.5.34.0-24\n",
        b"/p/subnets/\xff\xfe",
        b"/other/subnets/10.5.34.0-24",
    ],
)
def test_a_key_that_is_not_a_subnet_directly_below_subnets_is_no_lease(key):
    assert codec.parse_key("/p", key) is None


def test_the_smallest_value_has_both_addresses_and_nothing_else():
    assert codec.encode_attrs(LeaseAttrs()) == b'{"PublicIP":"0.0.0.0","PublicIPv6":null}'


@pytest.mark.parametrize(
    ("attrs", "value"),
    [
        (
            LeaseAttrs(public_ip=IPv4Address("10.99.0.1")),
            b'{"PublicIP":"10.99.0.1","PublicIPv6":null}',
        ),
        (
            LeaseAttrs(
                public_ip=IPv4Address("10.99.0.1"),
                backend_type="vxlan",
                backend_data='{"VNI":1,"VtepMAC":"de:a0:bb:bc:b0:ba"}',
            ),
            (
                b'{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"vxlan",'
                b'"BackendData":{"VNI":1,"VtepMAC":"de:a0:bb:bc:b0:ba"}}'
            ),
        ),
        (
            LeaseAttrs(public_ip=IPv4Address("10.99.0.1"), backend_type="host-gw"),
            b'{"PublicIP":"10.99.0.1","PublicIPv6":null,"BackendType":"host-gw"}',
        ),
    ],
)
def test_values_are_upstreams_byte_for_byte(attrs, value):
    """The three values are what upstream v0.20.2 and v0.28.9 were seen to write."""
    assert codec.encode_attrs(attrs) == value
    assert codec.decode_attrs(value) == attrs


def test_every_field_has_its_place():
    attrs = LeaseAttrs(
        public_ip=IPv4Address("192.0.2.1"),
        public_ipv6=IPv6Address("2001:db8::1"),
        backend_type="wireguard",
        backend_data='{"PublicKey":"k","Port":51820}',
        backend_v6_data='{"PublicKey":"k6"}',
    )
    value = codec.encode_attrs(attrs)
    assert list(json.loads(value)) == [
        "PublicIP",
        "PublicIPv6",
        "BackendType",
        "BackendData",
        "BackendV6Data",
    ]
    assert codec.decode_attrs(value) == attrs


def test_numbers_in_backend_data_keep_their_digits():
    value = b'{"PublicIP":"1.2.3.4","BackendData":{ "a" : 1.0, "b":12345678901234567890,"c":1E3}}'
    attrs = codec.decode_attrs(value)
    assert attrs.backend_data == '{"a":1.0,"b":12345678901234567890,"c":1E3}'
    assert b'"BackendData":{"a":1.0,"b":12345678901234567890,"c":1E3}' in codec.encode_attrs(attrs)


def test_what_html_would_trip_over_is_escaped_in_raw_data_and_in_the_type():
    attrs = LeaseAttrs(backend_type="a<b>&", backend_data='"<>&\u2028\u2029"')
    assert codec.encode_attrs(attrs) == (
        rb'{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"a\u003cb\u003e\u0026",'
        rb'"BackendData":"\u003c\u003e\u0026\u2028\u2029"}'
    )


def test_encoding_refuses_backend_data_that_is_not_json():
    with pytest.raises(ValueError, match="invalid character"):
        codec.encode_attrs(LeaseAttrs(backend_data="{oops"))


@pytest.mark.parametrize(
    ("value", "attrs"),
    [
        (b"{}", LeaseAttrs()),
        (b"null", LeaseAttrs()),
        (b'{"PublicIP":"0.0.0.0"}', LeaseAttrs()),
        (b'{"publicip":"1.2.3.4"}', LeaseAttrs(public_ip=IPv4Address("1.2.3.4"))),
        (
            b'{"PublicIP":"9.9.9.9","PUBLICIP":"1.2.3.4"}',
            LeaseAttrs(public_ip=IPv4Address("1.2.3.4")),
        ),
        (b'{"PublicIP":"::ffff:1.2.3.4"}', LeaseAttrs(public_ip=IPv4Address("1.2.3.4"))),
        (b'{"Unknown":[1,{"PublicIP":5}]}', LeaseAttrs()),
        (b'{"PublicIPv6":"2001:DB8::1"}', LeaseAttrs(public_ipv6=IPv6Address("2001:db8::1"))),
        (
            b'{"PublicIPv6":"192.0.2.9"}',
            LeaseAttrs(public_ipv6=IPv6Address("::ffff:192.0.2.9")),
        ),
        (b'{"BackendType":null}', LeaseAttrs()),
        (b'{"BackendData":null}', LeaseAttrs(backend_data="null")),
        (
            (
                b'{"PublicIP":"192.168.64.3","BackendType":"vxlan",'
                b'"BackendData":{"VtepMAC":"c6:d2:32:6f:8f:44"}}'
            ),
            LeaseAttrs(
                public_ip=IPv4Address("192.168.64.3"),
                backend_type="vxlan",
                backend_data='{"VtepMAC":"c6:d2:32:6f:8f:44"}',
            ),
        ),
    ],
)
def test_values_are_read_by_gos_rules(value, attrs):
    """Any case of a key, the last of several, unknown ones ignored, values of the v2 era."""
    assert codec.decode_attrs(value) == attrs


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"PublicIP":""}', "PublicIP"),
        (b'{"PublicIP":null}', "PublicIP"),
        (b'{"PublicIP":16909060}', "PublicIP"),
        (b'{"PublicIP":"2001:db8::1"}', "PublicIP"),
        (b'{"PublicIP":"1.2.3"}', "PublicIP"),
        (b'{"PublicIP":["1.2.3.4"]}', "PublicIP"),
        (b'{"PublicIPv6":""}', "PublicIPv6"),
        (b'{"PublicIPv6":6}', "PublicIPv6"),
        (b'{"BackendType":7}', "BackendType is 7"),
        (b"", "unexpected end"),
        (b"x", "invalid character"),
        (b"[]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"{} {}", "after top-level value"),
        (b"\xef\xbb\xbf{}", "invalid character"),
        (b'{"PublicIP":"1.2.3.4"', "unexpected end"),
    ],
)
def test_a_bad_value_is_a_bad_key_with_the_reason(value, reason):
    kv = KeyValue(key=b"/p/subnets/10.5.34.0-24", value=value, mod_revision=7)
    bad = codec.decode_lease("/p", kv)
    assert isinstance(bad, codec.BadKey)
    assert bad.key == kv.key
    assert reason in bad.reason


def test_a_lease_knows_its_etcd_lease_and_revision():
    kv = KeyValue(
        key=b"/p/subnets/10.5.34.0-24",
        value=b'{"PublicIP":"1.2.3.4","PublicIPv6":null}',
        mod_revision=7,
        lease=99,
    )
    lease = codec.decode_lease("/p", kv)
    assert isinstance(lease, Lease)
    assert (lease.key, lease.revision, lease.store_lease) == (A, 7, 99)
    assert lease.attrs.public_ip == IPv4Address("1.2.3.4")
    assert lease.expires is None


def test_a_key_without_an_etcd_lease_is_a_reservation():
    kv = KeyValue(key=b"/p/subnets/10.5.34.0-24", value=b"{}", mod_revision=7)
    lease = codec.decode_lease("/p", kv)
    assert isinstance(lease, Lease)
    assert lease.is_reservation


@given(key=st.binary(max_size=60), value=st.binary(max_size=200))
@example(key=b"/p/subnets/10.5.34.0-24", value=b"[" * 20_000)
@example(key=b"/p/subnets/10.5.34.0-24", value=b'{"PublicIP":1e999999}')
@example(key=b"/p/subnets/10.5.34.0-24", value=b'{"PublicIP":"\\ud800"}')
@example(key=b"/p/subnets/10.5.34.0-24", value=b'{"PublicIPv6":' + b"9" * 5000 + b"}")
@example(key=b"/p/subnets/999.5.34.0-24", value=b"{}")
def test_garbage_never_raises(key, value):
    for whole in (key, b"/p/subnets/" + key, b"/p/subnets/10.5.34.0-24"):
        codec.decode_lease("/p", KeyValue(key=whole, value=value, mod_revision=1))


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)


@given(
    public_ip=st.none() | st.ip_addresses(v=4).filter(lambda ip: int(ip) != 0),
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_type=st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
    data=st.none() | json_texts,
    data6=st.none() | json_texts,
)
def test_what_we_write_we_read_back(public_ip, public_ipv6, backend_type, data, data6):
    attrs = LeaseAttrs(
        public_ip=public_ip,
        public_ipv6=public_ipv6,
        backend_type=backend_type,
        backend_data=data,
        backend_v6_data=data6,
    )
    value = codec.encode_attrs(attrs)
    read = codec.decode_attrs(value)
    assert (read.public_ip, read.public_ipv6) == (public_ip, public_ipv6)
    assert read.backend_type == backend_type
    assert (read.backend_data is None) == (data is None)
    assert codec.encode_attrs(read) == value
    if data is not None:
        assert json.loads(read.backend_data or "") == json.loads(data)


networks4 = st.tuples(st.ip_addresses(v=4), st.integers(1, 31)).map(
    lambda pair: IPv4Network(pair, strict=False)
)
networks6 = st.tuples(st.ip_addresses(v=6), st.integers(0, 127)).map(
    lambda pair: IPv6Network(pair, strict=False)
)


@given(v4=networks4, v6=st.none() | networks6)
def test_keys_survive_the_round_trip(v4, v6):
    key = SubnetKey(v4, v6)
    assert codec.parse_key("/p", codec.lease_key("/p", key)) == key
