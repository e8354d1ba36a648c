"""Where checksums are lost, told from loss and from firewalls; over fake sockets."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import IPAddress
from pyflannel.probe.checksums import EVERY_S, ROUNDS, WAIT_S, ChecksumProbe, LostChecksums
from pyflannel.testing.fakeclock import FakeClock

PEER, OTHER = IPv4Address("10.5.2.0"), IPv4Address("10.5.3.0")
A_TURN_S = ROUNDS * 2 * WAIT_S + EVERY_S


@dataclass
class Peers:
    """Peers that answer echoes, and what becomes of datagrams to them."""

    answers: Callable[[IPAddress, bool, int], bool]
    """Whether one is answered: the address, whether its checksum was written, its number."""
    there: list[IPAddress] = field(default_factory=lambda: [PEER])
    refusal: int = 0
    open_failure: KernelError | None = None
    asked: list[tuple[IPAddress, bool]] = field(default_factory=list)
    open: int = 0

    def knock(self, address: IPAddress) -> Knock:
        if self.open_failure is not None:
            raise self.open_failure
        self.open += 1
        return Knock(self, address)


@dataclass
class Knock:
    peers: Peers
    address: IPAddress
    heard: bool = False

    def send(self, *, written: bool) -> int:
        self.heard = self.peers.answers(self.address, written, len(self.peers.asked))
        self.peers.asked.append((self.address, written))
        return self.peers.refusal

    def answered(self) -> bool:
        return self.heard

    def close(self) -> None:
        self.peers.open -= 1


def found(peers: Peers, *, turns: int = 1) -> str:
    """What is found within some turns; with every socket closed in the end."""

    async def main() -> str:
        clock, finding = FakeClock(), LostChecksums()
        probe = ChecksumProbe(clock, peers.knock, lambda: peers.there, finding)
        task = asyncio.create_task(probe.run())
        await clock.advance(turns * A_TURN_S)
        assert task.done() == bool(finding.text)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return finding.text

    text = asyncio.run(main())
    assert peers.open == 0
    return text


def test_lost_checksums_are_found_within_one_turn_and_then_nothing_is_asked():
    peers = Peers(lambda _address, written, _number: written)
    assert str(PEER) in found(peers)
    assert len(peers.asked) == 2 * ROUNDS


def test_of_several_peers_one_is_enough():
    peers = Peers(lambda address, written, _: written or address == PEER, there=[PEER, OTHER])
    text = found(peers, turns=2)
    assert str(OTHER) in text
    assert str(PEER) not in text


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(lambda *_: True, id="all arrive"),
        pytest.param(lambda *_: False, id="a firewall drops both"),
        pytest.param(lambda _address, written, _number: not written, id="the other way round"),
        pytest.param(lambda _address, _written, number: number % 2, id="the second answer alone"),
        pytest.param(lambda _address, _written, number: not number % 2, id="the first alone"),
        pytest.param(
            lambda _address, written, number: written or number >= 2 * (ROUNDS - 1),
            id="all but the last round",
        ),
    ],
)
def test_nothing_else_is_taken_for_it(answers):
    assert found(Peers(answers), turns=5) == ""


def test_without_a_peer_to_ask_it_waits():
    peers = Peers(lambda _address, written, _number: written, there=[])
    assert found(peers, turns=3) == ""
    assert peers.asked == []


@pytest.mark.parametrize(
    "failing",
    [
        {"refusal": errno.ENETUNREACH},
        {"open_failure": KernelError("open", "raw socket", errno.EPERM)},
    ],
)
def test_what_this_node_cannot_send_says_nothing_of_the_way(failing):
    assert found(Peers(lambda _address, written, _number: written, **failing), turns=3) == ""


def test_peers_are_asked_in_turn_and_each_little():
    """Two packets in four seconds while all is well."""
    there: list[IPAddress] = [PEER + number for number in range(1000)]
    peers = Peers(lambda *_: True, there=there)
    found(peers, turns=20)
    assert len(peers.asked) <= 2 * (20 * A_TURN_S / (2 * WAIT_S + EVERY_S) + 1)
