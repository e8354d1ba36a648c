"""Loading, filling and keeping the BPF programs: the `ebpf` data path."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from importlib import resources
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DatapathError, FlannelError, KernelError
from pyflannel.core.lpm import RouteTable
from pyflannel.datapath.base import Capabilities, Datapath, DatapathConfig
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.python import PythonDatapath
from pyflannel.kernel import veth
from pyflannel.logs import get_logger

log = get_logger(__name__)

BPFFS: Final = "/sys/fs/bpf"
BPF_FS_MAGIC: Final = 0xCAFE4A11
"""linux/magic.h."""
OBJECT: Final = "flannel.bpf.o"
SETTINGS: Final = struct.Struct("=4s4s4sIIIHHB6sx")
"""`struct settings` in flannel.bpf.c; addresses and port in network byte order."""
PREFIX: Final = struct.Struct("=I4s")
ZERO_KEY: Final = bytes(4)
COUNTED: Final = (
    "tun_packets",
    "tun_bytes",
    "udp_packets",
    "udp_bytes",
    "tun_send_error",
    "udp_write_error",
)
"""`enum counter` in flannel.bpf.c, by the names of `datapath.base.COUNTERS`."""
GRO_SENDER: Final = "flannelgro0"
GRO_RECEIVER: Final = "flannelgro1"


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
        veth.delete_link(GRO_SENDER)
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
            for name, where in (
                ("overlay_out", bpf.TCX_EGRESS),
                ("underlay_in", bpf.TCX_INGRESS),
                ("gro_in", bpf.TCX_INGRESS),
            ):
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
        shape = "-".join(str(n) for n in (definition.key_bytes, definition.value_bytes))
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
        self._links: list[int] = []
        self._offloads = {"tcx": "off (not started)"}
        self._peers: dict[bytes, bytes] = {}
        self._before = dict.fromkeys(COUNTED, 0)

    @property
    def capabilities(self) -> Capabilities:
        """What is in use."""
        return Capabilities(
            name="ebpf", outlives_daemon=self._pins is not None, offloads=self._offloads
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
        gro = self._gro_pair()
        loaded.maps["config"].set(ZERO_KEY, self._settings(overlay, underlay, gro))
        self._peers = self._pinned_peers(loaded.maps["peers"])
        self._before = self._read_counters(loaded.maps["counters"])
        points = [
            ("overlay_out", overlay, bpf.TCX_EGRESS),
            ("underlay_in", underlay, bpf.TCX_INGRESS),
        ]
        if gro is not None:
            points.append(("gro_in", socket.if_nametoindex(GRO_RECEIVER), bpf.TCX_INGRESS))
        kept = {
            self._attach(name, loaded.programs[name], ifindex, where)
            for name, ifindex, where in points
        }
        self._drop_other_links(kept)
        self._offloads = {
            "tcx": "on",
            "gro": "on" if gro is not None else "off (no veth pair)",
            "pinned": str(self._pins) if self._pins is not None else "off (no bpffs)",
        }
        self._slow.start()

    def replace_table(self, table: RouteTable) -> None:
        """Puts the table's entries into the map, one by one; none is missing on the way."""
        self._slow.replace_table(table)
        wanted = {
            PREFIX.pack(
                peer.subnet.prefixlen, peer.subnet.network_address.packed
            ): peer.address.packed
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
        for link in self._links:
            os.close(link)
        self._links.clear()
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
            if self._pins is None:
                with contextlib.suppress(KernelError):
                    veth.delete_link(GRO_SENDER)

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

    def _settings(self, overlay: int, underlay: int, gro: tuple[int, bytes] | None) -> bytes:
        config = self._config
        return SETTINGS.pack(
            config.underlay_address.packed,
            config.network.network_address.packed,
            config.network.netmask.packed,
            overlay,
            underlay,
            gro[0] if gro is not None else 0,
            socket.htons(config.port),
            config.mtu,
            config.accept_any,
            gro[1] if gro is not None else bytes(6),
        )

    def _gro_pair(self) -> tuple[int, bytes] | None:
        """The sending end's ifindex and the receiving one's MAC; `None` if there is no pair."""
        try:
            try:
                veth.create_pair(GRO_SENDER, GRO_RECEIVER, mtu=self._config.mtu)
            except KernelError as error:
                if error.errno != errno.EEXIST:
                    raise
            # veth joins packets only if the sending end could not have cut them
            # (drivers/net/veth.c, veth_skb_is_eligible_for_gro).
            veth.set_offload(GRO_SENDER, veth.ETHTOOL_STSO, on=False)
            veth.set_offload(GRO_RECEIVER, veth.ETHTOOL_SGRO, on=True)
            return socket.if_nametoindex(GRO_SENDER), veth.mac_of(GRO_RECEIVER)
        except (KernelError, OSError) as error:
            log.info("ebpf data path without a second GRO", reason=str(error))
            return None

    def _attach(self, name: str, program: int, ifindex: int, where: int) -> str:
        """Puts a program at its place, into the link of an earlier run if there is one."""
        entry = f"link-{name}-{ifindex}"
        path = self._pins / entry if self._pins is not None else None
        link = bpf.get_pinned(str(path)) if path is not None else None
        if link is not None and path is not None:
            try:
                bpf.update_link(link, program)
                self._links.append(link)
                return entry
            except KernelError:
                # The link of a device that is gone, whose number another one has now.
                os.close(link)
                path.unlink(missing_ok=True)
        link = bpf.attach_tcx(program, ifindex, where)
        self._links.append(link)
        if path is not None:
            bpf.pin(link, str(path))
        return entry

    def _drop_other_links(self, kept: set[str]) -> None:
        if self._pins is not None:
            for entry in self._pins.glob("link-*"):
                if entry.name not in kept:
                    entry.unlink(missing_ok=True)

    @staticmethod
    def _pinned_peers(peers: bpf.Map) -> dict[bytes, bytes]:
        found = {}
        for key in list(peers.keys()):
            value = peers.get(key, 4)
            if value is not None:
                found[key] = value
        return found

    @staticmethod
    def _read_counters(counters: bpf.Map) -> dict[str, int]:
        cpus = bpf.possible_cpus()
        totals = {}
        for number, name in enumerate(COUNTED):
            values = counters.get(struct.pack("=I", number), 8 * cpus) or bytes(8 * cpus)
            totals[name] = sum(struct.unpack(f"={cpus}Q", values))
        return totals
