"""The packet path in plain Python: the reference that the fast ones are compared with.

Theory of operation. One callback of the event loop drains the TUN and the UDP socket in turns, a
packet at a time: it reads into one buffer, looks at fixed offsets, changes TTL and checksum in
place, and sends. The rules are those of `pyflannel.datapath.base`, in the order in which they stand
there; the two loops `_drain_tun` and `_drain_udp` are those two lists.

Both descriptors are in an epoll of our own, and the event loop watches only that. This has two
reasons: one wake-up serves both directions, and an error on a descriptor (the device was deleted,
an ICMP error waits at the socket) reaches our code on every event loop. uvloop would silently drop
the reader of such a descriptor.

*Sharing the loop.* The callback changes direction every `BATCH` packets and returns when both are
drained, or after `SLICE_S`. epoll is level-triggered, so the loop calls it again after all other
callbacks had their turn.

*Speed.* What counts is system calls, then bytecodes per packet. So the loops are written out, names
are local, a packet of the common shape (no options, length as it says) passes with one comparison,
and views on the first n bytes of a buffer are made once per length. Everything else is in methods
of its own.

*Errors.* A descriptor that is gone (`EBADFD` after `flannel0` was deleted) ends the data path:
`failure` says why and nothing spins. A refused packet is counted and dropped, also while the
interface is down (`EIO`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Final

from pyflannel.core.budget import FairBudget
from pyflannel.core.errors import DatapathError, KernelError
from pyflannel.core.lpm import PeerTable
from pyflannel.core.packet import (
    IPV4_MAX_BYTES,
    MIN_MTU,
    VNET_F_NEEDS_CSUM,
    VNET_GSO_NONE,
    VNET_HEADER_BYTES,
    IcmpType,
    UnreachableCode,
    VnetHeader,
    checksum_after_hop,
    complete_checksum,
    icmp_error,
    is_malformed,
    may_be_answered,
)
from pyflannel.datapath.base import (
    BELIEVED_MTU,
    COUNTERS,
    PATH_MTU_AGE_S,
    Capabilities,
    DatapathConfig,
)
from pyflannel.datapath.hops import Hop, compiled, counted
from pyflannel.kernel.tun import set_offload
from pyflannel.logs import get_logger

log = get_logger(__name__)

BATCH: Final = 32
"""Packets moved in one direction before the other gets its turn: 0.2–0.5 ms at 6–15 µs each."""
SLICE_S: Final = 0.002
"""Seconds after which the callback returns even if packets are left. It delays timers and HTTP
requests of the daemon by this much, and by less than 3 ms with the batch that it finishes."""
ICMP_ALL: Final = (1000.0, 250)
"""ICMP errors a second, and at once: the contract's numbers. The first is Linux's own
(`icmp_msgs_per_sec`)."""
ICMP_EACH: Final = (200.0, 50)
"""The same for ICMP errors that one source causes. The burst is Linux's own for all sources
(`icmp_msgs_burst`). Four sources that send nothing else leave a share for the others."""
OUTER_BYTES: Final = 28
"""Outer IPv4 (20) and UDP (8) header."""
BELIEVED_BYTES: Final = BELIEVED_MTU - OUTER_BYTES
ROOMS: Final = 4096
"""Paths whose MTU is remembered. One more clears them all, and each is asked for again."""

_BUFFER_BYTES: Final = IPV4_MAX_BYTES + 1
"""Room for the longest packet, so that none is truncated and mistaken for a whole one."""

_FIELDS: Final = struct.Struct("!BxHxxxxBxHII")
"""version and IHL, total length, TTL, checksum, source, destination."""

_IP_MTU: Final = 14
_IP_MTU_DISCOVER: Final = 10
_IP_PMTUDISC_DONT: Final = 0
# linux/in.h; the socket module has no names for these.

_FULL: Final = frozenset((errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM))
"""The queue is full. Trying again at once is useless."""
_GONE: Final = frozenset((errno.EBADF, errno.EBADFD, errno.ENOTSOCK, errno.ENODEV))
"""The descriptor is no longer usable. Trying again is useless."""


class _Prefixes(dict[int, memoryview]):
    """`prefixes[n]`: a view on the first n bytes of a buffer, made when first asked for."""

    __slots__ = ("_whole",)

    def __init__(self, buffer: bytearray) -> None:
        super().__init__()
        self._whole = memoryview(buffer)

    def __missing__(self, length: int) -> memoryview:
        view = self[length] = self._whole[:length]
        return view


def probe() -> Capabilities | str:
    """What this data path can do here. It needs nothing, so it always can."""
    return Capabilities(name="python")


class PythonDatapath:
    """Moves packets with nothing but the standard library. See `Datapath` for the contract.

    Args:
        config: see `DatapathConfig`.
        loop: the event loop that calls us; the running one at `start` if not given.
        clock: seconds that never go back; tests give their own.
    """

    def __init__(
        self,
        config: DatapathConfig,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._loop = loop
        self._clock = clock
        self._capabilities = Capabilities(name="python")
        self._hops = compiled(PeerTable(), config.port)
        self._count = dict.fromkeys(COUNTERS, 0)
        self._peers: dict[str, dict[str, int]] = {}
        """`PEER_COUNTERS` by address."""
        self._rooms: dict[Hop, tuple[float, int]] = {}
        self._limiter = FairBudget(each=ICMP_EACH, all_of_them=ICMP_ALL)
        self._failure: str | None = None
        self._epoll: select.epoll | None = None
        self._socket: socket.socket | None = None

        # One packet is in flight in each direction. An ICMP error is made from the packet while it
        # is still in its buffer.
        self._tun_buffer = bytearray(_BUFFER_BYTES)
        self._tun_prefixes = _Prefixes(self._tun_buffer)
        self._udp_buffer = bytearray(_BUFFER_BYTES)
        self._udp_prefixes = _Prefixes(self._udp_buffer)
        self._vnet_header = bytearray(VNET_HEADER_BYTES)
        self._tun_buffers: list[bytearray] = (
            [self._vnet_header, self._tun_buffer] if config.vnet_hdr else [self._tun_buffer]
        )

    @property
    def capabilities(self) -> Capabilities:
        """This data path uses no offloads."""
        return self._capabilities

    def prepare(self) -> None:
        """Nothing: no part of the start waits."""

    def start(self) -> None:
        """Begins to move packets.

        Raises:
            DatapathError: if a descriptor cannot be watched, or it was started already.
        """
        if self._epoll is not None or self._failure is not None:
            raise DatapathError("the python data path was started already; make a new one")
        config = self._config
        loop = self._loop = self._loop or asyncio.get_running_loop()
        epoll = select.epoll(2)
        udp: socket.socket | None = None
        try:
            # A descriptor of our own for the same socket: a socket object closes what it holds.
            udp = socket.socket(fileno=os.dup(config.udp_fd))
            udp.setblocking(False)  # noqa: FBT003  the socket module's signature
            if config.vnet_hdr:
                # The last user of the TUN may have asked for super packets.
                with contextlib.suppress(KernelError):  # not a TUN, then there is nothing to undo
                    set_offload(config.tun_fd, 0)
            epoll.register(config.tun_fd, select.EPOLLIN)
            epoll.register(udp.fileno(), select.EPOLLIN)
            loop.add_reader(epoll.fileno(), self._on_ready)
        except OSError as error:
            epoll.close()
            if udp is not None:
                udp.close()
            raise DatapathError(
                f"start the python data path on {config.tun_name}: {_spell(error)}"
            ) from error
        self._epoll = epoll
        self._socket = udp

    def complete(self) -> None:
        """Nothing: all of it is there from the start."""

    def replace_table(self, table: PeerTable) -> None:
        """Puts a whole new peer table in force from the next batch on."""
        self._hops = compiled(table, self._config.port)
        self._peers = counted(self._peers, self._hops.senders)

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        """All of `PEER_COUNTERS`."""
        counts = self._peers.get(str(peer))
        return dict(counts) if counts is not None else None

    def counters(self) -> dict[str, int]:
        """All of `COUNTERS`, since start."""
        return dict(self._count)

    def failure(self) -> str | None:
        """Why it no longer moves packets, or `None`."""
        return self._failure

    def repair(self) -> tuple[str, ...]:
        """Nothing: the descriptors are all there is."""
        return ()

    def slowed(self) -> str:
        """Never: its reader does all of it."""
        return ""

    def stop(self) -> None:
        """Stops at once. May be called twice."""
        if self._epoll is not None and self._loop is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._epoll = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @property
    def _udp(self) -> socket.socket:
        if self._socket is None:
            raise DatapathError("the python data path is not running")
        return self._socket

    def _fail(self, reason: str) -> None:
        """Stops for good; the driver finds the first reason on its next pass."""
        self._failure = self._failure or reason
        self.stop()

    def _on_ready(self) -> None:
        """Drains what is ready, both ways in turns, until dry or out of time."""
        deadline = self._clock() + SLICE_S
        more = True
        try:
            while more and self._epoll is not None:
                more = False
                for fd, events in self._epoll.poll(0, 2):
                    drain = self._drain_tun if fd == self._config.tun_fd else self._drain_udp
                    more = drain() or more
                    if self._failure is None and events & ~select.EPOLLIN:
                        self._on_trouble(fd, events)
                    if self._failure is not None:
                        return
                if self._clock() >= deadline:
                    return
        except Exception as error:
            # If it escaped, the loop would call us again at once and log a traceback, without end.
            self._fail(f"defect in the python data path: {error!r}")
            log.exception("data path failed", datapath="python", device=self._config.tun_name)

    def _drain_tun(self) -> bool:  # noqa: C901 - written out, see "Speed"
        """TUN → UDP for one batch; whether there may be more."""
        mask, get, _ = self._hops
        tun_fd, mtu, vnet_hdr = self._config.tun_fd, self._config.mtu, self._config.vnet_hdr
        packet, prefixes, buffers = self._tun_buffer, self._tun_prefixes, self._tun_buffers
        readv, fields, sendto = os.readv, _FIELDS.unpack_from, self._udp.sendto
        # Packets to one peer are counted together, when the first to another peer comes.
        run: Hop | None = None
        packets = size = 0
        more = True
        for _ in range(BATCH):
            try:
                n = readv(tun_fd, buffers)
            except BlockingIOError:
                more = False
                break
            except OSError as error:
                self._fail(f"{_spell(error)}: {self._config.tun_name} is gone")
                more = False
                break
            if not n:
                self._fail(f"end of file: {self._config.tun_name} is gone")
                more = False
                break
            if vnet_hdr:
                n = self._take_vnet_header(n)
            first, total, ttl, checksum, _source, destination = fields(packet)
            if (first != 0x45 or not 20 <= n == total <= mtu) and self._is_unfit("tun", packet, n):
                continue
            hop = get(destination & mask)
            if hop is None:
                self._no_route(prefixes[n])
                continue
            if ttl <= 1:
                self._tun_expired(prefixes[n], hop)
                continue
            packet[8] = ttl - 1
            wide = n > BELIEVED_BYTES and n > self._room(hop)
            if checksum < 0xFE00:
                packet[10] = (checksum >> 8) + 1  # no carry and no 0xFFFF from here
            else:
                checksum = checksum_after_hop(checksum)
                packet[10] = checksum >> 8
                packet[11] = checksum & 0xFF
            try:
                if wide:
                    if not self._too_big(prefixes[n], hop):
                        continue
                else:
                    sendto(prefixes[n], hop)
            except OSError as error:
                if not self._send_again(prefixes[n], hop, error):
                    if self._failure is not None:
                        more = False
                        break
                    continue
            if hop is not run:
                self._count_run("tun", run, packets, size)
                run, packets, size = hop, 0, 0
            packets += 1
            size += n
        self._count_run("tun", run, packets, size)
        return more

    def _count_run(self, side: str, peer: Hop | None, packets: int, size: int) -> None:
        """Counts packets that were read on one side and moved, from or to one peer."""
        if peer is None:
            return
        self._count[f"{side}_packets"] += packets
        self._count[f"{side}_bytes"] += size
        counts = self._peers.get(peer[0])
        if counts is not None:
            way = "out" if side == "tun" else "in"
            counts[f"packets_{way}"] += packets
            counts[f"bytes_{way}"] += size

    def _drop(self, peer: str, reason: str) -> None:
        """Counts a packet that is dropped, for its peer as well."""
        self._count[reason] += 1
        counts = self._peers.get(peer)
        if counts is not None:
            counts[reason] += 1

    def _drain_udp(self) -> bool:  # noqa: C901 - likewise
        """UDP → TUN for one batch; whether there may be more."""
        mask, get, senders = self._hops
        config = self._config
        tun_fd, mtu, vnet_hdr, accept_any = (
            config.tun_fd,
            config.mtu,
            config.vnet_hdr,
            config.accept_any,
        )
        network, netmask = int(config.network.network_address), int(config.network.netmask)
        port = config.port
        packet, prefixes = self._udp_buffer, self._udp_prefixes
        receive, fields, write = self._udp.recvfrom_into, _FIELDS.unpack_from, os.write
        run: Hop | None = None
        packets = size = errors = 0
        more = True
        for _ in range(BATCH):
            try:
                n, sender = receive(packet)
            except BlockingIOError:
                more = False
                break
            except OSError as error:
                # An ICMP error about an earlier datagram of ours is reported once, and the
                # datagrams behind it are still there. A whole batch of errors means that the socket
                # is broken.
                errors += 1
                if error.errno in _GONE or errors == BATCH:
                    self._fail(f"{_spell(error)}: the UDP socket is gone")
                    more = False
                    break
                continue
            first, total, ttl, checksum, source, destination = fields(packet)
            if (first != 0x45 or not 20 <= n == total <= mtu) and self._is_unfit(
                "udp", packet, n, sender[0]
            ):
                continue
            if accept_any:
                hop = sender  # a new one each time, so no run is longer than a packet
            else:
                if sender[1] != port and not config.any_port:
                    self._count["udp_unknown_sender"] += 1
                    continue
                hop = get(source & mask)
                if hop is None or hop[0] != sender[0]:
                    known = sender[0] in senders
                    self._drop(sender[0], "udp_wrong_source" if known else "udp_unknown_sender")
                    continue
                if destination & netmask != network:
                    self._drop(sender[0], "udp_wrong_destination")
                    continue
            if ttl <= 1:
                self._drop(sender[0], "udp_ttl")
                self._udp_expired(prefixes[n], get(source & mask))
                continue
            packet[8] = ttl - 1
            if checksum < 0xFE00:
                packet[10] = (checksum >> 8) + 1
            else:
                checksum = checksum_after_hop(checksum)
                packet[10] = checksum >> 8
                packet[11] = checksum & 0xFF
            if hop is not run:
                self._count_run("udp", run, packets, size)
                run, packets, size = hop, 0, 0
            packets += 1
            size += n
            try:
                if vnet_hdr:
                    os.writev(tun_fd, (VnetHeader.PLAIN, prefixes[n]))
                else:
                    write(tun_fd, prefixes[n])
            except OSError as error:
                self._write_refused(error)
                # It was accepted from the peer, but not delivered.
                self._count["udp_packets"] -= 1
                self._count["udp_bytes"] -= n
                if self._failure is not None:
                    more = False
                    break
        self._count_run("udp", run, packets, size)
        return more

    def _on_trouble(self, fd: int, events: int) -> None:
        """Handles the other epoll events of a descriptor, which epoll would report again and again.

        With IP_RECVERR a socket queues errors and is ready until they are read. Any other event
        means that the descriptor is unusable.
        """
        if fd == self._config.tun_fd:
            self._fail(f"epoll event {events:#x}: {self._config.tun_name} is gone")
            return
        try:
            for _ in range(BATCH):
                self._udp.recvmsg(0, 0, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            if events & select.EPOLLHUP:
                self._fail(f"epoll event {events:#x}: the UDP socket is shut down")

    def _is_unfit(self, side: str, packet: bytearray, n: int, peer: str = "") -> bool:
        """Whether to drop a packet of uncommon shape. IP options are uncommon, but allowed."""
        if is_malformed(packet, n):
            self._drop(peer, f"{side}_malformed")
        elif n > self._config.mtu:
            self._drop(peer, f"{side}_oversize")
        else:
            return False
        return True

    def _take_vnet_header(self, n: int) -> int:
        """Bytes of the packet behind the virtio-net header; -1 (malformed) if it cannot be used.

        We ask for no offload, so super packets come only if another program set up the TUN.
        """
        if n < VNET_HEADER_BYTES:
            return -1
        n -= VNET_HEADER_BYTES
        flags, gso_type = self._vnet_header[0], self._vnet_header[1]
        if gso_type != VNET_GSO_NONE:
            return -1
        if flags & VNET_F_NEEDS_CSUM:
            header = VnetHeader.parse(self._vnet_header)
            packet = self._tun_prefixes[n]
            if n < 20 or not complete_checksum(packet, header.csum_start, header.csum_offset):
                return -1
        return n

    def _no_route(self, packet: memoryview) -> None:
        self._count["tun_no_route"] += 1
        if may_be_answered(packet, len(packet), answer_icmp=False) and self._may_answer_now(packet):
            self._count["icmp_unreachable"] += 1
            self._write(self._error(packet, IcmpType.UNREACHABLE, UnreachableCode.NETWORK))

    def _tun_expired(self, packet: memoryview, hop: Hop) -> None:
        self._drop(hop[0], "tun_ttl")
        if may_be_answered(packet, len(packet), answer_icmp=True) and self._may_answer_now(packet):
            self._count["icmp_time_exceeded"] += 1
            self._write(self._error(packet, IcmpType.TIME_EXCEEDED))

    def _udp_expired(self, packet: memoryview, hop: Hop | None) -> None:
        if hop is None:
            return
        if may_be_answered(packet, len(packet), answer_icmp=True) and self._may_answer_now(packet):
            self._count["icmp_time_exceeded"] += 1
            answer = memoryview(self._error(packet, IcmpType.TIME_EXCEEDED))
            try:
                self._udp.sendto(answer, hop)
            except OSError as error:
                self._send_again(answer, hop, error)

    def _too_big(self, packet: memoryview, hop: Hop) -> bool:
        """Answers (DF) or fragments a packet longer than the path MTU; whether it was sent."""
        if packet[6] & 0x40:
            self._drop(hop[0], "tun_too_big")
            if may_be_answered(packet, len(packet), answer_icmp=True):
                room = self._room(hop)
                if room >= len(packet):  # the interface's MTU is below BELIEVED_MTU
                    room = self._path_mtu(hop) - OUTER_BYTES
                if room > 0 and self._may_answer_now(packet):
                    self._count["icmp_frag_needed"] += 1
                    next_mtu = max(MIN_MTU, room)
                    self._write(
                        self._error(
                            packet,
                            IcmpType.UNREACHABLE,
                            UnreachableCode.FRAGMENTATION_NEEDED,
                            next_mtu,
                        )
                    )
            return False
        # IPv4 has no way to clear DF for one datagram. Nothing else sends on this socket between
        # these lines.
        before = self._udp.getsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER)
        try:
            self._udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DONT)
            self._udp.sendto(packet, hop)
        except OSError:
            self._drop(hop[0], "tun_send_error")
            return False
        finally:
            self._udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, before)
        return True

    def _room(self, hop: Hop) -> int:
        """Most bytes of a packet to a peer, by the path MTU that we believe.

        Asks the kernel once in `PATH_MTU_AGE_S`.
        """
        now = self._clock()
        known = self._rooms.get(hop)
        if known is not None and now < known[0]:
            return known[1]
        if len(self._rooms) >= ROOMS:
            self._rooms.clear()
        room = max(self._path_mtu(hop) or IPV4_MAX_BYTES, BELIEVED_MTU) - OUTER_BYTES
        self._rooms[hop] = (now + PATH_MTU_AGE_S, room)
        return room

    def _path_mtu(self, hop: Hop) -> int:
        """The kernel's path MTU to a peer, in bytes; 0 if it does not say.

        Only a connected socket can be asked (ip(7), IP_MTU), so this connects one.
        """
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                asking.bind((self._udp.getsockname()[0], 0))
                asking.connect(hop)
                return asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
            except OSError:
                return 0

    def _may_answer_now(self, packet: memoryview) -> bool:
        source = int.from_bytes(packet[12:16], "big")
        if self._limiter.take(source, self._clock()):
            return True
        self._count["icmp_suppressed"] += 1
        return False

    def _error(self, packet: memoryview, type_: IcmpType, code: int = 0, rest: int = 0) -> bytes:
        source = int(self._config.tun_address)
        return icmp_error(packet, source=source, type_=type_, code=code, rest=rest)

    def _send_again(self, packet: memoryview, hop: Hop, error: OSError) -> bool:
        """Whether the second and last attempt succeeded.

        The first error may belong to an earlier datagram: with IP_RECVERR, the next call on the
        socket returns a pending ICMP error, whatever the call is.
        """
        if error.errno not in _FULL:
            try:
                self._udp.sendto(packet, hop)
            except OSError as again:
                error = again
            else:
                return True
        if error.errno == errno.EMSGSIZE:
            return self._too_big(packet, hop)
        self._drop(hop[0], "tun_send_error")
        if error.errno in _GONE:
            self._fail(f"{_spell(error)}: the UDP socket is gone")
        return False

    def _write(self, packet: bytes) -> None:
        """Writes an ICMP error of ours into the TUN."""
        try:
            if self._config.vnet_hdr:
                os.writev(self._config.tun_fd, (VnetHeader.PLAIN, packet))
            else:
                os.write(self._config.tun_fd, packet)
        except OSError as error:
            self._write_refused(error)

    def _write_refused(self, error: OSError) -> None:
        self._count["udp_write_error"] += 1
        if error.errno in _GONE:
            self._fail(f"{_spell(error)}: {self._config.tun_name} is gone")


def _spell(error: OSError) -> str:
    """`EBADFD`, the way the manual pages spell it."""
    return errno.errorcode.get(error.errno or 0, str(error))
