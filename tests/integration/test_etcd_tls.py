"""TLS: with a CA alone, with a client certificate, and every way in which it does not fit."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyflannel.core.errors import StoreConfigError, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.store.etcd.store import EtcdStore
from pyflannel.testing.certs import Authority, Certificate
from pyflannel.testing.etcdserver import EtcdServer, ServerTLS

pytestmark = pytest.mark.slow


@dataclass
class Pki:
    ca: Authority
    other: Authority
    server: Certificate
    elsewhere: Certificate
    client: Certificate
    stranger: Certificate


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Pki:
    base = tmp_path_factory.mktemp("pki")
    ca, other = Authority(base / "ca"), Authority(base / "other", "another CA")
    return Pki(
        ca=ca,
        other=other,
        server=ca.issue("server"),
        elsewhere=ca.issue("elsewhere", hosts="DNS:etcd.example,IP:192.0.2.1"),
        client=ca.issue("client"),
        stranger=other.issue("stranger"),
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(find_etcd(), id="packaged"),
        pytest.param(find_etcd(packaged=False), id="debian"),
    ],
)
def binary(request) -> Path:
    return request.param


@pytest.fixture(scope="module")
def tls_server(pki, binary, tmp_path_factory) -> Iterator[EtcdServer]:
    tls = ServerTLS(certificate=pki.server, ca=pki.ca.bundle)
    with EtcdServer(tmp_path_factory.mktemp("tls"), binary=binary, tls=tls) as running:
        yield running


@pytest.fixture(scope="module")
def mutual_server(pki, binary, tmp_path_factory) -> Iterator[EtcdServer]:
    tls = ServerTLS(certificate=pki.server, ca=pki.ca.bundle, require_client_cert=True)
    with EtcdServer(tmp_path_factory.mktemp("mutual"), binary=binary, tls=tls) as running:
        yield running


@pytest.fixture(scope="module")
def plain_server(binary, tmp_path_factory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("plain"), binary=binary) as running:
        yield running


def options(endpoint: str, ca: Authority | None, client: Certificate | None = None) -> EtcdOptions:
    return EtcdOptions(
        endpoints=(endpoint,),
        cafile=str(ca.bundle) if ca else "",
        certfile=str(client.cert) if client else "",
        keyfile=str(client.key) if client else "",
    )


def works(settings: EtcdOptions) -> None:
    """Requests and the watch go through."""

    async def main() -> None:
        store = EtcdStore(settings)
        try:
            header = await store.put(b"/k", b"v")
            async with aclosing(store.watch_prefix(b"/k", header.revision)) as stream:
                events = []
                while not events:
                    events += (await anext(stream)).events
        finally:
            await store.close()

    asyncio.run(main())


def fails(settings: EtcdOptions, *told: str) -> None:
    """Requests and the watch fail with `StoreUnavailable`, the endpoint and these words."""

    async def main() -> None:
        store = EtcdStore(settings)
        try:
            for attempt in (store.get(b"/k"), anext(store.watch_prefix(b"/k", 1))):
                with pytest.raises(StoreUnavailable) as caught:
                    await attempt
                message = str(caught.value)
                assert settings.endpoints[0] in message
                for word in told:
                    assert word in message, message
        finally:
            await store.close()

    asyncio.run(main())


def test_a_ca_alone_is_enough(tls_server, pki):
    """Upstream ignores `--etcd-cafile` without a client certificate."""
    works(options(tls_server.endpoint, pki.ca))


def test_a_client_certificate_is_shown_where_it_is_asked_for(mutual_server, pki):
    works(options(mutual_server.endpoint, pki.ca, pki.client))


def test_a_client_certificate_does_no_harm_where_none_is_asked_for(tls_server, pki):
    works(options(tls_server.endpoint, pki.ca, pki.client))


def test_a_missing_client_certificate_is_named_with_its_flags(mutual_server, pki):
    fails(options(mutual_server.endpoint, pki.ca), "--etcd-certfile")


def test_a_client_certificate_of_another_ca_is_not_accepted(mutual_server, pki):
    fails(options(mutual_server.endpoint, pki.ca, pki.stranger), "client certificate")


def test_an_unknown_ca_is_named_with_its_flag(tls_server, pki):
    fails(options(tls_server.endpoint, pki.other), "TLS", "--etcd-cafile")
    fails(options(tls_server.endpoint, None), "TLS", "--etcd-cafile")


def test_the_environment_cannot_change_whom_we_trust(tls_server, pki, monkeypatch):
    """`requests` would prefer these variables to what the flags say."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pki.ca.bundle))
    monkeypatch.setenv("CURL_CA_BUNDLE", str(pki.ca.bundle))
    fails(options(tls_server.endpoint, pki.other), "TLS", "--etcd-cafile")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pki.other.bundle))
    works(options(tls_server.endpoint, pki.ca))


def test_proxy_variables_are_not_for_etcd(plain_server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    works(options(plain_server.endpoint, None))


def test_a_certificate_for_another_address_is_named(pki, binary, tmp_path):
    tls = ServerTLS(certificate=pki.elsewhere, ca=pki.ca.bundle)
    with EtcdServer(tmp_path / "etcd", binary=binary, tls=tls) as server:
        fails(options(server.endpoint, pki.ca), "TLS", "another address")


def test_a_certificate_for_another_name_is_named(pki, binary, tmp_path):
    tls = ServerTLS(certificate=pki.elsewhere, ca=pki.ca.bundle)
    with EtcdServer(tmp_path / "etcd", binary=binary, tls=tls) as server:
        by_name = server.endpoint.replace("127.0.0.1", "localhost")
        fails(options(by_name, pki.ca), "TLS", "another host name")


def test_http_to_a_tls_port_is_told_to_be_https(tls_server):
    fails(options(tls_server.endpoint.replace("https", "http"), None), "https://")


def test_https_to_a_plain_port_is_told_to_be_http(plain_server, pki):
    fails(options(plain_server.endpoint.replace("http", "https"), pki.ca), "write http://")


def test_the_system_cas_are_used_when_no_ca_is_given(tls_server, pki, monkeypatch):
    """As upstream does; certifi's bundle, which `requests` would use, is not the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca.bundle))
    works(options(tls_server.endpoint, None))


def test_certificates_given_for_a_plain_endpoint_are_not_used(plain_server, pki):
    works(options(plain_server.endpoint, pki.ca, pki.client))


def test_an_encrypted_key_is_an_error_and_no_password_is_asked_for(pki, tmp_path):
    locked = tmp_path / "locked.key"
    command = ["openssl", "pkcs8", "-topk8", "-in", str(pki.client.key), "-out", str(locked)]
    command += ["-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
    settings = EtcdOptions(
        endpoints=("https://127.0.0.1:1",), certfile=str(pki.client.cert), keyfile=str(locked)
    )
    with pytest.raises(StoreConfigError, match="unencrypted key"):
        EtcdStore(settings)


def test_a_key_of_another_certificate_is_an_error(pki):
    settings = EtcdOptions(
        endpoints=("https://127.0.0.1:1",),
        certfile=str(pki.client.cert),
        keyfile=str(pki.stranger.key),
    )
    with pytest.raises(StoreConfigError, match="the key is not the certificate's"):
        EtcdStore(settings)
