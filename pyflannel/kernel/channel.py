"""The two netlink sockets: one for requests and answers, one for notifications.

rtnetlink does a request inside `sendmsg`: when it returns, the answers wait in our receive buffer,
and the parts of a dump are made while we read. So a conversation is a few system calls in a row,
and there is nothing for an event loop to wait for; a transport with its callbacks would cost more
than the kernel does. What matters to the loop is that it is not held for long: after each 2 ms of
work (`aio/pace.py`) the conversation steps aside for one turn. Should an answer not be there, which
no kernel we know does, we wait for it with `add_reader`, for a limited time.

A conversation that ends early (cancelled, failed, timed out) leaves answers behind that the next
one must not take for its own, or a dump that blocks the next one (EBUSY). The socket is closed
then, and the next conversation opens a new one.

Both classes work on every event loop that has `add_reader`, uvloop included.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Sequence
from typing import Final, Self

from pyflannel.aio.pace import HOLD_S, Pace, let_go
from pyflannel.core.errors import KernelError
from pyflannel.core.ip import IPNetwork
from pyflannel.kernel import routefilter, rtnl
from pyflannel.kernel.base import Notification, Topic
from pyflannel.kernel.objects import decode_notification
from pyflannel.kernel.rtnl import Answer, Message, Request
from pyflannel.kernel.sockopts import SO_RCVBUFFORCE, SOL_NETLINK

MOST_AT_ONCE: Final = 64
"""Requests a system call at most. 1,000 routes took 0.82 s one by one through a library and 0.05 s
like this; beyond 64 nothing is gained, and 64 acknowledgements of less than 1 KB each (as the
kernel counts them) stay far below the smallest receive buffer."""
ANSWER_TIMEOUT_S: Final = 5.0
"""How long an answer may be missing. It is there at once, or the kernel is in deep trouble."""
DUMP_ATTEMPTS: Final = 20
"""How often a dump is taken again because the table changed meanwhile (NLM_F_DUMP_INTR)."""
REQUEST_BUFFER_BYTES: Final = 1 << 20
"""Receive buffer for answers: a batch of acknowledgements with explanations, many times over."""
NOTIFICATION_BUFFER_BYTES: Final = 8 << 20
"""Receive buffer for notifications. The kernel doubles it, and counts about 1 KB for each: room for
16,000, which is three objects for each of 5,000 peers set by another program in one go."""

_RECEIVE_BYTES: Final = 1 << 16
"""The largest datagram: the kernel builds dumps in pieces of up to 32 KB."""
_DRAIN: Final = 256
"""Notifications read before the consumer gets them: as many as are decoded in 2 ms."""

_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
"""linux/netlink.h; the `socket` module does not have them."""


def _open(
    buffer_bytes: int,
    groups: int = 0,
    *,
    near: Collection[IPNetwork] | None = None,
    neighbours_of: Collection[int] | None = None,
) -> socket.socket:
    """A bound, non-blocking NETLINK_ROUTE socket of this network namespace.

    Args:
        buffer_bytes: receive buffer.
        groups: to hear.
        near: what to hear of routes, see `routefilter`.
        neighbours_of: and of neighbours.
    """
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    except OSError as error:
        raise KernelError("socket", "AF_NETLINK", error.errno or 0) from error
    try:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer_bytes)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        if near is not None or neighbours_of is not None:
            # Before the first message comes.
            routefilter.attach(sock, near, neighbours_of)
        sock.bind((0, groups))
    except OSError as error:
        sock.close()
        raise KernelError("bind", "AF_NETLINK", error.errno or 0) from error
    return sock


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _readable(sock: socket.socket) -> None:
    """Waits until there is something to read."""
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    loop.add_reader(sock.fileno(), _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_reader(sock.fileno())


MANY: Final = 5000
"""Requests from which on a thread waits for the kernel. A table that grows so large is rebuilt now
and then, by the request that makes it too large: 60 ms for IPv4 routes (`resize` of
net/ipv4/fib_trie.c). A thread costs a batch 0.1 ms."""
AT_FIRST: Final = 4
"""Requests of one kind in the first batch: 40 ms in the worst case that is known."""


class BatchSizes:
    """How many requests of which kind go out at once.

    The kernel does them before it lets us go on, and what one costs it depends on its tables: a
    route through a gateway on flannel.1 is compared with every other one there, which with 100,000
    of them takes 10 ms (`fib_find_info` of net/ipv4, whose hash leaves the gateway out).
    """

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}

    def next(self, requests: Sequence[Request], start: int) -> Sequence[Request]:
        """The next batch, from a position on."""
        counts: Counter[int] = Counter()
        end = start
        for request in requests[start : start + MOST_AT_ONCE]:
            counts[request.kind] += 1
            if counts[request.kind] > self._sizes.get(request.kind, AT_FIRST):
                break
            end += 1
        return requests[start:end]

    def took(self, batch: Sequence[Request], seconds: float) -> None:
        """Learns from a batch."""
        for kind, count in Counter(request.kind for request in batch).items():
            size = self._sizes.get(kind, AT_FIRST)
            if seconds > 2 * HOLD_S:
                self._sizes[kind] = max(1, int(count * HOLD_S / seconds))
            elif count == size:
                self._sizes[kind] = min(MOST_AT_ONCE, 2 * size)


class Channel:
    """Requests and their answers. Opened when first used; conversations queue up."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._turn = asyncio.Lock()
        self._sequence = 0
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._closed = False
        self._sizes = BatchSizes()

    async def close(self) -> None:
        """Lets the conversation that is under way end, and refuses others. May be called twice."""
        self._closed = True
        async with self._turn:
            self._drop()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @contextlib.asynccontextmanager
    async def _conversation(self, operation: str) -> AsyncIterator[socket.socket]:
        async with self._turn:
            if self._closed:
                raise KernelError(operation, "", errno.EBADF, "the netlink socket is closed")
            if self._socket is None:
                self._socket = _open(REQUEST_BUFFER_BYTES)
                for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                    # Kernels before 4.20 do not know all of them: explanations are missing then,
                    # and their decoder filters dumps.
                    with contextlib.suppress(OSError):
                        self._socket.setsockopt(SOL_NETLINK, option, 1)
            try:
                yield self._socket
            except BaseException:
                self._drop()
                raise

    async def transact(self, operation: str, requests: Sequence[Request]) -> list[Answer]:
        """Sends requests that are acknowledged, in order, and gives the answer to each.

        An answer that got lost (ENOBUFS) is reported as that error of its request.
        """
        answers: list[Answer] = []
        pace = Pace()
        many = len(requests) > MANY
        while len(answers) < len(requests):
            batch = self._sizes.next(requests, len(answers))
            async with self._conversation(operation) as sock:
                since = time.perf_counter()
                answers += await self._batch(operation, sock, batch, aside=many)
                took_s = time.perf_counter() - since
            self._sizes.took(batch, took_s)
            await pace.breathe()
        return answers

    async def _batch(
        self, operation: str, sock: socket.socket, requests: Sequence[Request], *, aside: bool
    ) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(requests)
        data = b"".join([rtnl.pack(r, first + i) for i, r in enumerate(requests)])
        if aside:
            await asyncio.to_thread(self._send, operation, sock, data)
        else:
            self._send(operation, sock, data)
        answers: dict[int, Answer] = {}
        while len(answers) < len(requests):
            try:
                datagram = await self._receive(operation, sock)
            except KernelError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._drop()
                break
            for message in rtnl.split(datagram):
                position = message.sequence - first
                if message.kind == rtnl.NLMSG_ERROR and 0 <= position < len(requests):
                    answers[position] = rtnl.decode_answer(message)
        lost = Answer(errno.ENOBUFS, "the kernel's answer got lost")
        return [answers.get(position, lost) for position in range(len(requests))]

    async def get(self, operation: str, request: Request) -> tuple[Answer, list[Message]]:
        """Sends one request that is answered by a message, or by an error."""
        async with self._conversation(operation) as sock:
            self._sequence += 1
            sequence = self._sequence
            self._send(operation, sock, rtnl.pack(request, sequence))
            while True:
                for message in rtnl.split(await self._receive(operation, sock)):
                    if message.sequence != sequence:
                        continue
                    if message.kind == rtnl.NLMSG_ERROR:
                        return rtnl.decode_answer(message), []
                    return rtnl.DONE, [message]

    async def dump(self, operation: str, request: Request) -> tuple[Answer, list[Message]]:
        """Sends a dump request and gives all messages, from one undisturbed dump.

        Raises:
            KernelError: EINTR if the table changed during each of `DUMP_ATTEMPTS` dumps.
        """
        for _ in range(DUMP_ATTEMPTS):
            async with self._conversation(operation) as sock:
                complete, answer, messages = await self._dump_once(operation, sock, request)
            if complete:
                return answer, messages
            await let_go(messages)
            await asyncio.sleep(0)
        raise KernelError(
            operation, "", errno.EINTR, f"the table changed during {DUMP_ATTEMPTS} dumps in a row"
        )

    async def _dump_once(
        self, operation: str, sock: socket.socket, request: Request
    ) -> tuple[bool, Answer, list[Message]]:
        self._sequence += 1
        sequence = self._sequence
        self._send(operation, sock, rtnl.pack(request, sequence))
        messages: list[Message] = []
        complete = True
        pace = Pace()
        while True:
            for message in rtnl.split(await self._receive(operation, sock)):
                if message.sequence != sequence:
                    continue
                if message.flags & rtnl.NLM_F_DUMP_INTR:
                    complete = False
                if message.kind == rtnl.NLMSG_DONE or message.kind == rtnl.NLMSG_ERROR:
                    return complete, rtnl.decode_answer(message), messages
                messages.append(message)
            await pace.breathe()

    @staticmethod
    def _send(operation: str, sock: socket.socket, data: bytes) -> None:
        try:
            sock.send(data)
        except OSError as error:
            raise KernelError(operation, "", error.errno or 0) from error

    async def _receive(self, operation: str, sock: socket.socket) -> bytes:
        """The next datagram."""
        while True:
            try:
                length = sock.recv_into(self._buffer)
            except BlockingIOError:
                try:
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        await _readable(sock)
                except TimeoutError as error:
                    hint = f"the kernel did not answer within {ANSWER_TIMEOUT_S:g} s"
                    raise KernelError(operation, "", errno.ETIMEDOUT, hint) from error
            except OSError as error:
                raise KernelError(operation, "", error.errno or 0) from error
            else:
                return bytes(self._buffer[:length])


