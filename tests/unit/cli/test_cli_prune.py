"""`pyflannel leases prune`: it lists, deletes only when told, and refuses without a history."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.cli import common, leases, prune
from pyflannel.core.errors import LeaseError, UsageError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.lease import LeaseAttrs
from pyflannel.report.codec import encode
from pyflannel.report.model import NodeReport, PeerReport, ProbeReport
from pyflannel.store.etcd import codec
from pyflannel.testing.fakeclock import FakeClock
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.support.schema import check_printed

PREFIX = "/coreos.com/network"
NOW = 1_700_000_000.0
HOUR = 3600.0


def gone(number: int) -> PeerReport:
    return PeerReport(
        subnet=f"10.5.{number}.0/24",
        public_ip=f"192.0.2.{number}",
        state="down",
        cause="away",
        last_heard=NOW - 3 * HOUR,
        underlay_heard=NOW - 3 * HOUR,
    )


REPORT = NodeReport(
    now=NOW,
    started=NOW - 9 * HOUR,
    probes=ProbeReport(probed="tunnel", interval_s=10, states={"up": 5, "down": 2}),
    peers=[gone(7), gone(8), PeerReport(subnet="10.5.9.0/24")],
)


class Cluster:
    """An etcd with leases of 7 and 8, the second without a time limit, and a daemon."""

    def __init__(self) -> None:
        self.etcd = FakeEtcd(FakeClock())
        self.report = REPORT
        for number in (7, 8):
            key = SubnetKey(IPv4Network(f"10.5.{number}.0/24"))
            attrs = LeaseAttrs(public_ip=IPv4Address(f"192.0.2.{number}"))
            lease = self.etcd.grant(86_400) if number == 7 else 0
            self.etcd.put(codec.lease_key(PREFIX, key), codec.encode_attrs(attrs), lease=lease)

    def subnets(self) -> set[str]:
        there = (codec.lease_key(PREFIX, SubnetKey(IPv4Network(f"10.5.{n}.0/24"))) for n in (7, 8))
        return {key.decode().rpartition("/")[2] for key in there if key in self.etcd._kvs}


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster()

    def with_store(_options, work):
        import asyncio

        async def go():
            return await work(FakeStore(made.etcd))

        return asyncio.run(go())

    monkeypatch.setattr(prune, "with_store", with_store)
    monkeypatch.setattr(prune, "SystemClock", lambda: Patient(made.etcd.clock))
    monkeypatch.setattr(prune.status, "ask", lambda *_: encode(made.report))
    monkeypatch.setattr(common.unit, "environment", lambda: ({}, ""))
    return made


class Patient:
    """A clock whose sleepers are woken at once, an hour later."""

    def __init__(self, clock: FakeClock) -> None:
        self.time, self.monotonic = clock.time, clock.monotonic
        self._clock = clock

    async def sleep(self, seconds: float) -> None:
        await self._clock.advance(seconds)


def run(capsys, *words: str) -> tuple[int, dict]:
    code = leases.main(["prune", "--silent-for", "2h", "--json", *words])
    return code, check_printed("leases-prune", capsys.readouterr().out)


def test_it_lists_and_deletes_nothing(cluster, capsys):
    code, said = run(capsys)
    assert code == 0
    assert [each["subnet"] for each in said["silent"]] == ["10.5.7.0/24", "10.5.8.0/24"]
    assert [each["subnet"] for each in said["unclear"]] == ["10.5.9.0/24"]
    assert cluster.subnets() == {"10.5.7.0-24", "10.5.8.0-24"}
    assert run(capsys, "--yes", "--dry-run")[1]["released"] == []
    assert cluster.subnets() == {"10.5.7.0-24", "10.5.8.0-24"}


def test_with_yes_the_leases_go_and_a_reservation_stays(cluster, capsys):
    code, said = run(capsys, "--yes")
    assert said["released"] == ["10.5.7.0/24"]
    assert "no time limit" in said["kept"]["10.5.8.0/24"]
    assert code == 69
    assert cluster.subnets() == {"10.5.8.0-24"}


def test_people_are_told_how_long_and_what_was_done(cluster, capsys):
    assert leases.main(["prune", "--silent-for=90m"]) == 0
    text = capsys.readouterr().out
    assert "10.5.7.0/24 of 192.0.2.7: silent for 3 h" in text
    assert "--yes releases" in text
    assert "left alone: 10.5.9.0/24" in text


def test_without_a_history_it_refuses(cluster):
    with pytest.raises(LeaseError, match="watching for 9 h"):
        leases.main(["prune", "--silent-for", "1d", "--yes"])
    assert cluster.subnets() == {"10.5.7.0-24", "10.5.8.0-24"}


@pytest.mark.parametrize(
    "words",
    [
        ["prune"],
        ["list", "--silent-for", "2h"],
        ["list", "--yes"],
        ["prune", "--silent-for", "soon"],
        ["prune", "--silent-for", "5m"],
        ["prune", "--silent-for", "-1h"],
    ],
)
def test_words_that_make_no_sense_are_refused(cluster, words):
    with pytest.raises(UsageError):
        leases.main(words)


@pytest.mark.parametrize(
    ("text", "value"), [("90m", 5400), ("2h", 7200), ("1d", 86_400), ("7200", 7200)]
)
def test_times(text, value):
    assert prune.seconds(text) == value
