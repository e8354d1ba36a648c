"""Whether the `ebpf` data path can be used here, and what an earlier run has left of it."""

from __future__ import annotations

import contextlib

from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.datapath.base import Capabilities
from pyflannel.datapath.ebpf import attachment, cardgro, clsact, gropair, pins
from pyflannel.datapath.ebpf.pins import BPFFS
from pyflannel.datapath.ebpf.programs import Programs, shape


def probe() -> Capabilities | str:
    """Loads the programs and asks how they can be attached. A test of kernel and rights."""
    try:
        loaded = Programs(None)
        loaded.close()
        way, why_none = attachment.probe()
    except FlannelError as error:
        return str(error)
    if not way:
        return f"this kernel attaches no programs here: {why_none}"
    peers = shape("peers", loaded.maps["peers"].definition)
    lasting = pins.is_bpffs(BPFFS)
    return Capabilities(
        name="ebpf",
        outlives_daemon=lasting,
        meanwhile=lasting and _is_other_release(peers),
        attached_by=way,
        wants_ethernet=True,
        wants_short=True,
    )


def _is_other_release(peers: str) -> bool:
    """Whether only peer tables of other releases are pinned.

    They stay, so that a downgrade finds its table and loses no packet either.
    """
    directory = pins.pin_directory()
    if not pins.is_there(directory):
        return False
    found = {path.name for path in directory.glob("peers-*")}
    return bool(found) and peers not in found


def leftovers(base: str = BPFFS) -> list[str]:
    """What `remove_leftovers` would take away, in words."""
    directory = pins.pin_directory(base)
    found = [f"eBPF programs and maps in {directory}"] if pins.is_there(directory) else []
    with contextlib.suppress(KernelError):
        found += [f"filter {each}" for each in clsact.leftovers()]
    with contextlib.suppress(KernelError):
        found += cardgro.find()
    return found + ([f"rule iif {gropair.SENDER}"] if gropair.has_rule() else [])


def remove_leftovers(base: str = BPFFS) -> bool:
    """Detaches what an earlier run left in this network namespace; whether there was anything.

    Raises:
        KernelError: a FOU port cannot be deleted, so the programs have to stay.
    """
    directory = pins.pin_directory(base)
    # Before the programs that keep everything from it.
    found = cardgro.remove()
    with contextlib.suppress(KernelError):
        found |= bool(clsact.remove(directory if pins.is_there(directory) else None))
    found |= pins.remove(directory)
    with contextlib.suppress(KernelError):
        found |= gropair.remove()
    return found
