"""`python -m bench.compare A.json B.json`: how the ratios of two throughput runs differ."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

METRICS = ("tcp1_gbit", "tcp4_gbit", "udp64_kpps", "rr_p50_us", "rr_p99_us", "cpu_s_per_gb")


def ratios(path: str, underlay: str, base: str) -> dict[tuple[str, str], float]:
    """(candidate, metric) → median divided by the base candidate's, in one run."""
    rows = json.loads(Path(path).read_text())["results"].get(underlay, {})
    if base not in rows:
        return {}
    found = {}
    for name, samples in rows.items():
        for metric in METRICS:
            if samples[metric] and rows[base][metric] and any(rows[base][metric]):
                ours, theirs = (statistics.median(s[metric]) for s in (samples, rows[base]))
                found[name, metric] = ours / theirs
    return found


def main() -> int:
    """Prints a line for each ratio that both runs have; returns the exit code."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    first, second = sys.argv[1:]
    for underlay in json.loads(Path(first).read_text())["results"]:
        old, new = (ratios(path, underlay, "vxlan") for path in (first, second))
        for key in old.keys() & new.keys():
            name, metric = key
            change = new[key] / old[key] - 1 if old[key] else 0.0
            print(
                f"{underlay:12} {name:34} {metric:13} {old[key]:8.3f} → {new[key]:8.3f} × vxlan "
                f"({change:+.0%})"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
