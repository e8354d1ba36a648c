"""Loading, filling and keeping the BPF programs: the `ebpf` data path."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DatapathError, FlannelError, KernelError
from pyflannel.core.lpm import PeerTable
from pyflannel.datapath.advice import SLOW_S, Carried, slow_share
from pyflannel.datapath.base import Capabilities, Datapath, DatapathConfig
from pyflannel.datapath.ebpf import attachment, bpf, clsact, gropair, pins
from pyflannel.datapath.ebpf.attachment import Attachment
from pyflannel.datapath.ebpf.cardgro import CardGro
from pyflannel.datapath.ebpf.ipsec import Guards
from pyflannel.datapath.ebpf.programs import PROGRAMS, Programs
from pyflannel.datapath.ebpf.traffic import PeerTraffic
from pyflannel.datapath.python import PythonDatapath
from pyflannel.logs import get_logger

log = get_logger(__name__)

SETTINGS: Final = struct.Struct("=4s4s4sIIII16s16sHHBB6s6s12sBB")
"""`struct settings` in flannel.bpf.c; addresses and port in network byte order."""
PREFIX: Final = struct.Struct("=I4s")
HOP: Final = struct.Struct("=4sI24x")
"""`struct hop`: address and number. The programs' own fields start at 0."""
LENGTHS: Final = struct.Struct("=32s")
"""`struct lengths`: of the prefixes among the peers, longest first."""
ZERO_KEY: Final = bytes(4)
COUNTED: Final = (
    "tun_packets",
    "tun_bytes",
    "udp_packets",
    "udp_bytes",
    "tun_send_error",
    "udp_write_error",
)
"""The first of `enum counter` in flannel.bpf.c, by the names of `datapath.base.COUNTERS`."""
STRIP_TESTS: Final = len(COUNTED)
"""The next one: test frames that came through (`gropair.py`)."""
NO_WAY: Final = STRIP_TESTS + 1
"""The last one: packets whose route is not by the external interface."""


