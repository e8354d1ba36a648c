"""The three data paths, fuzzed against one model for some seconds; `make fuzz` takes longer."""

from __future__ import annotations

import os
import time
from ipaddress import IPv4Address

import pytest

from pyflannel.datapath.select import IMPLEMENTATIONS
from tests.contract.datapath_cases import packet
from tests.fuzz import differential
from tests.fuzz.differential import AT_A, OURS, Place, stack

FUZZ_S = float(os.environ.get("PYFLANNEL_FUZZ_S", "6"))
PLACE = Place(
    {
        name: IPv4Address(f"192.0.2.{number}")
        for number, name in enumerate(("ours", "a", "b", "stranger"), 1)
    },
    bytes.fromhex("02000000000b"),
    8285,
)
FRAME = (
    PLACE.mac
    + bytes.fromhex("02000000000a0800")
    + bytes.fromhex("4500 0022 0007 4000 4011 b6c0 c0000202 c0000201")
    + bytes.fromhex("205d 205d 000e 0000")
    + b"inside"
)
"""Written by hand, with the header checksum worked out by hand: 0xB6C0."""


def changed(at: int, value: bytes) -> bytes:
    return FRAME[:at] + value + FRAME[at + len(value) :]


def test_the_model_of_the_stack_takes_a_datagram() -> None:
    assert stack(FRAME, PLACE) == (PLACE.addresses["a"], 8285, b"inside")
    assert stack(FRAME + bytes(18), PLACE) == stack(FRAME, PLACE)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        pytest.param(0, b"\x04", id="another station's"),
        pytest.param(12, b"\x86\xdd", id="no IPv4"),
        pytest.param(14, b"\x65", id="version"),
        pytest.param(14, b"\x44", id="header too short"),
        pytest.param(24, b"\x00\x00", id="header checksum"),
        pytest.param(36, b"\x20\x5e", id="another port"),
        pytest.param(38, b"\x00\x0f", id="longer than the packet"),
        pytest.param(40, b"\x12\x34", id="checksum"),
    ],
)
def test_the_model_of_the_stack_drops_what_linux_drops(at: int, value: bytes) -> None:
    assert stack(changed(at, value), PLACE) is None


@pytest.mark.root
@pytest.mark.slow
def test_the_three_data_paths_do_what_the_model_says() -> None:
    """The seed is in the message: `python -m tests.fuzz.differential --seed N` repeats a run."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    done = differential.run(FUZZ_S, seed)
    print(dict(done))
    assert done["python"] == done["native"] == done["inputs"]
    if not isinstance(IMPLEMENTATIONS["ebpf"].probe(), str):
        for name in ("overlay_out", "underlay_in"):
            assert done[f"{name} taken"], f"seed {seed}: {done}"
            assert done[f"{name} left"], f"seed {seed}: {done}"


@pytest.mark.root
@pytest.mark.slow
def test_a_model_that_is_wrong_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing above would mean anything: here one that forgets the hop."""

    def unchanged(data: bytes) -> bytes:
        return data

    monkeypatch.setattr("tests.contract.datapath_cases.one_hop_later", unchanged)
    assert packet(OURS, AT_A) == unchanged(packet(OURS, AT_A))
    with pytest.raises(differential.Disagreement, match="seed 5"):
        differential.run(30, 5)
