"""Endpoints and certificates: what is accepted, and how a mistake is named."""

from __future__ import annotations

import pytest

from pyflannel.core.errors import EXIT_CONFIG, StoreConfigError
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd.endpoints import parse_endpoints, tls_context


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("http://127.0.0.1:4001", "http://127.0.0.1:2379"), None),
        (("http://a:1,http://b:2",), ["http://a:1", "http://b:2"]),
        (("http://a:1", "", "http://b:2", ""), ["http://a:1", "http://b:2"]),
        (("http://a:2379/",), ["http://a:2379"]),
        (("a:2379",), ["http://a:2379"]),
        (("[::1]:2379",), ["http://[::1]:2379"]),
        (("https://[fd00::1]:2379",), ["https://[fd00::1]:2379"]),
        (("http://a:1", "http://a:1"), ["http://a:1"]),
        (("HTTP://Etcd:1",), ["http://etcd:1"]),
    ],
)
def test_endpoints_are_read_as_gos_client_reads_them(texts, expected):
    assert [str(e) for e in parse_endpoints(texts)] == (expected or list(texts))


def test_the_first_endpoint_decides_about_tls_for_all():
    assert [str(e) for e in parse_endpoints(["https://a:1", "http://b:2"])] == [
        "https://a:1",
        "https://b:2",
    ]
    assert [str(e) for e in parse_endpoints(["http://a:1", "https://b:2"])] == [
        "http://a:1",
        "http://b:2",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" http://a:1", "space"),
        ("http://a:1 ", "space"),
        ("ftp://a:1", "http:// or https://"),
        ("unix:///run/etcd", "http:// or https://"),
        ("http://a", "no port"),
        ("a", "no port"),
        ("http://:2379", "no host"),
        ("http://a:99999", "not a URL"),
        ("http://a:x", "not a URL"),
        ("http://[::1:2379", "not a URL"),
        ("", "names no endpoint"),
        (",,", "names no endpoint"),
    ],
)
def test_a_bad_endpoint_is_named(text, problem):
    with pytest.raises(StoreConfigError, match=problem) as caught:
        parse_endpoints([text])
    assert "--etcd-endpoints" in str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG


def test_a_password_in_an_endpoint_is_refused_and_not_repeated():
    with pytest.raises(StoreConfigError) as caught:
        parse_endpoints(["http://root:hunter2@a:2379"])
    assert "hunter2" not in str(caught.value)
    assert "--etcd-username" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (EtcdOptions(certfile="/x.pem"), "--etcd-certfile"),
        (EtcdOptions(keyfile="/x.key"), "--etcd-keyfile"),
    ],
)
def test_half_a_key_pair_is_an_error_that_names_the_flag(options, flag):
    with pytest.raises(StoreConfigError, match=f"^{flag} is given without"):
        tls_context(options, used=True)


@pytest.mark.parametrize("used", [True, False])
def test_files_that_cannot_be_read_are_named_with_their_flag(used, tmp_path):
    """Also while TLS is not used: the mistake should not wait for the day it is."""
    with pytest.raises(StoreConfigError, match=r"^--etcd-cafile /no/such/ca.pem: No such file"):
        tls_context(EtcdOptions(cafile="/no/such/ca.pem"), used=used)
    there = tmp_path / "cert.pem"
    there.write_text("")
    pair = EtcdOptions(certfile=str(there), keyfile="/no/such/key.pem")
    with pytest.raises(StoreConfigError, match=r"^--etcd-keyfile /no/such/key.pem: No such file"):
        tls_context(pair, used=used)


def test_files_that_are_no_certificates_are_named_with_their_flag(tmp_path):
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("hello")
    with pytest.raises(StoreConfigError, match=f"^--etcd-cafile {garbage}: no certificate"):
        tls_context(EtcdOptions(cafile=str(garbage)), used=True)
    pair = EtcdOptions(certfile=str(garbage), keyfile=str(garbage))
    with pytest.raises(StoreConfigError, match=f"^--etcd-certfile {garbage}, --etcd-keyfile"):
        tls_context(pair, used=True)


def test_without_https_and_without_files_there_is_nothing_to_set_up():
    assert tls_context(EtcdOptions(), used=False) is None


@pytest.mark.parametrize("url", ["http://u:S3,cret@a:1", "http://u:S3/cret@a:1", "u:S3@cret@a:1"])
def test_no_part_of_a_password_in_a_url_is_repeated(url):
    with pytest.raises(StoreConfigError, match="etcd-username") as caught:
        parse_endpoints([f"http://b:2,{url}"])
    assert "S3" not in str(caught.value)
    assert "cret" not in str(caught.value)
