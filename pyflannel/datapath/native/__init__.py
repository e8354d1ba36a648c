"""The packet path in C: threads of its own, every offload the kernel grants, no GIL.

Theory of operation. The work is done by the extension `_native` (C sources beside this file; start
with `engine.h`). This module implements the `Datapath` protocol over it: it turns the configuration
into numbers, the peer table into rows, and error numbers into sentences. It decides only what an
operator may want to change:

*Threads.* One for each direction, so that a stream's acknowledgements do not wait behind its data;
with a single CPU, one for both. On two cores that carry both nodes and both ends of the traffic two
threads gave 13 % more TCP than one, 6 % fewer small packets, and the same round trips. A TUN that
was opened with IFF_MULTI_QUEUE gets further queues, each with a transmitting thread.

*Offloads.* Each can be forced off by name, with `PYFLANNEL_NATIVE_OFF=gso,gro` or by parameter.
An offload that the kernel refuses at start is `off (not supported: …)`. One that it refuses later,
on a packet, is `withdrawn (…)`: it is logged once and not tried again.

Environment: `PYFLANNEL_NATIVE_OFF`, `PYFLANNEL_NATIVE_THREADS`, `PYFLANNEL_NATIVE_QUEUES`,
`PYFLANNEL_NATIVE_SPIN_US`, `PYFLANNEL_NATIVE_GATHER_US`. Parameters override them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from pyflannel.core.errors import DatapathError, KernelError
from pyflannel.core.lpm import PeerTable
from pyflannel.datapath.base import COUNTERS, PEER_COUNTERS, Capabilities, DatapathConfig
from pyflannel.kernel.tun import IFF_MULTI_QUEUE, TunDevice, open_tun
from pyflannel.logs import get_logger

if TYPE_CHECKING:
    from pyflannel.datapath.native import _native

log = get_logger(__name__)

OFF_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "csum": ("csum",),
    "tso": ("tso4", "tso6", "tso_ecn"),
    "tso4": ("tso4",),
    "tso6": ("tso6",),
    "tso_ecn": ("tso_ecn",),
    "uso": ("uso",),
    "gso": ("gso",),
    "gro": ("gro",),
    "join": ("join_tcp", "join_udp"),
    "join_tcp": ("join_tcp",),
    "join_udp": ("join_udp",),
}
"""What can be forced off, by the names that `PYFLANNEL_NATIVE_OFF` takes. `csum`, `tso`, `uso` are
the TUN's offloads towards us, `gso` and `gro` the socket's, `join` the super packets we write."""

MAX_QUEUES: Final = 16
"""`ENGINE_QUEUES` in engine.h; one thread each."""
SPIN_US: Final = 0
"""Microseconds for which a worker polls for more packets before it sleeps. On two cores that carry
both nodes and both ends of the traffic, 50 shortened the median round trip in quiet moments (from
78 to 58 µs) and made p99 up to three times as long. So it suits only machines with spare cores."""
GATHER_US: Final = 100
"""Microseconds for which small packets are collected while more than 40,000 a second come in. With
64-byte packets, in thousands a second: 0 → 125–195, 30 → 180, 60 → 205, 100 → 230, 200 → 200."""

_STATES: Final = ("off (forced)", "off (not supported: {})", "on", "withdrawn ({})")
"""In the order of `enum offload_state`."""

_TUNGETIFF: Final = 0x800454D2
_IFREQ: Final = struct.Struct("16sH22x")
# linux/if_tun.h, struct ifreq.


def _load() -> str | None:
    """Why the extension cannot be loaded, or `None`."""
    try:
        from pyflannel.datapath.native import _native  # noqa: F401
    except ImportError as error:
        return f"the extension was not built: {error}"
    return None


def probe() -> Capabilities | str:
    """What this data path can do here, or why it cannot be used.

    The offloads are probed on the device and the socket at the start. Before that none is listed.
    """
    return _load() or Capabilities(name="native", wants_vnet_hdr=True)


def parse_off(text: str) -> frozenset[str]:
    """The offloads named by a comma-separated list, such as `tso,gro`.

    Raises:
        DatapathError: naming the unknown word and the known ones.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in OFF_GROUPS:
            raise DatapathError(
                f"PYFLANNEL_NATIVE_OFF: there is no offload {word!r}; "
                f"known: {', '.join(OFF_GROUPS)}"
            )
    return frozenset(name for word in words for name in OFF_GROUPS[word])


