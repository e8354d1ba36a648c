"""Names of etcd's hosts: a DNS server that does not answer is not waited for."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import asynccontextmanager

import pytest

from pyflannel.store import names as names_module
from pyflannel.store.names import FRESH_S, Names, is_address


class Dns:
    """A resolver that can be silent."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, tuple[str, ...]] = {}
        self.answering = threading.Event()
        self.answering.set()

    def resolve(self, host: str) -> tuple[str, ...]:
        self.asked.append(host)
        self.answering.wait(10)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self.answers[host]


@pytest.fixture
def dns() -> Dns:
    return Dns()


@pytest.fixture
def time() -> list[float]:
    return [0.0]


@pytest.fixture
@asynccontextmanager
async def names(dns, time, monkeypatch):
    monkeypatch.setattr(names_module, "PATIENCE_S", 0.0)
    names = Names(dns.resolve, lambda: time[0])
    try:
        yield names
    finally:
        await names.close()
        dns.answering.set()


@pytest.mark.parametrize(
    ("host", "address"),
    [("192.0.2.1", True), ("fd00::1", True), ("fe80::1%eth0", True), ("etcd.example", False)],
)
def test_addresses_are_not_looked_up(host, address):
    assert is_address(host) is address


async def test_an_answer_is_used_for_a_while(dns, names, time):
    assert await names.addresses("192.0.2.1") == ("192.0.2.1",)
    dns.answers["a"] = ("192.0.2.1", "fd00::1")
    for _ in range(3):
        assert await names.addresses("a") == ("192.0.2.1", "fd00::1")
    assert dns.asked == ["a"]
    dns.answers["a"] = ("192.0.2.2",)
    time[0] = FRESH_S
    await names.addresses("a")
    await asyncio.sleep(0.05)
    assert await names.addresses("a") == ("192.0.2.2",)
    assert dns.asked == ["a", "a"]


async def test_a_name_that_was_known_is_known_when_the_server_is_dead(dns, names, time):
    dns.answers["a"] = ("192.0.2.1",)
    await names.addresses("a")
    time[0] = FRESH_S
    dns.answering.clear()
    for _ in range(20):
        assert await names.addresses("a") == ("192.0.2.1",)
    await asyncio.sleep(0.05)
    assert dns.asked == ["a", "a"], "one look-up at a time"


async def test_names_that_are_never_answered_do_not_hold_up_others(dns, names, time):
    dns.answering.clear()
    waiting = [asyncio.create_task(names.addresses("abcdefg"[n % 7])) for n in range(50)]
    await asyncio.sleep(0.05)
    assert len(dns.asked) == 7
    assert await asyncio.wait_for(names.addresses("192.0.2.9"), 5) == ("192.0.2.9",)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    # The look-up went on, and its answer is there for the next one.
    dns.answers["a"] = ("192.0.2.1",)
    dns.answering.set()
    assert await asyncio.wait_for(names.addresses("a"), 5) == ("192.0.2.1",)
    assert dns.asked.count("a") == 1


async def test_an_unknown_name_is_asked_for_again(dns, names, time):
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            await names.addresses("a")
    assert dns.asked == ["a", "a"]


async def test_of_names_that_fail_the_former_answer_stays(dns, names, time):
    dns.answers["a"] = ("192.0.2.1",)
    await names.addresses("a")
    time[0] = FRESH_S
    del dns.answers["a"]
    assert await names.addresses("a") == ("192.0.2.1",)
