"""The BPF object that is shipped, and the reader that loads it without libbpf."""

from __future__ import annotations

import errno
import shutil
import struct
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from pyflannel.core.errors import DatapathError, NotPermitted
from pyflannel.datapath.base import MOST_COUNTED
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.ebpf.path import (
    COUNTED,
    HOP,
    LENGTHS,
    NO_WAY,
    PREFIX,
    SETTINGS,
    STRIP_TESTS,
    lengths_of,
)
from pyflannel.datapath.ebpf.programs import AT_CARD, OBJECT, PROGRAMS, SLOW
from pyflannel.datapath.ebpf.traffic import TRAFFIC

ROOT = Path(__file__).parents[3]
SECTIONS = [f"tcx/{name}" for name in (*PROGRAMS, *AT_CARD.values())]


def shipped() -> bytes:
    return resources.files("pyflannel.datapath.ebpf").joinpath(OBJECT).read_bytes()


def test_the_maps_are_as_the_loader_fills_them():
    """Sizes of keys and values agree between C and Python."""
    maps = bpf.BpfObject(shipped()).maps
    assert set(maps) == {"peers", "lengths", "config", "counters", "traffic", SLOW}
    assert maps["peers"].key_bytes == PREFIX.size
    assert maps["peers"].value_bytes == HOP.size
    assert maps["lengths"].value_bytes == LENGTHS.size
    assert maps["config"].value_bytes == SETTINGS.size
    assert maps["traffic"].value_bytes == TRAFFIC.size
    assert maps["traffic"].entries == MOST_COUNTED + 1
    assert len(COUNTED) == STRIP_TESTS
    assert maps["counters"].entries == NO_WAY + 1


def test_no_program_but_the_one_at_the_card_needs_the_map_of_the_socket():
    """Kernels that lack this kind of map run the others, and those do not load it."""
    maps = {"peers": 1, "config": 2, "counters": 3, "traffic": 4, "lengths": 5}
    found = bpf.BpfObject(shipped())
    for name in PROGRAMS:
        found.instructions(f"tcx/{name}", maps)
    with pytest.raises(KeyError, match=SLOW):
        found.instructions("tcx/underlay_at_card", maps)


def test_map_references_become_descriptors():
    """Every 64-bit load that the compiler left open carries the map's descriptor afterwards."""
    found = bpf.BpfObject(shipped())
    maps = {"peers": 101, "config": 102, "counters": 103, "traffic": 104, "lengths": 105, SLOW: 106}
    for section in SECTIONS:
        code = found.instructions(section, maps)
        loads = [
            int.from_bytes(code[at + 4 : at + 8], "little")
            for at in range(0, len(code), 8)
            if code[at] == 0x18 and code[at + 1] >> 4 == bpf.PSEUDO_MAP_FD
        ]
        assert loads
        assert set(loads) <= set(maps.values())


@pytest.mark.parametrize("cut", [0, 3, 64, 500, 2000])
def test_a_damaged_object_is_an_error_with_a_name(cut):
    with pytest.raises(DatapathError, match="BPF object is damaged"):
        bpf.BpfObject(shipped()[:cut])


@pytest.mark.slow
def test_the_object_is_what_its_source_compiles_to(tmp_path):
    """Reproducible: built again with the installed clang, instruction for instruction."""
    clang = shutil.which("clang")
    assert clang is not None, "clang is missing: tools/bootstrap.sh installs it"
    output = tmp_path / OBJECT
    subprocess.run([str(ROOT / "tools" / "build-ebpf.sh"), str(output)], check=True, cwd=tmp_path)
    maps = {"peers": 1, "config": 2, "counters": 3, "traffic": 4, "lengths": 5, SLOW: 6}
    ours, again = bpf.BpfObject(shipped()), bpf.BpfObject(output.read_bytes())
    assert again.maps == ours.maps
    for section in SECTIONS:
        assert again.instructions(section, maps) == ours.instructions(section, maps)