class EbpfDatapath:
    """The `Datapath` whose ordinary packets never leave the kernel."""

    def __init__(self, config: DatapathConfig) -> None:
        self._config = config
        self._slow: Datapath = PythonDatapath(config)
        self._pins = self._pin_directory()
        self._card = CardGro(config, self._pins)
        self._loaded: Programs | None = None
        self._attachment: Attachment | None = None
        self._way = "tcx"
        self._trouble = "not started"
        self._completed = False
        self._gro: gropair.GroPair | None = None
        self._token = bytes(gropair.TOKEN_BYTES)
        self._srv6_refusal = "not started"
        self._no_pair = self._refused = ""
        self._overlay = self._underlay = 0
        self._guards = Guards(config.underlay_address, config.port)
        self._aside = 0
        self._behind = ""
        """What others have put at the egress of the TUN."""
        self._given: dict[bytes, bytes] | None = None
        """Address by prefix: the peers, as they were last told."""
        self._peers: dict[bytes, tuple[bytes, int]] = {}
        """Address and number by prefix: the content of the map."""
        self._traffic: PeerTraffic | None = None
        self._before = dict.fromkeys(COUNTED, 0)
        self._carried: Carried | None = None
        """When `slowed` last judged."""

    @property
    def capabilities(self) -> Capabilities:
        """What is in use."""
        return Capabilities(
            name="ebpf",
            outlives_daemon=self._pins is not None,
            offloads={
                self._way: f"off ({self._trouble})" if self._trouble else "on",
                "gro": "on" if self._gro is not None else "off (no veth pair)",
                "finish": (
                    "on"
                    if self._gro is not None
                    else "off (no veth pair: to peers in user space by the slow path)"
                ),
                "strip": f"off ({self._srv6_refusal})" if self._srv6_refusal else "on",
                "card_gro": self._card.state,
                "all_peers": f"off ({self._left})" if self._left else "on",
                "pinned": str(self._pins) if self._pins is not None else "off (no bpffs)",
            },
            devices=(gropair.SENDER, gropair.RECEIVER),
        )

    def prepare(self) -> None:
        """Loads and attaches the programs.

        Each attachment waits for all CPUs, 10 ms or more. So the veth pair with its three programs
        is left to `complete`, unless packets use it already.
        """
        with self._whole():
            self._attach()

    def start(self) -> None:
        """As in `Datapath`."""
        with self._whole():
            if self._loaded is None:
                self._attach()
            self._slow.start()
            self._guards.watch(self._heed_guards)
            self._card.ensure(self._write_settings)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Removes everything again if the start fails.

        Raises:
            DatapathError: instead of the kernel's errors.
        """
        try:
            yield
        except BaseException as error:
            self.stop()
            if isinstance(error, KernelError | OSError):
                raise DatapathError(f"ebpf data path: {error}") from error
            raise

    def _attach(self) -> None:
        config = self._config
        try:
            underlay = socket.if_nametoindex(config.underlay_name)
            overlay = socket.if_nametoindex(config.tun_name)
        except OSError as error:
            names = f"{config.underlay_name}, {config.tun_name}"
            raise DatapathError(f"ebpf data path: no interface of {names}") from error
        self._loaded = loaded = self._card.load()
        self._attachment = attachment.attach(loaded.programs, PROGRAMS, self._pins)
        self._way = self._attachment.name
        self._overlay, self._underlay = overlay, underlay
        self._guards.look()
        self._behind = clsact.behind(overlay)
        adopted = self._adopt(loaded)
        if not adopted:
            # Before a program of ours runs in a link of another release.
            self._write_settings()
        if adopted or gropair.find() is not None:
            self._use_pair()
        else:
            self._attachment.place(self._places())
        self._trouble = ""

    def complete(self) -> None:
        """Adds the veth pair: the second GRO, and the SRv6 way."""
        if self._loaded is None or self._completed:
            return
        try:
            self._use_pair()
        except (FlannelError, OSError) as error:
            self._trouble = str(error)
            log.warning("ebpf data path not complete, user space carries more", reason=error)

    def _use_pair(self) -> None:
        assert self._attachment is not None  # noqa: S101
        self._completed = True  # `repair` tries again
        self._build_pair()
        self._write_settings()
        self._use_srv6(self._try_srv6(opened=False))
        former = attachment.remove_others(self._attachment, self._pins)
        if former:
            log.info("programs were attached another way before", removed=", ".join(former))

    def _adopt(self, loaded: Programs) -> bool:
        """Takes over the content of the pinned maps of an earlier run, while packets flow.

        Returns:
            Whether it left settings.
        """
        self._peers = self._pinned_peers(loaded.maps["peers"])
        numbers = {address: number for address, number in self._peers.values() if number}
        self._traffic = PeerTraffic(loaded.maps["traffic"], bpf.possible_cpus(), numbers)
        if self._given is not None or self._guards.any:
            self._write_peers(self._wanted())
        self._before = self._read_counters(loaded.maps["counters"])
        found = loaded.maps["config"].get(ZERO_KEY, SETTINGS.size) or bytes(SETTINGS.size)
        *_, strips, _gro, _strip, token, _any_port, _at_card = SETTINGS.unpack(found)
        self._srv6_refusal = "" if strips else "not tried yet"
        self._token = token if any(token) else gropair.new_token()
        return any(found)

    def _build_pair(self) -> list[str]:
        """Sets up all that depends on the veth pair: its ends, the programs at them, the SRv6 way.

        Returns:
            What had to be repaired.

        Raises:
            KernelError: a program cannot be attached.
        """
        wrong: list[str] = []
        before = self._gro
        try:
            self._gro, wrong = gropair.ensure()
        except (KernelError, OSError) as error:
            self._gro = None
            if str(error) != self._no_pair:
                log.info("ebpf data path without a second GRO", reason=str(error))
            self._no_pair = str(error)
        # Before packets go there. They do not, until the settings name a pair.
        assert self._attachment is not None  # noqa: S101
        self._attachment.place(self._places())
        if self._gro != before:
            self._write_settings()
        return wrong

    def _places(self) -> dict[str, int]:
        """Where each program belongs."""
        places = {"underlay_in": self._underlay}
        if not self._behind:
            places["overlay_out"] = self._overlay
        if self._gro is not None:
            places |= {
                "pair_in": self._gro.sender,
                "gro_in": self._gro.receiver,
                "strip_out": self._gro.receiver,
            }
        return places

    def repair(self) -> list[str]:
        """Compares all our objects in the kernel with what they should be, and repairs them."""
        if self._loaded is None or self._attachment is None:
            return []
        watched = self._guards.watch(self._heed_guards)
        # Events tell of all changes; to look all the same is no more than a full pass may take.
        mended = self._heed_guards() if not watched or self._guards.is_quick else []
        trouble = ""
        pair = (self._mend_pair,) if self._completed else ()
        for mend in (*pair, self._mend_attachment, self._mend_maps):
            try:
                mended += mend()
            except (FlannelError, OSError) as error:
                trouble = trouble or str(error)
        if trouble and trouble != self._trouble:
            log.warning(
                "ebpf data path cannot be repaired, user space carries more", reason=trouble
            )
        self._trouble = trouble
        mended += self._card.ensure(self._write_settings, attached=not trouble)
        if mended:
            log.info("ebpf data path repaired", what=", ".join(mended))
        if not self._completed:
            return mended
        was_open = not self._srv6_refusal
        self._use_srv6(self._try_srv6(opened=was_open))
        return mended + ([] if was_open or self._srv6_refusal else ["strip"])

    def _mend_pair(self) -> list[str]:
        before = self._gro
        wrong = self._build_pair()
        return ["gro pair"] if self._gro is not None and (wrong or self._gro != before) else []

    def _mend_attachment(self) -> list[str]:
        assert self._attachment is not None  # noqa: S101
        former, self._behind = self._behind, clsact.behind(self._overlay)
        if self._behind != former:
            self._attachment.place(self._places())
            log.info("the device has something for what goes out", what=self._behind or "nothing")
        return self._attachment.mend()

    def _mend_maps(self) -> list[str]:
        """The maps' pins, the peers and the settings."""
        assert self._loaded is not None  # noqa: S101
        mended = [f"pin {name}" for name in self._loaded.mend_pins()]
        peers = self._loaded.maps["peers"]
        there = self._pinned_peers(peers)
        lengths = self._loaded.maps["lengths"].get(ZERO_KEY, LENGTHS.size)
        if there != self._peers or lengths != lengths_of(self._peers):
            wanted = self._wanted()
            self._peers = there
            self._write_peers(wanted)
            mended.append("peers")
        config = self._loaded.maps["config"]
        if config.get(ZERO_KEY, SETTINGS.size) != self._settings():
            self._write_settings()
            mended.append("settings")
        return mended

    def _try_srv6(self, *, opened: bool) -> str:
        """Opens the SRv6 way; why it cannot be used, empty if it can."""
        if self._gro is None:
            return "no veth pair"
        try:
            gropair.write_settings()
            if opened and gropair.comes_through(self._gro, self._token, self._tests_arrived):
                return ""
            gropair.put_routes(self._gro)
            if gropair.comes_through(self._gro, self._token, self._tests_arrived):
                return ""
        except (KernelError, OSError) as error:
            return str(error)
        return "a test frame does not come through: does a rule of IPv6 drop it in PREROUTING?"

    def _use_srv6(self, refusal: str) -> None:
        if refusal and refusal != self._srv6_refusal:
            log.info("ebpf data path cuts what arrives as super packets", reason=refusal)
        elif not refusal and self._srv6_refusal:
            log.debug("ebpf data path passes on super packets whole")
        changed = bool(refusal) != bool(self._srv6_refusal)
        self._srv6_refusal = refusal
        if changed:
            self._write_settings()

    def replace_table(self, table: PeerTable) -> None:
        """Puts the table's entries into the map one by one. Entries that stay are never missing."""
        self._slow.replace_table(table)
        wanted = {
            PREFIX.pack(peer.subnet.prefixlen, peer.subnet.network_address.packed): (
                peer.address.packed
            )
            for peer in table.peers
        }
        self._given = wanted
        if self._loaded is not None:
            self._write_peers(wanted)

    def _heed_guards(self) -> list[str]:
        """Looks which peers policies of IPsec are for, and writes the others.

        Returns:
            What can be added again, now that there are none.
        """
        if self._loaded is None or not self._guards.look():
            return []
        self._write_peers(self._wanted())
        self._write_settings()
        return self._card.ensure(self._write_settings, attached=not self._trouble)

    def _wanted(self) -> dict[bytes, bytes]:
        """All peers, address by prefix; before the first table those of an earlier run."""
        if self._given is not None:
            return self._given
        return {key: address for key, (address, _) in self._peers.items()}

    def _write_peers(self, wanted: Mapping[bytes, bytes]) -> None:
        """Makes the map hold these addresses by prefix. The rest takes the slow path."""
        assert self._loaded is not None  # noqa: S101
        assert self._traffic is not None  # noqa: S101
        peers = self._loaded.maps["peers"]
        refused: KernelError | None = None
        self._traffic.give_numbers(wanted.values())
        hops = {
            key: (each, self._traffic.number(each))
            for key, each in wanted.items()
            if not self._guards.cover(each)
        }
        for key, hop in hops.items():
            if self._peers.get(key) != hop:
                try:
                    peers.set(key, HOP.pack(*hop))
                except KernelError as error:
                    refused = error
        # New entries are found from here on, and those that go no longer have to be.
        self._loaded.maps["lengths"].set(ZERO_KEY, lengths_of(hops))
        for key in self._peers.keys() - hops.keys():
            try:
                peers.delete(key)
            except KernelError as error:
                refused = error
        self._peers = hops
        self._note_aside(len(wanted) - len(hops))
        reason = str(refused or "")
        if reason and reason != self._refused:
            log.warning("peers take the slow path", reason=reason)
        self._refused = reason

    @property
    def _left(self) -> str:
        """Why all packets that go out, or those of some peers, are left to user space."""
        if self._behind:
            return f"what goes out passes {self._config.tun_name}'s {self._behind}"
        if self._aside:
            return f"policies of IPsec are for {self._aside} of {len(self._given or ())} peers"
        return ""

    def _note_aside(self, aside: int) -> None:
        if aside != self._aside:
            log.info("user space carries the peers that policies of IPsec are for", peers=aside)
        self._aside = aside

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        """The user-space path's and the programs', added up."""
        slow = self._slow.peer_counters(peer)
        if slow is None or self._traffic is None or self._loaded is None:
            return slow
        fast = self._traffic.of(peer.packed) or {}
        return {**slow, **{name: slow[name] + n for name, n in fast.items()}}

    def counters(self) -> dict[str, int]:
        """The user-space path's and the programs', added up."""
        total = self._slow.counters()
        if self._loaded is not None:
            now = self._read_counters(self._loaded.maps["counters"])
            for name in COUNTED:
                total[name] += now[name] - self._before[name]
        return total

    def slowed(self) -> str:
        """Where its slow path has most peers, or most packets that go out.

        Pods cannot make it so: packets that are left to user space for what they are do not count.
        """
        if self._behind or 2 * self._aside > len(self._given or ()):
            return self._left
        before, at = self._carried, time.monotonic()
        if self._loaded is None or (before is not None and at - before.at < SLOW_S):
            return ""
        slow = _total(self._loaded.maps["counters"], NO_WAY)
        self._carried = now = Carried(at, slow, self.counters()["tun_packets"])
        return slow_share(before, now) if before is not None else ""

    def failure(self) -> str | None:
        """The failure of the user-space path, which notices first when the device is gone."""
        return self._slow.failure()

    def stop(self) -> None:
        """Stops the user-space path; the programs stay if they are pinned."""
        if self._loaded is not None:
            self._card.stop(self._write_settings)
        self._guards.stop()
        self._slow.stop()
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None
            self._trouble = "stopped"
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
            if self._pins is None:
                with contextlib.suppress(KernelError):
                    gropair.remove()

    # Parts of the start

    def _pin_directory(self) -> Path | None:
        base = self._config.pin_dir
        if not base or not pins.is_bpffs(base):
            return None
        directory = pins.pin_directory(base)
        reason = pins.make(directory)
        if reason:
            log.warning("programs are not pinned, so they end with the daemon", reason=reason)
            return None
        return directory

    def _write_settings(self) -> None:
        assert self._loaded is not None  # noqa: S101
        self._loaded.maps["config"].set(ZERO_KEY, self._settings())

    def _settings(self) -> bytes:
        config, gro = self._config, self._gro
        return SETTINGS.pack(
            config.underlay_address.packed,
            config.network.network_address.packed,
            config.network.netmask.packed,
            self._overlay,
            self._underlay,
            gro.sender if gro is not None else 0,
            gro.receiver if gro is not None else 0,
            gropair.STRIP_FROM.packed,
            gropair.STRIP_TO.packed,
            socket.htons(config.port),
            config.mtu,
            # From strangers user space takes what is allowed, of those with a policy as well.
            config.accept_any and not self._guards.any,
            not self._srv6_refusal and gro is not None,
            gro.receiver_mac if gro is not None else bytes(6),
            gro.sender_mac if gro is not None else bytes(6),
            self._token,
            config.any_port,
            self._card.on,
        )

    def _tests_arrived(self) -> int:
        assert self._loaded is not None  # noqa: S101
        return _total(self._loaded.maps["counters"], STRIP_TESTS)

    @staticmethod
    def _pinned_peers(peers: bpf.Map) -> dict[bytes, tuple[bytes, int]]:
        """Prefix → address, both packed, and number."""
        return {key: HOP.unpack(value) for key, value in peers.items(HOP.size).items()}

    @staticmethod
    def _read_counters(counters: bpf.Map) -> dict[str, int]:
        return {name: _total(counters, number) for number, name in enumerate(COUNTED)}


def lengths_of(prefixes: Iterable[bytes]) -> bytes:
    """`struct lengths` for these keys of the map of peers."""
    lengths = {PREFIX.unpack(key)[0] for key in prefixes}
    return LENGTHS.pack(bytes(sorted(lengths - {0}, reverse=True)))


def _total(counters: bpf.Map, number: int) -> int:
    """One counter, over all CPUs."""
    cpus = bpf.possible_cpus()
    values = counters.get(struct.pack("=I", number), 8 * cpus) or bytes(8 * cpus)
    return sum(struct.unpack(f"={cpus}Q", values))
