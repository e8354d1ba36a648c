"""The seam between the programs and the kernel's ways of running them at a device.

There are two. `tcx` (Linux 6.6, and older kernels with a distribution's backport) is preferred:
changes of a device's qdiscs do not affect it. `clsact`, filters of tc, does the same since 5.10,
the first kernel that has all helpers the programs call.

Any root process can detach a program, or delete a pin or the whole directory. The kernel sends no
notification, and packets only become slower, or stop when the daemon ends. So the attachments are
desired state like all other objects: each full pass compares and repairs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

from pyflannel.core.errors import DatapathError, FlannelError
from pyflannel.datapath.ebpf import bpf, clsact, tcx

FORCED: Final = "PYFLANNEL_EBPF_ATTACH"
"""Environment: the way to take, where the kernel has both."""


class Attachment(Protocol):
    """Keeps our programs attached to devices. Other programs and filters stay as they are.

    A program runs from `place` on. It replaces one of ours that an earlier run, of this process or
    another, has left there, without a gap. With a directory for pins programs run on after `close`,
    without one they end with it.
    """

    @property
    def name(self) -> str:
        """`tcx` or `clsact`."""
        ...

    def place(self, places: Mapping[str, int]) -> None:
        """Attaches each program to its device, and detaches ours from all other devices.

        Args:
            places: program → ifindex.

        Raises:
            KernelError, OSError: a program cannot be attached; the others may be.
        """
        ...

    def mend(self) -> list[str]:
        """Attaches and pins again what is missing; the names of what was repaired.

        Raises:
            KernelError, OSError: naming what cannot be put right.
        """
        ...

    def close(self) -> None:
        """Closes the descriptors. May be called twice."""
        ...


def probe_all() -> dict[str, str]:
    """Each way, the preferred first, with the reason why it cannot be used here; empty if usable.

    Attaches a program that does nothing, and detaches it again.
    """
    return {name: _why_not(way.try_out) for name, way in _WAYS.items()}


def probe() -> tuple[str, str]:
    """The way to take, or an empty name and why there is none.

    tcx is asked for without attaching anything: each attaching and detaching waits for all CPUs, 10
    ms or more. The data path attaches its programs a moment later, and the caller takes another one
    if that fails.

    Raises:
        DatapathError: the environment asks for a way that does not exist.
    """
    reasons = []
    for name in _candidates():
        reason = _why_not(_WAYS[name].ask)
        if not reason:
            return name, ""
        reasons.append(f"no {name} ({reason})")
    return "", ", ".join(reasons)


def attach(programs: Mapping[str, int], sides: Mapping[str, int], pins: Path | None) -> Attachment:
    """An attachment of the way to take, without places yet.

    Args:
        programs: name → descriptor; the caller's.
        sides: name → attach type (TCX_INGRESS, TCX_EGRESS).
        pins: directory for pins, `None` to keep none.

    Raises:
        DatapathError: the environment asks for a way that does not exist.
    """
    candidates = _candidates()
    if len(candidates) > 1:
        knows_tcx = all(bpf.has_tcx(programs[name], side) for name, side in sides.items())
        candidates = ("tcx",) if knows_tcx else ("clsact",)
    if candidates == ("tcx",):
        return tcx.TcxLinks(programs, sides, pins)
    return clsact.ClsactFilters(programs, sides, pins)


def remove_others(attachment: Attachment, pins: Path | None) -> list[str]:
    """Detaches programs of ours that were attached the other way; what was detached, in words.

    Call it after `place`, so that no packet passes without a program.

    Raises:
        KernelError, OSError: naming what cannot be taken away.
    """
    return [
        what for name, way in _WAYS.items() if name != attachment.name for what in way.remove(pins)
    ]


def _candidates() -> tuple[str, ...]:
    wanted = os.environ.get(FORCED, "")
    if not wanted:
        return tuple(_WAYS)
    if wanted not in _WAYS:
        raise DatapathError(f"{FORCED}={wanted!r}: it is one of {', '.join(_WAYS)}")
    return (wanted,)


def _why_not(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except (FlannelError, OSError) as error:
        return str(error)
    return ""


_WAYS: Final = MappingProxyType({"tcx": tcx, "clsact": clsact})