@pytest.mark.parametrize(("answer", "can"), [(errno.ENODEV, True), (errno.EINVAL, False)])
def test_a_kernel_that_knows_tcx_looks_for_the_interface_first(monkeypatch, answer, can):
    asked = []

    def exchange(command, attr):
        asked.append((command, struct.unpack("<4I", attr)))
        return -1, answer, b""

    monkeypatch.setattr(bpf, "_exchange", exchange)
    assert bpf.has_tcx(7, bpf.TCX_EGRESS) is can
    assert asked == [(bpf.LINK_CREATE, (7, bpf.NO_INTERFACE, bpf.TCX_EGRESS, 0))]


@pytest.mark.parametrize(("signals", "calls"), [(0, 1), (1, 2), (4, 5)])
def test_a_load_that_a_signal_broke_off_is_done_again_without_the_log(monkeypatch, signals, calls):
    levels = []

    def exchange(command, attr):
        assert command == bpf.PROG_LOAD
        levels.append(struct.unpack_from("<I", attr, 24)[0])
        broken = len(levels) <= signals
        return (-1, errno.EAGAIN, b"") if broken else (7, 0, b"")

    monkeypatch.setattr(bpf, "_exchange", exchange)
    assert bpf.load_program("it", bytes(8), b"GPL", bpf.TCX_EGRESS) == 7
    assert levels == [0] * calls


@pytest.mark.parametrize(
    ("version", "can_raise", "limit", "says", "calls"),
    [
        ((5, 10), True, None, "", 2),
        ((5, 10), False, 65536, "64 KiB.*LimitMEMLOCK=infinity", 1),
        ((5, 10), False, None, "needs CAP_BPF", 1),
        ((6, 1), True, 65536, "^((?!KiB).)*needs CAP_BPF", 1),
    ],
)
def test_before_5_11_the_limit_of_locked_memory_is_raised_or_named(
    monkeypatch, version, can_raise, limit, says, calls
):
    """The kernel's answer is EPERM for both, the limit and the rights."""
    answers = iter([(-1, errno.EPERM, b""), (7, 0, b"")])
    asked = []

    def exchange(command, attr):
        asked.append(command)
        return next(answers)

    monkeypatch.setattr(bpf, "_exchange", exchange)
    monkeypatch.setattr(bpf.limits, "linux_version", lambda: version)
    monkeypatch.setattr(bpf.limits, "raise_locked_memory", lambda: can_raise)
    monkeypatch.setattr(bpf.limits, "locked_memory", lambda: limit)
    definition = bpf.MapDefinition(2, 4, 4, 1, 0)
    if says:
        with pytest.raises(NotPermitted, match=says):
            bpf.Map.create("m", definition)
    else:
        assert bpf.Map.create("m", definition).fd == 7
    assert asked == [bpf.MAP_CREATE] * calls


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.E2BIG])
def test_a_program_that_the_verifier_refuses_is_no_matter_of_rights(monkeypatch, code):
    monkeypatch.setattr(bpf, "_exchange", lambda command, attr: (-1, code, b""))
    with pytest.raises(
        DatapathError, match=r"load bpf program it: .*the verifier's verdict"
    ) as told:
        bpf.load_program("it", bytes(8), b"GPL", bpf.TCX_EGRESS)
    assert "CAP_BPF" not in str(told.value)
    monkeypatch.setattr(bpf, "_exchange", lambda command, attr: (-1, errno.EPERM, b""))
    with pytest.raises(NotPermitted, match="CAP_BPF"):
        bpf.load_program("it", bytes(8), b"GPL", bpf.TCX_EGRESS)


@pytest.mark.parametrize(
    ("prefixes", "lengths"),
    [([], []), ([24], [24]), ([24, 24, 24], [24]), ([16, 32, 0, 24], [32, 24, 16])],
)
def test_the_lengths_are_told_longest_first(prefixes, lengths):
    keys = [PREFIX.pack(bits, bytes([10, number, 0, 0])) for number, bits in enumerate(prefixes)]
    assert lengths_of(keys) == bytes(lengths).ljust(LENGTHS.size, b"\0")
