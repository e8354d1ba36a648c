"""Endpoints that SRV records name: which are used, and when they are asked for again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pyflannel.aio.threads import ThreadPool
from pyflannel.core.errors import StoreConfigError, StoreUnavailable
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd import discovery as discovery_module
from pyflannel.store.etcd.discovery import Discovery, DiscoveryError
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import EndpointFailure
from pyflannel.store.etcd.store import EtcdStore
from tests.support.dns import DnsServer
from tests.support.stores import answered_by

TLS = "_etcd-client-ssl._tcp.example.com."
PLAIN = "_etcd-client._tcp.example.com."
HEADER = {"revision": "9", "cluster_id": "1", "member_id": "2"}


@pytest.fixture
def dns(monkeypatch):
    """A DNS server on loopback, which every look-up asks."""
    import dns.asyncresolver

    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))
    server = DnsServer(bound)
    port = bound.getsockname()[1]

    class Resolver(dns.asyncresolver.Resolver):
        def __init__(self) -> None:
            super().__init__(configure=False)
            self.nameservers, self.port = ["127.0.0.1"], port

    monkeypatch.setattr(dns.asyncresolver, "Resolver", Resolver)
    yield server
    server.close()


def discover(**options: object) -> list[Endpoint]:
    async def main() -> list[Endpoint]:
        threads = ThreadPool("test", 1)
        with_domain = EtcdOptions(**{"discovery_srv": "example.com", **options})
        try:
            return list(await Discovery(with_domain, threads, random.Random(1)).endpoints())
        finally:
            await threads.close(1.0)

    return asyncio.run(main())


def test_secure_endpoints_are_used_alone_where_there_are_some(dns):
    dns.zone = {
        (TLS, "SRV"): ["20 1 2379 b.example.com.", "10 1 2378 a.example.com."],
        (PLAIN, "SRV"): ["0 1 2379 c.example.com."],
    }
    assert discover() == [
        Endpoint("https", "a.example.com", 2378),
        Endpoint("https", "b.example.com", 2379),
    ]


def test_plain_ones_are_used_where_there_are_no_others(dns):
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 c.example.com."]}
    assert discover() == [Endpoint("http", "c.example.com", 2379)]


def test_one_of_several_clusters_of_a_domain_has_a_name(dns):
    dns.zone = {("_etcd-client-ssl-blue._tcp.example.com.", "SRV"): ["0 1 2379 d.example.com."]}
    assert [one.host for one in discover(discovery_srv_name="blue")] == ["d.example.com"]


@pytest.mark.parametrize(
    "options", [{"cafile": "/ca.pem"}, {"certfile": "/c.pem"}, {"insecure_discovery": False}]
)
def test_dns_cannot_take_the_encryption_away(dns, options):
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 c.example.com."]}
    with pytest.raises(DiscoveryError, match="not used, as TLS is asked for"):
        discover(**options)


def test_records_that_are_not_trusted_have_certificates_of_the_domain(dns):
    dns.zone = {(TLS, "SRV"): ["0 1 2379 a.example.com."]}
    (endpoint,) = discover(insecure_discovery=False)
    assert (endpoint.host, endpoint.certified) == ("a.example.com", "example.com")


@pytest.mark.parametrize("records", [[], ["0 0 0 ."]], ids=["no record", "not offered"])
def test_where_there_is_none_the_names_that_were_asked_are_said(dns, records):
    dns.zone = {(TLS, "SRV"): records} if records else {}
    with pytest.raises(DiscoveryError) as caught:
        discover()
    assert "_etcd-client-ssl._tcp.example.com: " in str(caught.value)
    assert "_etcd-client._tcp.example.com: no such record" in str(caught.value)


def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch):
    import dns.asyncresolver

    monkeypatch.setattr(discovery_module, "LOOK_UP_S", 0.1)
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as deaf:
        deaf.bind(("127.0.0.1", 0))

        class Resolver(dns.asyncresolver.Resolver):
            def __init__(self) -> None:
                super().__init__(configure=False)
                self.nameservers, self.port = ["127.0.0.1"], deaf.getsockname()[1]

        monkeypatch.setattr(dns.asyncresolver, "Resolver", Resolver)
        with pytest.raises(DiscoveryError, match="does not answer in time"):
            discover()


class Store(EtcdStore):
    """Hosts that live answer."""

    def __init__(self, **options: object) -> None:
        options = {"discovery_srv": "example.com", **options}
        super().__init__(EtcdOptions(**options), connect=answered_by(self._answer))
        self.alive = {"a.example.com"}
        self.asked: list[str] = []

    async def _answer(self, endpoint, path, body, token):
        self.asked.append(endpoint.host)
        if endpoint.host not in self.alive:
            raise EndpointFailure("connection refused")
        return {"header": HEADER, "kvs": []}


@pytest.fixture
@asynccontextmanager
async def store(dns) -> AsyncIterator[Store]:
    store = Store()
    try:
        yield store
    finally:
        await store.close()


async def test_the_records_are_read_once_and_again_when_all_endpoints_fail(store, dns):
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 a.example.com."]}

    assert store.describe() == "the SRV records of example.com"
    for _ in range(3):
        await store.get(b"k")
    assert dns.asked.count((PLAIN, "SRV")) == 1
    assert store.describe() == "http://a.example.com:2379"
    store.alive = {"b.example.com"}
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 b.example.com."]}
    with pytest.raises(StoreUnavailable, match=r"a\.example\.com"):
        await store.get(b"k")
    await store.get(b"k")
    assert store.asked[-1] == "b.example.com"
    assert dns.asked.count((PLAIN, "SRV")) == 2


async def test_endpoints_that_are_known_are_used_although_dns_has_nothing_any_more(store, dns):
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 a.example.com."]}

    await store.get(b"k")
    store.alive, dns.zone = set(), {}
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="connection refused"):
            await store.get(b"k")
    store.alive = {"a.example.com"}
    await store.get(b"k")


async def test_without_any_endpoint_it_is_said_why_and_asked_again(store, dns):
    with pytest.raises(StoreUnavailable, match="no etcd endpoint is known: _etcd-client-ssl"):
        await store.get(b"k")
    dns.zone = {(PLAIN, "SRV"): ["0 1 2379 a.example.com."]}
    await store.get(b"k")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"endpoints": ("http://192.0.2.1:2379",)}, "both given"),
        ({"discovery_srv": "", "discovery_srv_name": "x"}, "without --etcd-discovery-srv"),
        ({"discovery_srv": "a b"}, "no name that DNS could know"),
        ({"discovery_srv_name": "x/y"}, "no name that DNS could know"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_the_start(options, said):
    with pytest.raises(StoreConfigError, match=said):
        Store(**options)


def test_the_resolver_costs_nothing_where_no_records_are_asked_for():
    program = "import sys, pyflannel.store.etcd.store; print('dns' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "False\n"