def pack_rows(table: PeerTable) -> bytes:
    """The table as `struct table_row` of table.h: network, prefix length, address."""
    numbers = array("I")
    for peer in table.peers:
        subnet = peer.subnet
        numbers.extend((int(subnet.network_address), subnet.prefixlen, int(peer.address)))
    return numbers.tobytes()


def _from_environment(name: str, default: int, least: int, most: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise DatapathError(f"{name}: {text!r} is not a number from {least} to {most}")
    return int(text)


class NativeDatapath:
    """Moves packets in threads of its own. See `Datapath` for the contract.

    Args:
        config: see `DatapathConfig`. The descriptors are duplicated at `start`.
        off: offloads to do without, by the names of `OFF_GROUPS`; `None` = `PYFLANNEL_NATIVE_OFF`.
        threads: 1 = one thread for both directions, 2 = one each.
        queues: how many queues of a multi-queue TUN to use; `None` = up to four, one per two CPUs.
        spin_us: see `SPIN_US`.
        gather_us: see `GATHER_US`.
        assume_offloads: treat all TUN offloads as granted. For tests whose TUN is a socket pair;
            the other end must understand virtio-net headers.

    Raises:
        DatapathError: if the extension is missing, or a value is out of range.
    """

    def __init__(
        self,
        config: DatapathConfig,
        *,
        off: Iterable[str] | None = None,
        threads: int | None = None,
        queues: int | None = None,
        spin_us: int | None = None,
        gather_us: int | None = None,
        assume_offloads: bool = False,
    ) -> None:
        missing = _load()
        if missing:
            raise DatapathError(missing)
        from pyflannel.datapath.native import _native

        self._config = config
        cpus = len(os.sched_getaffinity(0))
        words = os.environ.get("PYFLANNEL_NATIVE_OFF", "") if off is None else ",".join(off)
        self._off = parse_off(words)
        self._threads = threads or _from_environment(
            "PYFLANNEL_NATIVE_THREADS", 1 if cpus == 1 else 2, 1, 2
        )
        self._queues = queues or _from_environment(
            "PYFLANNEL_NATIVE_QUEUES", max(1, min(4, cpus // 2)), 1, MAX_QUEUES
        )
        self._spin_us = (
            _from_environment("PYFLANNEL_NATIVE_SPIN_US", SPIN_US, 0, 1000)
            if spin_us is None
            else spin_us
        )
        self._gather_us = (
            _from_environment("PYFLANNEL_NATIVE_GATHER_US", GATHER_US, 0, 1000)
            if gather_us is None
            else gather_us
        )
        self._assume_offloads = assume_offloads
        self._native = _native
        self._engine: _native.Engine | None = None
        self._rows = pack_rows(PeerTable())
        self._told: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What is in use right now."""
        offloads = self._offloads() if self._engine else {}
        return Capabilities(name="native", wants_vnet_hdr=True, offloads=offloads)

    def prepare(self) -> None:
        """Nothing: no part of the start waits."""

    def start(self) -> None:
        """Begins to move packets.

        Raises:
            DatapathError: if it cannot, or it was started already.
        """
        if self._engine is not None:
            raise DatapathError("the native data path was started already; make a new one")
        config = self._config
        extra: TunDevice | None = None
        try:
            extra = self._open_queues()
            engine = self._native.Engine(
                tun_fds=(config.tun_fd, *(extra.fds if extra else ())),
                udp_fd=config.udp_fd,
                tun_address=int(config.tun_address),
                network=int(config.network.network_address),
                netmask=int(config.network.netmask),
                mtu=config.mtu,
                port=config.port,
                any_port=config.any_port,
                accept_any=config.accept_any,
                vnet_header=config.vnet_hdr,
                forced_off=sum(
                    1 << i for i, name in enumerate(self._native.OFFLOADS) if name in self._off
                ),
                assume_offloads=self._assume_offloads,
                threads=self._threads,
                spin_us=self._spin_us,
                gather_us=self._gather_us,
            )
            engine.replace_table(self._rows)
            engine.start()
        except OSError as error:
            raise DatapathError(
                f"start the native data path on {config.tun_name}: {_spell(error.errno or 0)}"
            ) from error
        except KernelError as error:
            raise DatapathError(f"start the native data path: {error}") from error
        finally:
            if extra:
                extra.close()  # the engine has its own duplicates
        self._engine = engine

    def complete(self) -> None:
        """Nothing: all of it is there from the start."""

    def replace_table(self, table: PeerTable) -> None:
        """Puts a whole new peer table in force, from each thread's next batch on."""
        self._rows = pack_rows(table)
        if self._engine is not None:
            self._engine.replace_table(self._rows)

    def counters(self) -> dict[str, int]:
        """All of `COUNTERS`, since start."""
        if self._engine is None:
            return dict.fromkeys(COUNTERS, 0)
        self._tell_withdrawn()
        return dict(zip(COUNTERS, self._engine.counters(), strict=True))

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        """All of `PEER_COUNTERS`."""
        counts = self._engine.peer(int(peer)) if self._engine is not None else None
        return dict(zip(PEER_COUNTERS, counts, strict=True)) if counts is not None else None

    def failure(self) -> str | None:
        """Why it no longer moves packets, or `None`."""
        if self._engine is None:
            return None
        self._tell_withdrawn()
        code = self._engine.failure()
        if not code:
            return None
        what = "end of file" if code == errno.EPIPE else _spell(code)
        return f"{what}: {self._config.tun_name} is gone"

    def repair(self) -> tuple[str, ...]:
        """Nothing: the descriptors are all there is."""
        return ()

    def slowed(self) -> str:
        """Never: there is no slow path."""
        return ""

    def stop(self) -> None:
        """Ends the threads and waits for them, a few milliseconds at most. May be called twice."""
        if self._engine is not None:
            self._engine.stop()

    def _offloads(self) -> dict[str, str]:
        if self._engine is None:
            return {}
        return {
            name: _STATES[state].format(_spell(code))
            for name, (state, code) in zip(
                self._native.OFFLOADS, self._engine.offloads(), strict=True
            )
        }

    def _tell_withdrawn(self) -> None:
        """Logs once that the kernel refused an offload on a packet."""
        for name, state in self._offloads().items():
            if state.startswith("withdrawn") and name not in self._told:
                self._told.add(name)
                log.warning(
                    "offload withdrawn",
                    datapath="native",
                    device=self._config.tun_name,
                    offload=name,
                    reason=state,
                )

    def _open_queues(self) -> TunDevice | None:
        """Opens further queues of a multi-queue TUN; `None` if none is wanted."""
        try:
            answer = fcntl.ioctl(self._config.tun_fd, _TUNGETIFF, bytes(_IFREQ.size))
        except OSError:
            return None  # not a TUN
        name, flags = _IFREQ.unpack(answer)
        if not flags & IFF_MULTI_QUEUE or self._queues == 1:
            return None
        return open_tun(
            name.rstrip(b"\0").decode(),
            vnet_hdr=self._config.vnet_hdr,
            multi_queue=True,
            queues=self._queues - 1,
        )


def _spell(code: int) -> str:
    """`EBADFD`, the way the manual pages spell it."""
    return errno.errorcode.get(code, str(code))
