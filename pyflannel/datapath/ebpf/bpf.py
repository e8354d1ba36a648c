"""bpf(2) and BPF object files, without libbpf and without a compiler on the node.

Only as much as our programs and maps need: an ELF reader for sections, symbols and map
relocations (no BTF, no CO-RE), and the system call through ctypes. Attribute layouts are those of
`union bpf_attr` (include/uapi/linux/bpf.h); all of it little endian, as is the object.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from pyflannel.core.errors import DatapathError, KernelError, NotPermitted
from pyflannel.kernel import limits
from pyflannel.records import dataclass

SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280}
MAP_CREATE: Final = 0
MAP_LOOKUP_ELEM: Final = 1
MAP_UPDATE_ELEM: Final = 2
MAP_DELETE_ELEM: Final = 3
MAP_GET_NEXT_KEY: Final = 4
PROG_LOAD: Final = 5
OBJ_PIN: Final = 6
OBJ_GET: Final = 7
PROG_TEST_RUN: Final = 10
OBJ_GET_INFO_BY_FD: Final = 15
PROG_QUERY: Final = 16
MAP_LOOKUP_BATCH: Final = 24
LINK_CREATE: Final = 28
LINK_UPDATE: Final = 29
LINK_DETACH: Final = 34
PROG_TYPE_SCHED_CLS: Final = 3
TCX_INGRESS: Final = 46
TCX_EGRESS: Final = 47
NO_INTERFACE: Final = 0x7FFFFFFF
"""An index that no interface has: the kernel counts up from 1 and ends with this."""
PSEUDO_MAP_FD: Final = 1
"""Source register of a 64-bit load whose immediate is a map's descriptor."""
_BPF_F_INGRESS: Final = 1
_CLONE_REDIRECT: Final = 13
"""`bpf_clone_redirect` in `enum bpf_func_id`."""
ASK_THE_NEXT: Final = struct.pack("<BxhiBxhi", 0xB7, 0, -1, 0x95, 0, 0)
"""A program that passes each packet to the next program or filter: r0 = TC_ACT_UNSPEC; exit."""
PROGRAMS_AT_A_SIDE: Final = 64
"""The most that tcx takes (include/linux/bpf_mprog.h, BPF_MPROG_MAX)."""
ATTR_BYTES: Final = 160
"""At least `sizeof(union bpf_attr)`. The kernel refuses unknown bytes that are not zero."""
ACCOUNTED_BY_CGROUP: Final = (5, 11)
LOG_BYTES: Final = 1 << 18
LOAD_ATTEMPTS: Final = 5
"""As libbpf has it (sys_bpf_prog_load)."""
BATCH_ENTRIES: Final = 4096
"""Entries of a map that are asked for at once."""
BATCH_BYTES: Final = 1 << 20
"""The most that their values may take: an entry of a per-CPU map has one for each CPU."""
ENOTSUPP: Final = 524
"""include/linux/errno.h: not meant for user space, but bpf(2) returns it."""
_BATCH: Final = struct.Struct("<QQQQIIQQ")

_libc = ctypes.CDLL(None, use_errno=True)


def _exchange(command: int, attr: bytes) -> tuple[int, int, bytes]:
    """The system call: its result, errno, and the attributes as the kernel left them."""
    number = SYSCALL.get(os.uname().machine)
    if number is None:
        raise DatapathError(f"bpf(2) has no known number on {os.uname().machine}")
    buffer = ctypes.create_string_buffer(attr.ljust(ATTR_BYTES, b"\0"), ATTR_BYTES)
    result: int = _libc.syscall(number, command, buffer, ATTR_BYTES)
    return result, ctypes.get_errno() if result < 0 else 0, buffer.raw


