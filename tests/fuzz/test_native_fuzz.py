"""The C of the native data path under sanitizers: fuzzed function by function, and soaked whole.

The harnesses beside this file are compiled with clang for each run, so that what is tested is what
is there. They end at once, and not with 0, on the first wrong byte, bad access, undefined operation
or data race.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.native_build import ENGINE, PURE, build

WRAPPED = ("readv", "writev", "sendmsg", "sendmmsg", "recvmmsg")
FUZZ_S = int(os.environ.get("PYFLANNEL_FUZZ_S", "6"))
"""Seconds for each fuzzer; more for a long night."""
SOAK_S = 2

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("harness", "longest"), [("fuzz_packet.c", 4096), ("fuzz_join.c", 6 * 256)]
)
def test_no_input_breaks_the_pure_functions(harness: str, longest: int, tmp_path: Path) -> None:
    """Parsing, cutting and joining survive any input, and lose or change no byte."""
    fuzzer = build(tmp_path / "fuzzer", harness, PURE, "-fsanitize=fuzzer,address,undefined")
    run = subprocess.run(
        [fuzzer, f"-max_total_time={FUZZ_S}", f"-max_len={longest}", "-print_final_stats=1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=FUZZ_S + 60,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    executed = run.stderr.rpartition("stat::number_of_executed_units:")[2].split()[0]
    assert int(executed) > 1000


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_two_engines_under_load_stay_clean(sanitizer: str, tmp_path: Path) -> None:
    """Whole engines face to face: no packet wrong, reordered or lost, and none for no reason.

    Run without and with failing system calls, with one thread and with two, while the peer tables
    are replaced as fast as it goes.
    """
    wraps = "-Wl," + ",".join(f"--wrap={name}" for name in WRAPPED)
    soak = build(tmp_path / "soak", "soak.c", ENGINE, f"-fsanitize={sanitizer}", wraps)
    for threads in (1, 2):
        for faults_per_million in (0, 3000):
            run = subprocess.run(
                [soak, str(SOAK_S), str(threads), "7", str(faults_per_million)],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            where = f"{threads} threads, {faults_per_million} faults per million\n"
            assert run.returncode == 0, where + run.stderr[-4000:]
