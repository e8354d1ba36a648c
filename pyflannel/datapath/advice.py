"""Why `auto` passes over a data path that would work. `--datapath` still takes it.

The kernel runs the programs of `ebpf` wherever it can attach them. Whether that is faster depends
on the kernel: where it does not join packets, or cuts super packets, a data path in user space is
as fast. So `auto` takes `ebpf` only where measurements show that it is not slower.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pyflannel.datapath.base import LONGEST_IN_KERNEL, Capabilities, Link

MEASURED: Final[dict[tuple[int, int], tuple[float, float]]] = {
    (5, 10): (4.8, 1.4),
    (6, 1): (2.4, 1.03),
    (6, 12): (3.3, 1.5),
    (7, 3): (3.3, 1.4),
}
"""By Linux: TCP throughput of `ebpf`, its slowest round, as a multiple of `native`'s, on an
underlay as it comes and on a plain one (no segmentation offload). Debian's kernels in
`make kernels`; 5.10 and 6.1 by clsact, the others by tcx. On plain underlays `native` was measured
on 6.1 alone (441 of the 571 Mbit/s that it has as it comes); for the others its figure as it comes
is taken, which flatters it. A kernel counts as the one before it in this list."""
AS_FAST: Final = 0.95
"""Rounds of one data path on one kernel differ by up to 3 %."""

SLOW_S: Final = 30.0
"""For this long most packets must take the slow path before it is said. Several full passes: a
burst of what the programs do not carry is no reason to open the device anew."""
SLOW_PER_S: Final = 1000.0
"""Packets a second that the slow path carries at a fraction of a CPU."""


class Carried(NamedTuple):
    """Packets up to a time."""

    at: float
    """Seconds, of a clock that does not jump."""
    slow: int
    total: int


def slow_share(before: Carried, now: Carried) -> str:
    """That most packets took the slow path, in words; empty if not, or if they were few."""
    seconds, slow, total = (b - a for a, b in zip(before, now, strict=True))
    if slow < SLOW_PER_S * seconds or 2 * slow <= total:
        return ""
    return f"{slow:.0f} of {total:.0f} packets took its slow path in {seconds:.0f} s"


def objection(found: Capabilities, *, linux: tuple[int, int], link: Link) -> str:
    """Why `auto` takes the next data path instead; empty if it takes this one.

    Args:
        found: by its probe, which succeeded.
        linux: major and minor version of the running kernel.
        link: the external interface.
    """
    if found.wants_ethernet and not link.ethernet:
        return (
            "the external interface's packets have no Ethernet header, and those that come in "
            "would take its slow path"
        )
    if found.wants_short and link.long:
        return (
            "the external interface carries longer packets than BPF programs handle, "
            f"{LONGEST_IN_KERNEL} bytes, and those would take its slow path"
        )
    if found.attached_by:
        return _by_figures(linux)
    return ""


def _by_figures(linux: tuple[int, int]) -> str:
    known = [version for version in MEASURED if version <= linux]
    if not known:
        return f"its speed was not measured on Linux {_text(linux)}"
    nearest = max(known)
    worst = min(MEASURED[nearest])
    if worst < AS_FAST:
        return f"on Linux {_text(nearest)} it was measured at {worst:.2f} of the next one's speed"
    return ""


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