def _call(command: int, attr: bytes, operation: str, subject: str) -> int:
    result, code, _ = _exchange(command, attr)
    if code == errno.EPERM and counts_locked_memory() and limits.raise_locked_memory():
        result, code, _ = _exchange(command, attr)
    if result >= 0:
        return result
    if code in (errno.EPERM, errno.EACCES):
        raise NotPermitted(operation, subject, code, _what_is_missing())
    raise KernelError(operation, subject, code)


def counts_locked_memory() -> bool:
    """Whether the kernel counts maps and programs as locked memory, and says EPERM at the limit.

    Since 5.11 they are the control group's memory (commit 97306be45fbe). The limit is 64 KiB on
    most machines; our maps take 5 MB.
    """
    return limits.linux_version() < ACCOUNTED_BY_CGROUP


def _what_is_missing() -> str:
    needed = "needs CAP_BPF and CAP_NET_ADMIN"
    limit = limits.locked_memory()
    if limit is None or not counts_locked_memory():
        return needed
    return (
        f"the limit of locked memory is {limit >> 10} KiB, and before Linux 5.11 it is BPF's too: "
        f"LimitMEMLOCK=infinity in the unit, or ulimit -l unlimited; otherwise it {needed}"
    )


def _buffer(data: bytes | int) -> ctypes.Array[ctypes.c_char]:
    if isinstance(data, int):
        return ctypes.create_string_buffer(data)
    return ctypes.create_string_buffer(data, len(data))


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """The five numbers of `struct map_definition` in the object."""

    type: int
    key_bytes: int
    value_bytes: int
    entries: int
    flags: int


