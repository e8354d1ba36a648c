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
from pyflannel.datapath.ebpf import bpf, gropair
from pyflannel.datapath.python import PythonDatapath
from pyflannel.logs import get_logger

log = get_logger(__name__)

BPFFS: Final = "/sys/fs/bpf"
BPF_FS_MAGIC: Final = 0xCAFE4A11
"""linux/magic.h."""
OBJECT: Final = "flannel.bpf.o"
SETTINGS: Final = struct.Struct("=4s4s4sIIII16s16sHHBB6s6s12s2x")
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
    loaded.close()
    return Capabilities(name="ebpf", outlives_daemon=is_bpffs(BPFFS))


def is_bpffs(path: str) -> bool:
    """Whether a BPF file system that we may write to is mounted there."""
    buffer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(path.encode(), buffer) != 0:
        return False
    (kind,) = struct.unpack_from("=l", buffer.raw)
    return kind & 0xFFFFFFFF == BPF_FS_MAGIC and os.access(path, os.W_OK)


def pin_directory(base: str = BPFFS) -> Path:
    """Where this network namespace's pins live."""
    namespace = Path("/proc/thread-self/ns/net").stat().st_ino
    return Path(base) / "pyflannel" / str(namespace)


def leftovers(base: str = BPFFS) -> list[str]:
    """What `remove_leftovers` would take away, in words."""
    directory = pin_directory(base)
    found = [f"eBPF programs and maps in {directory}"] if directory.is_dir() else []
    return found + ([f"rule iif {gropair.SENDER}"] if gropair.has_rule() else [])


