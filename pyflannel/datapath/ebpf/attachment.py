"""The seam between the programs and the kernel's ways of running them at a device.

There are two. `tcx` (Linux 6.6, and older kernels to which distributions carried it back) is
preferred: nothing that others do to the qdiscs of a device touches it. `clsact`, filters of tc,
does the same since 5.10, which is the first kernel that has all helpers the programs call.

Everybody with root can take a program away from its device, delete a pin or the whole directory.
Nothing announces it, and packets only become slower, or die with the daemon; so what is attached is
desired state like everything else: looked at on every full pass, and put right.
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
    """Keeps programs at devices, and nothing else: others' programs and filters stay as they are.

    A program runs from `place` on. Where an earlier run, of this process or another, has left one
    of ours, the new one takes its place without a gap in between. If there is a directory for pins
    programs run on after `close`, else they end with it.
    """

    @property
    def name(self) -> str:
        """`tcx` or `clsact`."""
        ...

    def place(self, places: Mapping[str, int]) -> None:
        """Puts each program at its device, and takes ours away from everywhere else.

        Args:
            places: program → ifindex.

        Raises:
            KernelError, OSError: a program cannot be attached; the others may be.
        """
        ...

    def mend(self) -> list[str]:
        """Attaches what is not attached any more, and pins what is not pinned; what was put right.

        Raises:
            KernelError, OSError: naming what cannot be put right.
        """
        ...

    def close(self) -> None:
        """Lets go of them. May be called twice."""
        ...


def probe_all() -> dict[str, str]:
    """Each way, the preferred first, with the reason why it cannot be used here; empty if it can.

    A program that does nothing is attached and taken away again.
    """
    return {name: _why_not(way.try_out) for name, way in _WAYS.items()}


def probe() -> tuple[str, str]:
    """The way to take, or an empty name and why there is none.

    Tcx is not tried out, only asked for: its programs are attached a moment later, when the data
    path starts, and the caller takes another one if that fails. Each attaching and detaching
    waits for all CPUs, 10 ms or more, which a start would spend twice.

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
    """An attachment without places yet, by the way to take.

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
    """Takes away what ours has left behind that was attached another way, in words.

    To be called when the attachment has its places: so no packet passes in between.

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