class Map:
    """A map, by its descriptor, which it owns."""

    def __init__(self, fd: int, name: str, definition: MapDefinition) -> None:
        self.fd = fd
        self.name = name
        self.definition = definition

    @classmethod
    def create(cls, name: str, definition: MapDefinition) -> Map:
        """A new map; it lives until its last descriptor, program and pin are gone."""
        d = definition
        attr = struct.pack("<5I", d.type, d.key_bytes, d.value_bytes, d.entries, d.flags)
        attr += struct.pack("<II16s", 0, 0, name[:15].encode())
        return cls(_call(MAP_CREATE, attr, "create", f"bpf map {name}"), name, definition)

    def get(self, key: bytes, value_bytes: int) -> bytes | None:
        """The value under a key; for per-CPU maps that of all CPUs, 8-byte aligned."""
        k, v = _buffer(key), _buffer(value_bytes)
        attr = struct.pack("<IxxxxQQQ", self.fd, ctypes.addressof(k), ctypes.addressof(v), 0)
        try:
            _call(MAP_LOOKUP_ELEM, attr, "look up in", f"bpf map {self.name}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return v.raw

    def set(self, key: bytes, value: bytes) -> None:
        """Puts or replaces one entry."""
        k, v = _buffer(key), _buffer(value)
        attr = struct.pack("<IxxxxQQQ", self.fd, ctypes.addressof(k), ctypes.addressof(v), 0)
        _call(MAP_UPDATE_ELEM, attr, "update", f"bpf map {self.name}")

    def delete(self, key: bytes) -> None:
        """Removes one entry, if it is there."""
        k = _buffer(key)
        attr = struct.pack("<IxxxxQQQ", self.fd, ctypes.addressof(k), 0, 0)
        try:
            _call(MAP_DELETE_ELEM, attr, "delete from", f"bpf map {self.name}")
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def keys(self) -> Iterator[bytes]:
        """All keys. Do not change the map while iterating: collect them first."""
        key: bytes | None = None
        while True:
            k = _buffer(key) if key is not None else None
            out = _buffer(self.definition.key_bytes)
            start = ctypes.addressof(k) if k is not None else 0
            attr = struct.pack("<IxxxxQQ", self.fd, start, ctypes.addressof(out))
            try:
                _call(MAP_GET_NEXT_KEY, attr, "walk", f"bpf map {self.name}")
            except KernelError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            key = out.raw
            yield key

    def items(self, value_bytes: int) -> dict[bytes, bytes]:
        """All entries; in few system calls where the kernel can (LPM tries: since Linux 5.14).

        Args:
            value_bytes: of one entry.
        """
        found = self._batches(value_bytes)
        if found is None:
            one_by_one = {key: self.get(key, value_bytes) for key in list(self.keys())}
            found = {key: value for key, value in one_by_one.items() if value is not None}
        return found

    def _batches(self, value_bytes: int) -> dict[bytes, bytes] | None:
        found: dict[bytes, bytes] = {}
        key_bytes = self.definition.key_bytes
        most = max(1, min(BATCH_ENTRIES, BATCH_BYTES // value_bytes))
        keys, values = _buffer(most * key_bytes), _buffer(most * value_bytes)
        where = _buffer(max(key_bytes, 8))
        begin, place = 0, ctypes.addressof(where)
        lists = (ctypes.addressof(keys), ctypes.addressof(values))
        while True:
            attr = _BATCH.pack(begin, place, *lists, most, self.fd, 0, 0)
            _, code, answer = _exchange(MAP_LOOKUP_BATCH, attr)
            if code in (errno.EINVAL, ENOTSUPP):
                return None
            if code not in (0, errno.ENOENT):  # ENOENT: these were the last
                raise KernelError("walk", f"bpf map {self.name}", code)
            count = _BATCH.unpack_from(answer)[4]
            for key, value in zip(
                struct.iter_unpack(f"{key_bytes}s", keys.raw[: count * key_bytes]),
                struct.iter_unpack(f"{value_bytes}s", values.raw[: count * value_bytes]),
                strict=True,
            ):
                found[key[0]] = value[0]
            if code:
                return found
            begin = place

    def close(self) -> None:
        """Closes the descriptor. May be called twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class BpfObject:
    """A compiled BPF object: which maps it defines and what its programs are.

    Args:
        data: the ELF file.

    Raises:
        DatapathError: if it is not one.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._read(data)
        except (struct.error, IndexError, ValueError, KeyError) as error:
            raise DatapathError(f"the BPF object is damaged: {error!r}") from error

    def _read(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01":
            raise ValueError("no little-endian 64-bit ELF file")
        (table,) = struct.unpack_from("<Q", data, 40)
        size, number, names = struct.unpack_from("<HHH", data, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(number)]

        def body(header: tuple[int, ...]) -> bytes:
            return data[header[4] : header[4] + header[5]]

        def text(strings: bytes, offset: int) -> str:
            return strings[offset : strings.index(b"\0", offset)].decode()

        strings = body(headers[names])
        index = {text(strings, h[0]): i for i, h in enumerate(headers)}
        self._sections = {name: body(headers[i]) for name, i in index.items()}
        symtab = headers[index[".symtab"]]
        symbol_names = body(headers[symtab[6]])
        self._symbols = [
            (text(symbol_names, name), section, value)
            for name, _info, _other, section, value, _size in struct.iter_unpack(
                "<IBBHQQ", body(symtab)
            )
        ]
        maps = self._sections["maps"]
        self.maps: dict[str, MapDefinition] = {
            name: MapDefinition(*struct.unpack_from("<5I", maps, value))
            for name, section, value in self._symbols
            if section == index["maps"] and name
        }
        self.license = self._sections["license"]

    def instructions(self, section: str, maps: Mapping[str, int]) -> bytes:
        """A program with the descriptors of its maps filled in.

        Args:
            section: its section, such as `tcx/overlay_out`.
            maps: map name → descriptor.
        """
        code = bytearray(self._sections[section])
        for offset, info in struct.iter_unpack("<QQ", self._sections.get(f".rel{section}", b"")):
            name = self._symbols[info >> 32][0]
            code[offset + 1] = (code[offset + 1] & 0x0F) | PSEUDO_MAP_FD << 4
            struct.pack_into("<i", code, offset + 4, maps[name])
        return bytes(code)


def _load(attr: bytes, name: str) -> int:
    """Loads a program; again if a signal came in between.

    Any signal interrupts the verifier (kernel/bpf/verifier.c, do_check: EAGAIN). That is not a
    refusal.
    """
    for _ in range(LOAD_ATTEMPTS - 1):
        try:
            return _call(PROG_LOAD, attr, "load", f"bpf program {name}")
        except KernelError as error:
            if error.errno != errno.EAGAIN:
                raise
    return _call(PROG_LOAD, attr, "load", f"bpf program {name}")


def load_program(name: str, code: bytes, license_text: bytes, attach_type: int) -> int:
    """Loads a program for tcx; returns its descriptor.

    Raises:
        NotPermitted: CAP_BPF is missing, or the system forbids bpf(2).
        DatapathError: the verifier refused it; with the end of its log.
    """
    insns, licence, verifier = _buffer(code), _buffer(license_text), _buffer(LOG_BYTES)

    def attr(log_level: int) -> bytes:
        return struct.pack(
            "<IIQQIIQII16sII",
            PROG_TYPE_SCHED_CLS,
            len(code) // 8,
            ctypes.addressof(insns),
            ctypes.addressof(licence),
            log_level,
            LOG_BYTES if log_level else 0,
            ctypes.addressof(verifier) if log_level else 0,
            0,
            0,
            name[:15].encode(),
            0,
            attach_type,
        )

    try:
        return _load(attr(0), name)
    except KernelError as error:
        # EACCES is a verdict of the verifier (kernel/bpf/verifier.c), EPERM a missing capability.
        if error.errno == errno.EPERM:
            raise
        try:
            return _call(PROG_LOAD, attr(1), "load", f"bpf program {name}")
        except KernelError:
            words = verifier.value.decode(errors="replace").strip().splitlines()[-3:]
            refusal = KernelError(
                error.operation, error.subject, error.errno, "the verifier's verdict"
            )
            raise DatapathError(f"{refusal}: {' / '.join(words)}") from error


def inject(frame: bytes, ifindex: int) -> None:
    """Has a device receive an Ethernet frame, without a packet socket.

    It runs a program once on the frame (BPF_PROG_TEST_RUN) that sends a clone of it to the device's
    ingress. A moment later the kernel handles the clone like any received packet. The kernel's own
    tests do so (tools/testing/selftests/bpf/progs/empty_skb.c).

    Raises:
        NotPermitted: CAP_BPF or CAP_NET_ADMIN is missing.
        KernelError: there is no such device, or it is down.
    """
    code = b"".join(
        struct.pack("<BBhi", *instruction)
        for instruction in (
            (0xB7, 2, 0, ifindex),  # r2 = ifindex; r1 is the packet
            (0xB7, 3, 0, _BPF_F_INGRESS),
            (0x85, 0, 0, _CLONE_REDIRECT),
            (0x95, 0, 0, 0),  # returns what it gave: 0, or a negative errno
        )
    )
    program = load_program("inject", code, b"Apache-2.0", 0)
    try:
        data = _buffer(frame)
        # prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration
        attr = struct.pack("<IIIIQQII", program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0)
        _call(PROG_TEST_RUN, attr, "inject into", f"interface {ifindex}")
    finally:
        os.close(program)


def attach_tcx(program: int, ifindex: int, attach_type: int) -> int:
    """Attaches a program with tcx; returns the link, which detaches when its last fd is closed.

    Raises:
        KernelError: EINVAL where the kernel has no tcx (before 6.6).
    """
    attr = struct.pack("<4I", program, ifindex, attach_type, 0)
    return _call(LINK_CREATE, attr, "attach", f"tcx program to interface {ifindex}")


def has_tcx(program: int, attach_type: int) -> bool:
    """Whether the kernel can attach a program with tcx; nothing is attached.

    A kernel with tcx looks for the interface first (kernel/bpf/tcx.c, tcx_link_attach: ENODEV). One
    before 6.6, or without CONFIG_NET_XGRESS, does not know the attach type (EINVAL), although the
    programs load there.
    """
    try:
        os.close(attach_tcx(program, NO_INTERFACE, attach_type))
    except KernelError as error:
        return error.errno == errno.ENODEV
    return True


def attached_tcx(ifindex: int, attach_type: int) -> list[int]:
    """Ids of all programs at one side of a device, in the order in which they run.

    Raises:
        KernelError: there is no such device. A kernel without tcx raises nothing: it has no
            programs.
    """
    ids = _buffer(4 * PROGRAMS_AT_A_SIDE)
    # target_ifindex, attach_type, query_flags, attach_flags, prog_ids, count
    attr = struct.pack("<IIIIQI", ifindex, attach_type, 0, 0, ctypes.addressof(ids), len(ids) // 4)
    result, code, answer = _exchange(PROG_QUERY, attr)
    if result < 0:
        if code in (errno.EINVAL, errno.ENOENT):
            return []
        raise KernelError("list", f"tcx programs of interface {ifindex}", code)
    (count,) = struct.unpack_from("<I", answer, 24)
    return list(struct.unpack_from(f"<{count}I", ids.raw))


def update_link(link: int, program: int) -> None:
    """Replaces the program of a link, without a gap."""
    _call(LINK_UPDATE, struct.pack("<4I", link, program, 0, 0), "update", "tcx link")


def detach(link: int) -> None:
    """Detaches a link's program from its device, even if others keep the link open."""
    _call(LINK_DETACH, struct.pack("<I", link), "detach", "tcx link")


class LinkInfo(NamedTuple):
    """The state of a tcx link."""

    program: int
    """Its program's id."""
    ifindex: int
    """0 when it is detached, or its device is gone."""


def _info(fd: int, size: int, subject: str) -> bytes:
    buffer = _buffer(size)
    attr = struct.pack("<IIQ", fd, size, ctypes.addressof(buffer))
    _call(OBJ_GET_INFO_BY_FD, attr, "look at", subject)
    return buffer.raw


def object_id(fd: int) -> int:
    """The id of a map, program or link, unique among its kind."""
    # struct bpf_map_info, bpf_prog_info, bpf_link_info: type, id.
    return int(struct.unpack_from("<4xI", _info(fd, 8, "bpf object"))[0])


def link_info(link: int) -> LinkInfo:
    """Reads a tcx link.

    Raises:
        KernelError: it is none.
    """
    # struct bpf_link_info: type, id, prog_id, (4 bytes), then for tcx: ifindex, attach_type.
    return LinkInfo(*struct.unpack("<8xI4xI4x", _info(link, 24, "tcx link")))


def pin(fd: int, path: str) -> None:
    """Keeps a map, program or link alive under a path in bpffs."""
    name = _buffer(path.encode() + b"\0")
    attr = struct.pack("<QII", ctypes.addressof(name), fd, 0)
    _call(OBJ_PIN, attr, "pin", path)


def get_pinned(path: str) -> int | None:
    """The descriptor of what is pinned under a path; `None` if nothing is."""
    name = _buffer(path.encode() + b"\0")
    attr = struct.pack("<QII", ctypes.addressof(name), 0, 0)
    try:
        return _call(OBJ_GET, attr, "open", path)
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return None
        raise


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map has (kernel/bpf/syscall.c, `num_possible_cpus`)."""
    return cpus_in(Path("/sys/devices/system/cpu/possible").read_text("ascii"))


def cpus_in(listing: str) -> int:
    """How many CPUs a list such as `0-3,8` has, as sysfs prints them ("%*pbl", lib/vsprintf.c)."""
    ends = [part.split("-") for part in listing.strip().split(",")]
    return sum(int(each[-1]) - int(each[0]) + 1 for each in ends)
