"""Loading, filling and keeping the BPF programs: the `ebpf` data path."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DatapathError, FlannelError, KernelError
from pyflannel.core.lpm import RouteTable
from pyflannel.datapath.base import Capabilities, Datapath, DatapathConfig
from pyflannel.datapath.ebpf import bpf, gropair, pins
from pyflannel.datapath.ebpf.links import Links, keep_pinned
from pyflannel.datapath.ebpf.pins import BPFFS
from pyflannel.datapath.python import PythonDatapath
from pyflannel.logs import get_logger

log = get_logger(__name__)

BPF_FS_MAGIC: Final = 0xCAFE4A11
"""linux/magic.h."""
OBJECT: Final = "flannel.bpf.o"
SETTINGS: Final = struct.Struct("=4s4s4sIIII16s16sHHBB6s6s12sBx")
"""`struct settings` in flannel.bpf.c; addresses and port in network byte order."""
PREFIX: Final = struct.Struct("=I4s")
HOP: Final = struct.Struct("=4s20x")
"""`struct hop`: the address; what the programs remember of the peer begins at 0."""
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
"""The last one: test frames that came through (`gropair.py`)."""
PROGRAMS: Final = {
    "overlay_out": bpf.TCX_EGRESS,
    "underlay_in": bpf.TCX_INGRESS,
    "pair_in": bpf.TCX_INGRESS,
    "gro_in": bpf.TCX_INGRESS,
    "strip_out": bpf.TCX_EGRESS,
}
"""Each program, and at which side of its device."""


def probe() -> Capabilities | str:
    """Loads the programs without attaching them: the one honest test of kernel and rights."""
    try:
        loaded = _Programs(None)
    except FlannelError as error:
        return str(error)
    shape = _shape("peers", loaded.maps["peers"].definition)
    can_attach = all(bpf.has_tcx(loaded.programs[name], side) for name, side in PROGRAMS.items())
    loaded.close()
    if not can_attach:
        return "this kernel has no tcx"
    lasting = is_bpffs(BPFFS)
    return Capabilities(
        name="ebpf", outlives_daemon=lasting, meanwhile=lasting and _is_other_release(shape)
    )


def _is_other_release(peers: str) -> bool:
    """Whether a peer table is pinned and none in the shape of ours.

    Those of other releases stay: the way back to one finds its table, and loses no packet either.
    """
    directory = pins.pin_directory()
    if not pins.is_there(directory):
        return False
    found = {path.name for path in directory.glob("peers-*")}
    return bool(found) and peers not in found


def _shape(name: str, definition: bpf.MapDefinition) -> str:
    """What a map's pin is called.

    After an update that changes the definition a map of the old shape is not mistaken for ours.
    """
    d = definition
    return "-".join((name, *(str(n) for n in (d.key_bytes, d.value_bytes, d.entries))))


def is_bpffs(path: str) -> bool:
    """Whether a BPF file system that we may write to is mounted there.

    In the unit's sandbox it is our directory in it alone.
    """
    own = Path(path, pins.DIRECTORY)
    return _is_writable_bpffs(str(own) if own.is_dir() else path)


def _is_writable_bpffs(path: str) -> bool:
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(path.encode(), buffer) != 0:
        return False
    (kind,) = struct.unpack_from("=l", buffer.raw)
    return kind & 0xFFFFFFFF == BPF_FS_MAGIC and os.access(path, os.W_OK)


def leftovers(base: str = BPFFS) -> list[str]:
    """What `remove_leftovers` would take away, in words."""
    directory = pins.pin_directory(base)
    found = [f"eBPF programs and maps in {directory}"] if pins.is_there(directory) else []
    return found + ([f"rule iif {gropair.SENDER}"] if gropair.has_rule() else [])


def remove_leftovers(base: str = BPFFS) -> bool:
    """Detaches what an earlier run left in this network namespace; whether there was anything."""
    found = pins.remove(pins.pin_directory(base))
    with contextlib.suppress(KernelError):
        found |= gropair.remove()
    return found


class _Programs:
    """The object's maps and programs, loaded; owns their descriptors.

    Args:
        directory: where maps of an earlier run may be pinned, and ours will be.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self.maps: dict[str, bpf.Map] = {}
        self._pins: dict[str, Path] = {}
        self.programs: dict[str, int] = {}
        data = resources.files(__package__).joinpath(OBJECT).read_bytes()
        self._object = bpf.BpfObject(data)
        try:
            for name, definition in self._object.maps.items():
                self.maps[name] = self._map(name, definition)
            fds = {name: each.fd for name, each in self.maps.items()}
            for name, where in PROGRAMS.items():
                code = self._object.instructions(f"tcx/{name}", fds)
                self.programs[name] = bpf.load_program(name, code, self._object.license, where)
        except BaseException:
            self.close()
            raise

    def _map(self, name: str, definition: bpf.MapDefinition) -> bpf.Map:
        if self._directory is None:
            return bpf.Map.create(name, definition)
        self._pins[name] = path = self._directory / _shape(name, definition)
        fd = bpf.get_pinned(str(path))
        if fd is not None:
            return bpf.Map(fd, name, definition)
        made = bpf.Map.create(name, definition)
        bpf.pin(made.fd, str(path))
        return made

    def mend_pins(self) -> list[str]:
        """Pins what is not pinned any more; the names.

        Raises:
            KernelError, OSError: naming what cannot be pinned.
        """
        return [name for name, path in self._pins.items() if keep_pinned(self.maps[name].fd, path)]

    def close(self) -> None:
        """Closes all descriptors; what is pinned or attached stays."""
        for each in self.maps.values():
            each.close()
        for fd in self.programs.values():
            os.close(fd)
        self.programs.clear()


