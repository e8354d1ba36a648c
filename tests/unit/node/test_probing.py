"""Whether a node looks for lost checksums: if its backend minds, and peers are probed."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.ip import Family, IPAddress
from pyflannel.core.lease import LeaseAdded
from pyflannel.node.probing import Probing
from pyflannel.probe.checksums import LostChecksums
from pyflannel.report.model import NetworkReport
from pyflannel.testing.fakeclock import FakeClock
from tests.support.echoes import FakeEchoes
from tests.support.overlay import Machine, config, lease

KNOWN = "lost checksums are not looked for: peers are not probed"


class Refused:
    """Answers are there for what was written whole alone."""

    def __init__(self, _address: IPAddress) -> None:
        self.whole = False

    def send(self, *, written: bool) -> int:
        self.whole = written
        return 0

    def answered(self) -> bool:
        return self.whole

    def close(self) -> None:
        pass


def probing(
    backend: dict[str, object], interval_s: float, clock: FakeClock
) -> tuple[Any, LostChecksums]:
    echoes, finding, peer = FakeEchoes(clock), LostChecksums(), lease(2, "vxlan")
    parts: Any = SimpleNamespace(
        kinds=KINDS,
        clock=clock,
        open_echoes=lambda _family: echoes,
        open_knock=Refused,
        checksums=finding,
    )
    made = Probing(
        parts,
        config(backend),
        interval_s,
        peers=lambda: {peer.key: peer},
        network=NetworkReport,
        underlay=Machine().external,
    )
    made.changed([LeaseAdded(peer)])
    return made, finding


def run(backend: dict[str, object], interval_s: float) -> str:
    async def main() -> str:
        clock = FakeClock()
        made, finding = probing(backend, interval_s, clock)
        task = asyncio.create_task(made.run())
        await clock.advance(60)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return finding.text

    return asyncio.run(main())


def test_what_is_found_is_about_the_first_address_of_the_peers_subnet():
    assert lease(2, "vxlan").subnet(Family.V4).network_address == IPv4Address("10.5.2.0")
    assert "10.5.2.0" in run({"Type": "vxlan", "TxChecksumOffload": "auto"}, 10.0)


@pytest.mark.parametrize(
    "backend",
    [
        {"Type": "vxlan"},
        {"Type": "vxlan", "TxChecksumOffload": False},
        {"Type": "udp"},
        {"Type": "host-gw"},
    ],
)
def test_nothing_is_asked_where_nothing_would_be_done(backend, caplog):
    assert run(backend, 10.0) == ""
    assert KNOWN not in caplog.text


def test_without_probes_it_is_said_that_nothing_will_be_seen(caplog):
    assert run({"Type": "vxlan", "TxChecksumOffload": "auto"}, 0) == ""
    assert KNOWN in caplog.text