def remove_leftovers(base: str = BPFFS) -> bool:
    """Detaches what an earlier run left in this network namespace; whether there was anything."""
    directory = pin_directory(base)
    found = directory.is_dir()
    if found:
        for entry in directory.iterdir():
            entry.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()
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
        # The definition is part of the name: after an update that changes it, a map of the old
        # shape is not mistaken for ours.
        d = definition
        shape = "-".join(str(n) for n in (d.key_bytes, d.value_bytes, d.entries))
        path = self._directory / f"{name}-{shape}"
        fd = bpf.get_pinned(str(path))
        if fd is not None:
            return bpf.Map(fd, name, definition)
        made = bpf.Map.create(name, definition)
        bpf.pin(made.fd, str(path))
        return made

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
        self._links: dict[str, int] = {}
        self._gro: gropair.GroPair | None = None
        self._token = bytes(gropair.TOKEN_BYTES)
        self._why_not = "not started"
        self._overlay = self._underlay = 0
        self._peers: dict[bytes, bytes] = {}
        self._before = dict.fromkeys(COUNTED, 0)

    @property
    def capabilities(self) -> Capabilities:
        """What is in use."""
        return Capabilities(
            name="ebpf",
            outlives_daemon=self._pins is not None,
            offloads={
                "tcx": "on" if self._links else "off (not started)",
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
        except (KernelError, OSError) as error:
            self.stop()
            raise DatapathError(f"ebpf data path: {error}") from error

    def _start(self) -> None:
        config = self._config
        try:
            underlay = socket.if_nametoindex(config.underlay_name)
            overlay = socket.if_nametoindex(config.tun_name)
        except OSError as error:
            names = f"{config.underlay_name}, {config.tun_name}"
            raise DatapathError(f"ebpf data path: no interface of {names}") from error
        self._loaded = loaded = _Programs(self._pins)
        self._overlay, self._underlay = overlay, underlay
        self._adopt(loaded)
        self._build_pair()
        self._slow.start()

    def _adopt(self, loaded: _Programs) -> None:
        """Takes over what an earlier run has left in the pinned maps; packets are on their way."""
        self._peers = self._pinned_peers(loaded.maps["peers"])
        self._before = self._read_counters(loaded.maps["counters"])
        *_, strips, _gro, _strip, token = SETTINGS.unpack(
            loaded.maps["config"].get(ZERO_KEY, SETTINGS.size) or bytes(SETTINGS.size)
        )
        self._why_not = "" if strips else "not tried yet"
        self._token = token if any(token) else gropair.new_token()

    def _build_pair(self) -> None:
        """All that depends on the veth pair: its ends, who is attached, the third way."""
        try:
            self._gro = gropair.ensure()
        except (KernelError, OSError) as error:
            self._gro = None
            log.info("ebpf data path without a second GRO", reason=str(error))
        places = {"overlay_out": self._overlay, "underlay_in": self._underlay}
        if self._gro is not None:
            places |= {
                "pair_in": self._gro.sender,
                "gro_in": self._gro.receiver,
                "strip_out": self._gro.receiver,
            }
        # Before anything leads there. Until the settings name a pair, nothing does.
        self._attach_all(places)
        self._write_settings()
        self._use_third_way(self._try_third_way(opened=False))

    def repair(self) -> list[str]:
        """Makes the pair anew when it is gone; closes the third way while it is blocked."""
        if self._loaded is None:
            return []
        try:
            there = gropair.look()
        except (KernelError, OSError):
            there = None
        if there is None or there != self._gro:
            self._build_pair()
            return ["gro pair"] if self._gro is not None else []
        was_open = not self._why_not
        self._use_third_way(self._try_third_way(opened=was_open))
        return [] if was_open or self._why_not else ["strip"]

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
            PREFIX.pack(peer.subnet.prefixlen, peer.subnet.network_address.packed): HOP.pack(
                peer.address.packed
            )
            for peer in table.peers
        }
        if self._loaded is None:
            self._peers = wanted
            return
        peers = self._loaded.maps["peers"]
        for key, value in wanted.items():
            if self._peers.get(key) != value:
                peers.set(key, value)
        for key in self._peers.keys() - wanted.keys():
            peers.delete(key)
        self._peers = wanted

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
        for link in self._links.values():
            os.close(link)
        self._links.clear()
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
        directory = pin_directory(base)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.debug("bpffs cannot be written", error=error)
            return None
        return directory

    def _write_settings(self) -> None:
        assert self._loaded is not None  # noqa: S101
        config, gro = self._config, self._gro
        settings = SETTINGS.pack(
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
        )
        self._loaded.maps["config"].set(ZERO_KEY, settings)

    def _tests_arrived(self) -> int:
        assert self._loaded is not None  # noqa: S101
        return _total(self._loaded.maps["counters"], STRIP_TESTS)

    def _attach_all(self, places: Mapping[str, int]) -> None:
        """Puts each program at its device, and takes away those at former ones."""
        assert self._loaded is not None  # noqa: S101
        entries = {f"link-{name}-{ifindex}": (name, ifindex) for name, ifindex in places.items()}
        for entry, (name, ifindex) in entries.items():
            if entry not in self._links:
                program = self._loaded.programs[name]
                self._links[entry] = self._attach(entry, program, ifindex, PROGRAMS[name])
        for entry in self._links.keys() - entries.keys():
            os.close(self._links.pop(entry))
        if self._pins is not None:
            for pin in self._pins.glob("link-*"):
                if pin.name not in entries:
                    pin.unlink(missing_ok=True)

    def _attach(self, entry: str, program: int, ifindex: int, where: int) -> int:
        """Puts a program at its place, into the link of an earlier run if there is one."""
        path = self._pins / entry if self._pins is not None else None
        link = bpf.get_pinned(str(path)) if path is not None else None
        if link is not None and path is not None:
            try:
                bpf.update_link(link, program)
                return link
            except KernelError:
                # The link of a device that is gone, whose number another one has now.
                os.close(link)
                path.unlink(missing_ok=True)
        link = bpf.attach_tcx(program, ifindex, where)
        if path is not None:
            bpf.pin(link, str(path))
        return link

    @staticmethod
    def _pinned_peers(peers: bpf.Map) -> dict[bytes, bytes]:
        found = {}
        for key in list(peers.keys()):
            value = peers.get(key, HOP.size)
            if value is not None:
                found[key] = HOP.pack(*HOP.unpack(value))
        return found

    @staticmethod
    def _read_counters(counters: bpf.Map) -> dict[str, int]:
        return {name: _total(counters, number) for number, name in enumerate(COUNTED)}


def _total(counters: bpf.Map, number: int) -> int:
    """One counter, over all CPUs."""
    cpus = bpf.possible_cpus()
    values = counters.get(struct.pack("=I", number), 8 * cpus) or bytes(8 * cpus)
    return sum(struct.unpack(f"={cpus}Q", values))
