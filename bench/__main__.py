"""`python -m bench`: the throughput suite. `--quick` for a look, the defaults for figures."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench import report, throughput
from pyflannel.lab import Underlay

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> int:
    """Runs what was asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement (default 2)")
    parser.add_argument(
        "--underlay",
        action="append",
        choices=[u.value for u in Underlay],
        help="default: all three",
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="candidates by part of name"
    )
    parser.add_argument("--quick", action="store_true", help="1 round of 0.5 s, as it comes only")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory (bench/results)")
    given = parser.parse_args()
    underlays = [Underlay(u) for u in given.underlay or [u.value for u in Underlay]]
    if given.quick:
        given.rounds, given.seconds = 1, 0.5
        underlays = underlays if given.underlay else [Underlay.AS_IT_COMES]
    chosen = throughput.candidates(given.only)
    results = {}
    for underlay in underlays:
        results[underlay.value] = throughput.run(
            underlay,
            chosen,
            rounds=given.rounds,
            seconds=given.seconds,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    print(report.table(results))
    paths = report.save(results, given.output, time.strftime("throughput-%Y%m%d-%H%M%S"))
    print("written:", *(str(path) for path in paths), sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