class Subscription:
    """Notifications, as an asynchronous iterator. Subscribed from construction until closed.

    Nothing is read before it is asked for: the kernel's buffer is the queue, and if it runs over,
    `Topic.OVERFLOW` says so and the rest of it is forgotten. Belongs to one consumer; closing it
    ends its iteration.
    """

    def __init__(
        self,
        near: Collection[IPNetwork] | None = None,
        neighbours_of: Collection[int] | None = None,
    ) -> None:
        self._near = near
        self._neighbours_of = neighbours_of
        self._socket: socket.socket | None = self._subscribe()
        self._pending: deque[Notification] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def _subscribe(self) -> socket.socket:
        return _open(
            NOTIFICATION_BUFFER_BYTES,
            rtnl.NOTIFICATION_GROUPS,
            near=self._near,
            neighbours_of=self._neighbours_of,
        )

    def hear_neighbours_of(self, indexes: Collection[int]) -> None:
        """As in `Notifications`."""
        self._neighbours_of = indexes
        if self._socket is not None:
            routefilter.attach(self._socket, self._near, indexes)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Notification:
        while not self._pending:
            if self._socket is None:
                raise StopAsyncIteration
            if self._drain(self._socket):
                # The consumer of a storm must not keep the loop to itself.
                await asyncio.sleep(0)
            else:
                await self._wait(self._socket)
        return self._pending.popleft()

    @property
    def is_open(self) -> bool:
        """Whether it has not been closed yet."""
        return self._socket is not None

    def _drain(self, sock: socket.socket) -> bool:
        """Reads what is there, up to a limit; whether there was anything."""
        for count in range(_DRAIN):
            try:
                datagram = sock.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return count > 0
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError("receive", "notifications", error.errno or 0) from error
                # Until the queue is empty the kernel drops more, and does not say so again: to
                # compare everything now would miss that. A new socket's queue is empty.
                self._socket = self._subscribe()
                sock.close()
                self._pending.append(Notification(topic=Topic.OVERFLOW))
                return True
            for message in rtnl.split(datagram):
                notification = decode_notification(message)
                if notification is not None:
                    self._pending.append(notification)
        return True

    async def _wait(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        loop.add_reader(sock.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            # Once closed, the descriptor's number may be another file's already.
            if self._socket is not None:
                loop.remove_reader(sock.fileno())

    def close(self) -> None:
        """Unsubscribes. May be called twice."""
        if self._socket is None:
            return
        if self._waiter is not None:
            self._waiter.get_loop().remove_reader(self._socket.fileno())
            _wake(self._waiter)
        self._socket.close()
        self._socket = None
        self._pending.clear()

    async def aclose(self) -> None:
        """Unsubscribes; for `contextlib.aclosing`."""
        self.close()
