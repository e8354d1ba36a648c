"""The netlink sockets, where the kernel would have to misbehave to be tested: a peer plays it."""

import asyncio
import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.kernel import channel, rtnl
from pyflannel.kernel.base import Topic
from pyflannel.kernel.channel import Channel, Subscription
from pyflannel.kernel.rtnl import Answer, Request
from tests.support.coroutines import on_both_loops

DUMP = Request(rtnl.RTM_GETROUTE, rtnl.NLM_F_REQUEST | rtnl.NLM_F_DUMP, b"")
SET = Request(rtnl.RTM_NEWROUTE, rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK, b"")


class Peer:
    """The other end of each socket that is opened; sends what a test says."""

    def __init__(self) -> None:
        self.opened: list[socket.socket] = []
        self._ends: list[socket.socket] = []
        self.prepared: list[list[bytes]] = []

    def open(self, buffer_bytes: int, groups: int = 0, **filtered: object) -> socket.socket:
        """Stands in for `channel._open`; what was prepared for this socket is there at once."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        theirs.setblocking(False)
        self._ends.append(theirs)
        self.opened.append(ours)
        for datagram in self.prepared.pop(0) if self.prepared else []:
            theirs.send(datagram)
        return ours

    def send(self, datagram: bytes) -> None:
        self._ends[-1].send(datagram)

    def close(self) -> None:
        for end in self._ends:
            end.close()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Peer]:
    peer = Peer()
    monkeypatch.setattr(channel, "_open", peer.open)
    yield peer
    peer.close()


def message(kind: int, sequence: int, *, flags: int = 0, body: bytes = b"") -> bytes:
    return rtnl.pack(Request(kind, flags, body), sequence)


def ack(sequence: int, code: int = 0) -> bytes:
    return message(rtnl.NLMSG_ERROR, sequence, body=struct.pack("=i", -code) + bytes(16))


def done(sequence: int, *, flags: int = 0) -> bytes:
    return message(rtnl.NLMSG_DONE, sequence, flags=flags, body=bytes(4))


async def test_an_interrupted_dump_is_taken_again(peer: Peer) -> None:
    """Nothing of the first attempt is in the answer."""
    link = Channel()
    peer.prepared.append(
        [
            message(24, 1, flags=2, body=b"old "),
            message(24, 1, flags=2 | rtnl.NLM_F_DUMP_INTR, body=b"torn") + done(1),
            message(24, 2, flags=2, body=b"new ") + message(24, 2, flags=2, body=b"more"),
            done(2),
        ]
    )
    answer, messages = await link.dump("route list", DUMP)
    assert answer == rtnl.DONE
    assert [m.body for m in messages] == [b"new ", b"more"]
    await link.close()


async def test_a_dump_that_never_succeeds_is_an_error(peer: Peer) -> None:
    """After as many attempts as the constant says; a listing is complete or raises."""
    link = Channel()
    attempts = range(1, channel.DUMP_ATTEMPTS + 1)
    peer.prepared.append([done(n, flags=rtnl.NLM_F_DUMP_INTR) for n in attempts])
    with pytest.raises(KernelError) as refusal:
        await link.dump("route list", DUMP)
    assert refusal.value.errno == errno.EINTR
    await link.close()


async def test_answers_are_matched_by_their_numbers(peer: Peer) -> None:
    """Late answers to another request are skipped, in any order."""
    link = Channel()
    peer.prepared.append(
        [ack(77, errno.EPERM), ack(2, errno.EEXIST), message(24, 1), ack(1), ack(3)]
    )
    answers = await link.transact("apply", [SET, SET, SET])
    assert answers == [Answer(0, ""), Answer(errno.EEXIST, ""), Answer(0, "")]
    await link.close()


@on_both_loops
async def test_an_answer_that_comes_late_is_waited_for(peer: Peer) -> None:
    """With the event loop running."""
    link = Channel()
    call = asyncio.create_task(link.transact("apply", [SET]))
    while not peer.opened:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not call.done()
    peer.send(ack(1, errno.ENODEV))
    assert await call == [Answer(errno.ENODEV, "")]
    await link.close()


@on_both_loops
async def test_an_answer_that_never_comes_is_an_error(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a deadline; the socket is not used again."""
    monkeypatch.setattr(channel, "ANSWER_TIMEOUT_S", 0.02)

    link = Channel()
    with pytest.raises(KernelError) as refusal:
        await link.transact("apply", [SET])
    assert refusal.value.errno == errno.ETIMEDOUT
    peer.prepared.append([ack(2)])
    assert await link.transact("apply", [SET]) == [Answer(0, "")]
    assert len(peer.opened) == 2
    await link.close()


async def test_a_cancelled_conversation_leaves_no_answers_to_the_next(peer: Peer) -> None:
    """The next one has a new socket."""
    link = Channel()
    call = asyncio.create_task(link.dump("route list", DUMP))
    while not peer.opened:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    peer.prepared.append([message(24, 2, flags=2, body=b"here"), done(2)])
    _, messages = await link.dump("route list", DUMP)
    assert [m.body for m in messages] == [b"here"]
    assert peer.opened[0].fileno() == -1
    await link.close()


class Overrun:
    """A socket that reports ENOBUFS once, as the kernel does when its buffer ran over."""

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._told = False

    def recv(self, size: int) -> bytes:
        if not self._told:
            self._told = True
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return self._inner.recv(size)

    def recv_into(self, buffer: bytearray) -> int:
        if not self._told:
            self._told = True
            raise OSError(errno.ENOBUFS, "No buffer space available")
        return self._inner.recv_into(buffer)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def test_lost_answers_are_reported_as_such(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOBUFS for each request without one; the next batch works."""
    first = True

    def overrun(buffer_bytes: int, groups: int = 0) -> object:
        nonlocal first
        inner = peer.open(buffer_bytes, groups)
        if not first:
            return inner
        first = False
        return Overrun(inner)

    monkeypatch.setattr(channel, "_open", overrun)

    link = Channel()
    answers = await link.transact("apply", [SET, SET])
    assert [answer.errno for answer in answers] == [errno.ENOBUFS, errno.ENOBUFS]
    peer.prepared.append([ack(3)])
    assert await link.transact("apply", [SET]) == [Answer(0, "")]
    await link.close()


async def test_an_overrun_of_notifications_is_told(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was queued is forgotten with the socket; what comes after it is heard."""
    sockets = iter([Overrun, lambda inner: inner])
    monkeypatch.setattr(
        channel,
        "_open",
        lambda size, groups, **filtered: next(sockets)(peer.open(size, groups, **filtered)),
    )

    stream = Subscription()
    peer.send(message(21, 0, body=struct.pack("=BBBBI", 2, 32, 0, 0, 99)))
    assert (await anext(stream)).topic is Topic.OVERFLOW
    assert peer.opened[0].fileno() == -1
    peer.send(message(21, 0, body=struct.pack("=BBBBI", 2, 32, 0, 0, 3)))
    heard = await anext(stream)
    assert (heard.topic, heard.index, heard.deleted) == (Topic.ADDRESS, 3, True)
    stream.close()


async def test_a_storm_of_notifications_lets_others_run(peer: Peer) -> None:
    """Also one of which nothing is worth telling."""
    stream = Subscription()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count())
    rule = message(32, 0, body=bytes(12))
    for _ in range(50):
        peer.send(rule)
    peer.send(message(20, 0, body=struct.pack("=BBBBI", 2, 32, 0, 0, 3)))
    assert (await anext(stream)).topic is Topic.ADDRESS
    assert turns > 0
    counter.cancel()
    stream.close()
