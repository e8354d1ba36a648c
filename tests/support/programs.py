"""Programs of tcx in a network namespace: shows them, or attaches one of another program.

Run by itself inside: `python -m tests.support.programs show`, or `plant`, which pins link and
program below `/sys/fs/bpf/theirs`, so that they stay.
"""

from __future__ import annotations

import ctypes
import os
import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyflannel.datapath.ebpf import bpf

PROG_GET_FD_BY_ID: Final = 13
PROG_QUERY: Final = 16
MOST: Final = 16
"""Programs at one place; more than any test attaches."""
SIDES: Final = {"ingress": bpf.TCX_INGRESS, "egress": bpf.TCX_EGRESS}
PASS_ON: Final = struct.pack("<BxxxiB7x", 0xB7, -1, 0x95)
"""r0 = TC_ACT_UNSPEC; exit."""
LOG_STATS: Final = 4
"""linux/bpf_verifier.h, BPF_LOG_STATS."""


def verified_steps(code: bytes, license_text: bytes) -> int:
    """How many instructions the verifier looks at in a program."""
    log = ctypes.create_string_buffer(1 << 12)
    program = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(license_text, len(license_text))
    attr = struct.pack(
        "<IIQQIIQ32x",
        bpf.PROG_TYPE_SCHED_CLS,
        len(code) // 8,
        ctypes.addressof(program),
        ctypes.addressof(licence),
        LOG_STATS,
        len(log),
        ctypes.addressof(log),
    )
    os.close(bpf._load(attr, "that is measured"))
    found = re.search(rb"processed (\d+) insns", log.value)
    assert found is not None, log.value
    return int(found[1])


def _names(ifindex: int, side: int) -> Iterator[str]:
    ids = (ctypes.c_uint32 * MOST)()
    # union bpf_attr, the part of BPF_PROG_QUERY.
    attr = struct.pack("<IIIIQI28x", ifindex, side, 0, 0, ctypes.addressof(ids), MOST)
    result, code, after = bpf._exchange(PROG_QUERY, attr)
    if result < 0:
        raise OSError(code, os.strerror(code))
    (count,) = struct.unpack_from("<24xI", after)
    for number in ids[:count]:
        fd, code, _ = bpf._exchange(PROG_GET_FD_BY_ID, struct.pack("<I", number))
        if fd < 0:
            raise OSError(code, os.strerror(code))
        # struct bpf_prog_info: the name comes after 64 bytes.
        info = bpf._info(fd, 80, "program")
        os.close(fd)
        yield f"{number} {info[64:80].rstrip(bytes(1)).decode()}"


def show() -> None:
    """One line for each program."""
    for index, name in socket.if_nameindex():
        for word, side in SIDES.items():
            for program in _names(index, side):
                print(f"{name} {word} {program}")


def plant() -> None:
    """Attaches programs that look at packets and pass them on."""
    place = Path("/sys/fs/bpf/theirs")
    place.mkdir()
    for word, side in SIDES.items():
        program = bpf.load_program(f"their_{word}", PASS_ON, b"GPL\0", side)
        bpf.pin(program, str(place / word))
        link = bpf.attach_tcx(program, socket.if_nametoindex("eth0"), side)
        bpf.pin(link, str(place / f"{word}-link"))


if __name__ == "__main__":
    {"show": show, "plant": plant}[sys.argv[1]]()
