"""What the data paths are to reach, and what one run has reached.

A ratio is taken round by round, between neighbours in time, and the median of those is held to the
goal: a shared machine changes its speed by half within minutes, and with it both sides of a ratio.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.throughput import Samples

UNDERLAYS: Final = ("as-it-comes", "plain", "bare")


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of one candidate's column to another's, and its limit on each of `UNDERLAYS`."""

    what: str
    ours: str
    column: str
    base: str
    """The candidate that it is compared with, by a part of its name."""
    limits: tuple[float, float, float]
    base_column: str = ""
    """Of the base, where it is another one."""
    at_most: bool = False

    def met(self, ratio: float, limit: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio <= limit if self.at_most else ratio >= limit


GOALS: Final = (
    Goal("ebpf, TCP 1 : vxlan", "udp ebpf", "tcp1_gbit", "vxlan", (1.1, 0.95, 1.05)),
    Goal("ebpf, 64 B : vxlan", "udp ebpf", "udp64_kpps", "vxlan", (1.0, 1.0, 1.0)),
    Goal(
        "ebpf, 64 B of four senders : host-gw",
        "udp ebpf",
        "udp64_4_kpps",
        "host-gw",
        (0.9, 0.9, 0.9),
    ),
    Goal("ebpf, CPU s/GB : vxlan", "udp ebpf", "cpu_s_per_gb", "vxlan", (1.0,) * 3, at_most=True),
    Goal("native, TCP 1 : vxlan", "udp native", "tcp1_gbit", "vxlan", (0.45, 0.8, 0.75)),
    Goal("native, TCP 4 : TCP 1", "udp native", "tcp4_gbit", "udp native", (1.0,) * 3, "tcp1_gbit"),
    Goal(
        "native, round trip p50 : upstream",
        "udp native",
        "rr_p50_us",
        "upstream",
        (0.8, 0.8, 0.8),
        at_most=True,
    ),
    Goal(
        "native, CPU s/GB : upstream",
        "udp native",
        "cpu_s_per_gb",
        "upstream",
        (0.5, 0.5, 0.5),
        at_most=True,
    ),
)


def ratios(goal: Goal, rows: Mapping[str, Samples]) -> list[float]:
    """One ratio a round; empty if a candidate is missing or was not measured."""
    base = next((samples for name, samples in rows.items() if goal.base in name), None)
    ours = rows.get(goal.ours)
    if base is None or ours is None:
        return []
    above: Sequence[float] = getattr(ours, goal.column)
    below: Sequence[float] = getattr(base, goal.base_column or goal.column)
    return [a / b for a, b in zip(above, below, strict=False) if b]


def table(results: Mapping[str, Mapping[str, Samples]]) -> Iterator[str]:
    """A line for each goal; bold is missed."""
    yield "| ratio, round by round: median (range) | " + " | ".join(UNDERLAYS) + " |"
    yield "|" + "---|" * (len(UNDERLAYS) + 1)
    for goal in GOALS:
        cells = []
        for underlay, limit in zip(UNDERLAYS, goal.limits, strict=True):
            found = ratios(goal, results.get(underlay, {}))
            if not found:
                cells.append("–")
                continue
            middle = statistics.median(found)
            text = f"{middle:.2f}"
            text = text if goal.met(round(middle, 2), limit) else f"**{text}**"
            sign = "≤" if goal.at_most else "≥"
            cells.append(f"{text} ({min(found):.2f}–{max(found):.2f}), {sign} {limit}")
        yield f"| {goal.what} | " + " | ".join(cells) + " |"


def meaning(cores: int) -> str:
    """What the number of cores does to the figures."""
    shared = f"{cores} cores carry both nodes and both ends of the traffic."
    if cores <= FEW_CORES:
        return (
            f"{shared} That flatters us: upstream's daemon, which needs one for each direction, "
            "starves, and what saves CPU is faster by all that it saves."
        )
    return (
        f"{shared} The kernel's paths are bound by one of them: sender, tunnel and receiver of a "
        "flow are one chain of calls. Four flows gain where they end on different cores."
    )


FEW_CORES: Final = 4
"""One each for sender, receiver and both daemons of one flow."""