class EbpfDatapath:
    """The `Datapath` whose ordinary packets never leave the kernel."""

    def __init__(self, config: DatapathConfig) -> None:
        self._config = config
        self._slow: Datapath = PythonDatapath(config)
        self._pins = self._pin_directory()
        self._loaded: _Programs | None = None
        self._links: Links | None = None
        self._trouble = "not started"
        self._gro: gropair.GroPair | None = None
        self._token = bytes(gropair.TOKEN_BYTES)
        self._why_not = "not started"
        self._no_pair = self._refused = ""
        self._overlay = self._underlay = 0
        self._given: dict[bytes, bytes] | None = None
        self._peers: dict[bytes, bytes] = {}
        self._before = dict.fromkeys(COUNTED, 0)

    @property
    def capabilities(self) -> Capabilities:
        """What is in use."""
        return Capabilities(
            name="ebpf",
            outlives_daemon=self._pins is not None,
            offloads={
                "tcx": f"off ({self._trouble})" if self._trouble else "on",
                "gro": "on" if self._gro is not None else "off (no veth pair)",
                "finish": (
                    "on"
                    if self._gro is not None
                    else "off (no veth pair: to peers in user space by the slow path)"
                ),
                "strip": f"off ({self._why_not})" if self._why_not else "on",
                "pinned": str(self._pins) if self._pins is not None else "off (no bpffs)",
            },
            devices=(gropair.SENDER, gropair.RECEIVER),
        )

    def start(self) -> None:
        """As in `Datapath`."""
        try:
            self._start()
        except BaseException as error:
            self.stop()
            if isinstance(error, KernelError | OSError):
                raise DatapathError(f"ebpf data path: {error}") from error
            raise

    def _start(self) -> None:
        config = self._config
        try:
            underlay = socket.if_nametoindex(config.underlay_name)
            overlay = socket.if_nametoindex(config.tun_name)
        except OSError as error:
            names = f"{config.underlay_name}, {config.tun_name}"
            raise DatapathError(f"ebpf data path: no interface of {names}") from error
        self._loaded = loaded = _Programs(self._pins)
        self._links = Links(loaded.programs, PROGRAMS, self._pins)
        self._overlay, self._underlay = overlay, underlay
        if not self._adopt(loaded):
            # Before a program of ours runs in a link of another release's.
            self._write_settings()
        self._build_pair()
        self._write_settings()
        self._use_third_way(self._try_third_way(opened=False))
        self._trouble = ""
        self._slow.start()

    def _adopt(self, loaded: _Programs) -> bool:
        """Takes over what an earlier run has left in the pinned maps; packets are on their way.

        Returns:
            Whether it left settings.
        """
        self._peers = self._pinned_peers(loaded.maps["peers"])
        if self._given is not None:
            self._write_peers(self._given)
        self._before = self._read_counters(loaded.maps["counters"])
        found = loaded.maps["config"].get(ZERO_KEY, SETTINGS.size) or bytes(SETTINGS.size)
        *_, strips, _gro, _strip, token, _any_port = SETTINGS.unpack(found)
        self._why_not = "" if strips else "not tried yet"
        self._token = token if any(token) else gropair.new_token()
        return any(found)

    def _build_pair(self) -> list[str]:
        """All that depends on the veth pair: its ends, who is attached, the third way.

        Returns:
            What was not as it is to be with the pair.

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
        places = {"overlay_out": self._overlay, "underlay_in": self._underlay}
        if self._gro is not None:
            places |= {
                "pair_in": self._gro.sender,
                "gro_in": self._gro.receiver,
                "strip_out": self._gro.receiver,
            }
        # Before anything leads there. Until the settings name a pair, nothing does.
        assert self._links is not None  # noqa: S101
        self._links.place(places)
        if self._gro != before:
            self._write_settings()
        return wrong

    def repair(self) -> list[str]:
        """Compares everything of ours in the kernel with what it is to be, and mends it."""
        if self._loaded is None or self._links is None:
            return []
        mended: list[str] = []
        trouble = ""
        for mend in (self._mend_pair, self._mend_links, self._mend_maps):
            try:
                mended += mend()
            except (FlannelError, OSError) as error:
                trouble = trouble or str(error)
        if trouble and trouble != self._trouble:
            log.warning("ebpf data path cannot be mended, user space carries more", reason=trouble)
        self._trouble = trouble
        if mended:
            log.info("ebpf data path mended", what=", ".join(mended))
        was_open = not self._why_not
        self._use_third_way(self._try_third_way(opened=was_open))
        return mended + ([] if was_open or self._why_not else ["strip"])

    def _mend_pair(self) -> list[str]:
        before = self._gro
        wrong = self._build_pair()
        return ["gro pair"] if self._gro is not None and (wrong or self._gro != before) else []

    def _mend_links(self) -> list[str]:
        assert self._links is not None  # noqa: S101
        return self._links.mend()

    def _mend_maps(self) -> list[str]:
        """The maps' pins, the peers and the settings."""
        assert self._loaded is not None  # noqa: S101
        mended = [f"pin {name}" for name in self._loaded.mend_pins()]
        peers = self._loaded.maps["peers"]
        there = self._pinned_peers(peers)
        if there != self._peers:
            wanted, self._peers = self._peers, there
            self._write_peers(wanted)
            mended.append("peers")
        config = self._loaded.maps["config"]
        if config.get(ZERO_KEY, SETTINGS.size) != self._settings():
            self._write_settings()
            mended.append("settings")
        return mended

    def _try_third_way(self, *, opened: bool) -> str:
        """Opens it, if it is not open; why it cannot be used, or nothing."""
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

    def _use_third_way(self, why_not: str) -> None:
        if why_not and why_not != self._why_not:
            log.info("ebpf data path cuts what arrives as super packets", reason=why_not)
        elif not why_not and self._why_not:
            log.debug("ebpf data path passes on super packets whole")
        changed = bool(why_not) != bool(self._why_not)
        self._why_not = why_not
        if changed:
            self._write_settings()

    def replace_table(self, table: RouteTable) -> None:
        """Puts the table's entries into the map, one by one; none is missing on the way."""
        self._slow.replace_table(table)
        wanted = {
            PREFIX.pack(peer.subnet.prefixlen, peer.subnet.network_address.packed): (
                peer.address.packed
            )
            for peer in table.peers
        }
        if self._loaded is None:
            self._given = wanted
        else:
            self._write_peers(wanted)

    def _write_peers(self, wanted: Mapping[bytes, bytes]) -> None:
        """Makes the map hold these addresses by prefix. What it cannot hold takes the slow path."""
        assert self._loaded is not None  # noqa: S101
        peers = self._loaded.maps["peers"]
        refused: KernelError | None = None
        for key, address in wanted.items():
            if self._peers.get(key) != address:
                try:
                    peers.set(key, HOP.pack(address))
                except KernelError as error:
                    refused = error
        for key in self._peers.keys() - wanted.keys():
            try:
                peers.delete(key)
            except KernelError as error:
                refused = error
        self._peers = dict(wanted)
        reason = str(refused or "")
        if reason and reason != self._refused:
            log.warning("peers take the slow path", reason=reason)
        self._refused = reason

    def counters(self) -> dict[str, int]:
        """The user-space path's and the programs', added up."""
        total = self._slow.counters()
        if self._loaded is not None:
            now = self._read_counters(self._loaded.maps["counters"])
            for name in COUNTED:
                total[name] += now[name] - self._before[name]
        return total

    def failure(self) -> str | None:
        """The user-space path notices first when the device goes."""
        return self._slow.failure()

    def stop(self) -> None:
        """Stops the user-space path; the programs stay if they are pinned."""
        self._slow.stop()
        if self._links is not None:
            self._links.close()
            self._links = None
            self._trouble = "stopped"
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
            if self._pins is None:
                with contextlib.suppress(KernelError):
                    gropair.remove()

    # Pieces of start

    def _pin_directory(self) -> Path | None:
        base = self._config.pin_dir
        if not base or not is_bpffs(base):
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
            config.accept_any,
            not self._why_not and gro is not None,
            gro.receiver_mac if gro is not None else bytes(6),
            gro.sender_mac if gro is not None else bytes(6),
            self._token,
            config.any_port,
        )

    def _tests_arrived(self) -> int:
        assert self._loaded is not None  # noqa: S101
        return _total(self._loaded.maps["counters"], STRIP_TESTS)

    @staticmethod
    def _pinned_peers(peers: bpf.Map) -> dict[bytes, bytes]:
        """Prefix → address, both packed."""
        return {key: HOP.unpack(value)[0] for key, value in peers.items(HOP.size).items()}

    @staticmethod
    def _read_counters(counters: bpf.Map) -> dict[str, int]:
        return {name: _total(counters, number) for number, name in enumerate(COUNTED)}


def _total(counters: bpf.Map, number: int) -> int:
    """One counter, over all CPUs."""
    cpus = bpf.possible_cpus()
    values = counters.get(struct.pack("=I", number), 8 * cpus) or bytes(8 * cpus)
    return sum(struct.unpack(f"={cpus}Q", values))
