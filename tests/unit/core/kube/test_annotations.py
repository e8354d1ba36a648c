"""Names and values of the annotations, as flannel v0.28.9 reads and writes them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import Family
from pyflannel.core.kube import annotations as names
from pyflannel.core.lease import LeaseAttrs

V4, V6 = Family.V4, Family.V6
ADDRESS, ADDRESS6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
VTEP = '{"VNI":1,"VtepMAC":"32:83:56:a9:ae:b8"}'


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/"),
        ("flannel.alpha.coreos.com/", "flannel.alpha.coreos.com/"),
        ("org.com/9", "org.com/9-"),
        ("org.com/9-", "org.com/9-"),
        ("x-y.org_z.com/a_b", "x-y.org_z.com/a_b-"),
    ],
)
def test_a_prefix_gets_its_slash_or_dash(given, prefix):
    assert names.normal_prefix(given) == prefix


@pytest.mark.parametrize("given", ["org", "org.COM", "org.com/PREFIX", "", "/", "a.b/c d"])
def test_what_is_no_prefix_is_refused_with_upstreams_text(given):
    with pytest.raises(ConfigError, match="prefix must be in a format: fqdn/"):
        names.normal_prefix(given)


def test_two_slashes_are_refused():
    with pytest.raises(ConfigError, match="at most single slash"):
        names.normal_prefix("a.b/c/d")


WANTED = {
    "vxlan": (
        LeaseAttrs(public_ip=ADDRESS, backend_type="vxlan", backend_data=VTEP),
        (V4,),
        {"backend-type": "vxlan", "backend-data": VTEP, "public-ip": "192.0.2.1"},
    ),
    "vxlan, dual stack": (
        LeaseAttrs(
            public_ip=ADDRESS,
            public_ipv6=ADDRESS6,
            backend_type="vxlan",
            backend_data=VTEP,
            backend_v6_data=VTEP,
        ),
        (V4, V6),
        {
            "backend-type": "vxlan",
            "backend-data": VTEP,
            "public-ip": "192.0.2.1",
            "backend-v6-data": VTEP,
            "public-ipv6": "2001:db8::1",
        },
    ),
    "vxlan, IPv6 alone": (
        LeaseAttrs(public_ipv6=ADDRESS6, backend_type="vxlan", backend_v6_data=VTEP),
        (V6,),
        {"backend-type": "vxlan", "backend-v6-data": VTEP, "public-ipv6": "2001:db8::1"},
    ),
    "host-gw": (
        LeaseAttrs(public_ip=ADDRESS, backend_type="host-gw"),
        (V4,),
        {"backend-type": "host-gw", "backend-data": "null", "public-ip": "192.0.2.1"},
    ),
    "host-gw, dual stack": (
        LeaseAttrs(public_ip=ADDRESS, public_ipv6=ADDRESS6, backend_type="host-gw"),
        (V4, V6),
        {
            "backend-type": "host-gw",
            "backend-data": "null",
            "public-ip": "192.0.2.1",
            "backend-v6-data": "null",
            "public-ipv6": "2001:db8::1",
        },
    ),
    "udp": (
        LeaseAttrs(public_ip=ADDRESS),
        (V4,),
        {"backend-type": "", "backend-data": "null", "public-ip": "192.0.2.1"},
    ),
}


@pytest.mark.parametrize("case", WANTED)
def test_each_backend_publishes_what_upstreams_does(case):
    attrs, families, expected = WANTED[case]
    wanted = names.encode(attrs, families, {})
    assert {k: v for k, v in wanted.items() if v is not None} == {
        "kube-subnet-manager": "true",
        **expected,
    }
    assert set(wanted) == set(names.PUBLISHED)


def test_keys_of_another_family_or_backend_go():
    there = {"public-ipv6": "2001:db8::1", "backend-v6-data": "null", "backend-type": "vxlan"}
    wanted = names.encode(LeaseAttrs(public_ip=ADDRESS, backend_type="host-gw"), (V4,), {})
    assert names.difference(there, wanted) == {
        "backend-data": "null",
        "backend-type": "host-gw",
        "backend-v6-data": None,
        "kube-subnet-manager": "true",
        "public-ip": "192.0.2.1",
        "public-ipv6": None,
    }


def test_nothing_is_written_when_nothing_differs():
    wanted = names.encode(LeaseAttrs(public_ip=ADDRESS), (V4,), {})
    there = {k: v for k, v in wanted.items() if v is not None} | {"public-ip-overwrite": "x"}
    assert names.difference(there, wanted) == {}


def test_an_overwrite_is_published_and_a_bad_one_named():
    there = {"public-ip-overwrite": "198.51.100.7", "public-ipv6-overwrite": "not an ip"}
    found = names.addresses_of(names.OVERWRITE, there, "example.org/")
    assert found.addresses == {V4: IPv4Address("198.51.100.7")}
    assert "example.org/public-ipv6-overwrite" in found.errors[V6]
    wanted = names.encode(LeaseAttrs(public_ip=ADDRESS), (V4,), found.addresses)
    assert wanted["public-ip"] == "198.51.100.7"


@pytest.mark.parametrize("text", ["not an ip", "0.0.0.0", "224.0.0.1", "127.0.0.1", "2001:db8::1"])
def test_what_no_node_can_send_to_is_no_overwrite(text):
    assert V4 in names.addresses_of(names.OVERWRITE, {"public-ip-overwrite": text}, "p/").errors


@pytest.mark.parametrize("case", WANTED)
def test_what_is_published_reads_back(case):
    attrs, families, _ = WANTED[case]
    written = {k: v for k, v in names.encode(attrs, families, {}).items() if v is not None}
    assert names.decode(written, families) == attrs
    assert names.former_attrs(written) == attrs


@pytest.mark.parametrize(
    ("there", "named"),
    [
        ({}, "public-ip"),
        ({"public-ip": "nonsense"}, "public-ip"),
        ({"public-ip": "192.0.2.1", "backend-data": "{"}, "backend-data"),
    ],
)
def test_what_cannot_be_read_is_named(there, named):
    with pytest.raises(ValueError, match=named):
        names.decode(there, (V4,))


def test_a_node_that_flannel_never_managed_has_no_former_lease():
    assert names.former_attrs({"public-ip": "192.0.2.1"}) is None
