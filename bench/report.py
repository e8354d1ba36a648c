"""Results for people and machines: a table, JSON with every sample, and a picture."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench import goals
from bench.throughput import Samples

COLUMNS = (
    ("tcp1_gbit", "TCP 1 Gbit/s", 2),
    ("tcp4_gbit", "TCP 4", 2),
    ("udp64_kpps", "64 B kpps ≤1 % loss", 0),
    ("udp64_4_kpps", "of 4 senders", 0),
    ("rr_p50_us", "RR p50 µs", 0),
    ("rr_p99_us", "p99", 0),
    ("cpu_s_per_gb", "CPU s/GB", 2),
    ("rss_mib", "RSS MiB", 0),
)
Results = Mapping[str, Mapping[str, Samples]]
"""Underlay → candidate → samples."""


def machine() -> dict[str, object]:
    """What the figures depend on."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions: dict[str, str | None] = {}
    for name in ("pyflannel", "uvloop", "aiohttp", "pyroute2", "etcd3gw"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "kernel": platform.release(),
        "cpu": model,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _cell(values: Sequence[float], digits: int) -> str:
    if not values or not any(values):
        return "–"
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def table(results: Results) -> str:
    """Median (min–max) of every column, ratios of medians to upstream and to vxlan, and goals."""
    lines: list[str] = []
    for underlay, rows in results.items():
        lines += [f"## Underlay: {underlay}", ""]
        headers = ["", *(title for _, title, _ in COLUMNS), "× upstream", "× vxlan"]
        lines += ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
        base = next((s for name, s in rows.items() if "upstream" in name), None)
        vxlan = rows.get("vxlan")
        for name, samples in rows.items():
            cells = [_cell(getattr(samples, key), digits) for key, _, digits in COLUMNS]
            cells += [_ratio(samples, base), _ratio(samples, vxlan)]
            lines.append("| " + " | ".join([name, *cells]) + " |")
        lines.append("")
    lines += ["## Goals", "", goals.meaning(os.cpu_count() or 1), "", *goals.table(results), ""]
    return "\n".join(lines)


def _ratio(samples: Samples, base: Samples | None) -> str:
    if base is None or not base.tcp1_gbit or not samples.tcp1_gbit:
        return "–"
    return f"{statistics.median(samples.tcp1_gbit) / statistics.median(base.tcp1_gbit):.2f}"


def save(results: Results, directory: Path, stem: str) -> list[Path]:
    """Writes JSON, the table and a picture for each underlay; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    data = {
        "machine": machine(),
        "results": {
            underlay: {name: asdict(samples) for name, samples in rows.items()}
            for underlay, rows in results.items()
        },
    }
    paths = [directory / f"{stem}.json", directory / f"{stem}.md"]
    paths[0].write_text(json.dumps(data, indent=1) + "\n")
    paths[1].write_text(table(results))
    for underlay, rows in results.items():
        path = directory / f"{stem}-{underlay}.svg"
        path.write_text(picture(underlay, rows))
        paths.append(path)
    return paths


def picture(underlay: str, rows: Mapping[str, Samples]) -> str:
    """Bars of TCP throughput with the range of all rounds, as SVG."""
    bar, gap, left, width = 26, 10, 250, 760
    medians = {n: statistics.median(s.tcp1_gbit) for n, s in rows.items() if s.tcp1_gbit}
    top = max((max(s.tcp1_gbit) for s in rows.values() if s.tcp1_gbit), default=1.0)
    scale = (width - left - 110) / top
    height = 56 + len(medians) * (bar + gap)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            'font-family="sans-serif" font-size="14">'
        ),
        f'<rect width="{width}" height="{height}" fill="white"/>',
        (
            f'<text x="16" y="28" font-size="16" font-weight="bold">TCP, one flow, Gbit/s '
            f"(underlay: {underlay}; median and range)</text>"
        ),
    ]
    for index, (name, value) in enumerate(medians.items()):
        y = 44 + index * (bar + gap)
        ours = name.startswith("udp ")
        low, high = min(rows[name].tcp1_gbit), max(rows[name].tcp1_gbit)
        middle = y + bar / 2
        parts += [
            f'<text x="{left - 10}" y="{middle + 5}" text-anchor="end">{name}</text>',
            (
                f'<rect x="{left}" y="{y}" width="{max(1.0, value * scale):.1f}" height="{bar}" '
                f'fill="{"#2f6db5" if ours else "#b8bfc8"}"/>'
            ),
            (
                f'<line x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}" y1="{middle}" '
                f'y2="{middle}" stroke="black"/>'
            ),
            f'<text x="{left + high * scale + 8:.1f}" y="{middle + 5}">{value:.2f}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
