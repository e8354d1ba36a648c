"""Programs at devices as filters of tc, for kernels without tcx: an `Attachment`.

| object | one per | known as ours by | goes |
|---|---|---|---|
| filter | program | kind `bpf`, the `HANDLE`, a name that begins with `NAME` | when we say so |
| qdisc `clsact` | device | a pin `qdisc-<ifindex>`, if we made it | when it has no filter left |

A filter keeps its program loaded until the filter, the qdisc or the device is deleted. If a daemon
without a BPF file system was killed, the next start or `pyflannel cleanup` deletes it.

A device has one such qdisc, which all programs share. Deleting it deletes all filters, so every
full pass looks for ours. We delete the qdisc only if we made it and it has no filter. A qdisc has
no field for a note, so a pin records that we made it (a pin of any program: its name counts).

The order: the filter with the smallest preference runs first, and a verdict ends the list.
`PREFERENCE` comes before all filters that were made without one (the kernel gives those 49152 and
less), as programs of tcx do; 1 to 6 come before ours. A preference belongs to one kind and protocol
of filters, and the kernel refuses others with it. So ours is not one of the numbers that people
start with. If it is in use, the next free one is taken.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.ebpf.pins import keep_pinned
from pyflannel.kernel import tc
from pyflannel.kernel.tun import open_tun

HANDLE: Final = 0x666C616E
"""\"flan\" in ASCII; handles that tc gives count from 1."""
NAME: Final = "pyflannel:"
PREFERENCE: Final = 7
QDISC_PIN: Final = "qdisc-{}"
"""Name of the pin that records that a device's qdisc is ours; takes the ifindex."""
PROBE_DEVICE: Final = "flannelprobe%d"
_SIDES: Final = {bpf.TCX_INGRESS: tc.Side.INGRESS, bpf.TCX_EGRESS: tc.Side.EGRESS}


def try_out() -> None:
    """Attaches a program that does nothing to a new device, and detaches it again.

    Raises:
        KernelError: the kernel lacks the qdisc or the filter, or we the right; DeviceUnavailable
            if it has no TUN.
    """
    program = bpf.load_program("probe", bpf.ASK_THE_NEXT, b"Apache-2.0\0", 0)
    try:
        # Not on an existing device: another program may add a filter to the qdisc meanwhile, and
        # then the qdisc could not be deleted safely.
        device = open_tun(PROBE_DEVICE)
        try:
            ifindex = socket.if_nametoindex(device.name)
            tc.add_clsact(ifindex)
            for side in tc.Side:
                tc.put_filter(ifindex, side, _filter("probe", PREFERENCE), program)
                tc.delete_filter(ifindex, side, _filter("probe", PREFERENCE))
        finally:
            device.close()
    finally:
        os.close(program)


def leftovers() -> list[str]:
    """Our filters in this network namespace, in words."""
    return [f"{found.name} at {_device(ifindex)}" for ifindex, _, found in _all_ours()]


def remove(pins: Path | None) -> list[str]:
    """Removes our filters in this network namespace, and our qdiscs; what was removed, in words.

    Raises:
        KernelError: naming what cannot be removed.
    """
    removed = []
    for ifindex, side, found in _all_ours():
        tc.delete_filter(ifindex, side, found)
        removed.append(f"{found.name} at {_device(ifindex)}")
    for ifindex in _remembered(pins):
        _delete_qdisc_if_empty(ifindex)
        assert pins is not None  # noqa: S101
        (pins / QDISC_PIN.format(ifindex)).unlink(missing_ok=True)
    return removed


ask: Final = try_out
"""Only attaching a filter shows what the kernel supports; that is fast enough."""


class ClsactFilters:
    """The filters of all programs; see `Attachment` for the contract."""

    def __init__(
        self, programs: Mapping[str, int], sides: Mapping[str, int], pins: Path | None
    ) -> None:
        self._programs = programs
        self._sides = {name: _SIDES[side] for name, side in sides.items()}
        self._pins = pins
        self._wanted: dict[str, int] = {}
        self._made: set[int] = set()
        """Devices whose qdisc this process made."""
        self._is_first = True

    @property
    def name(self) -> str:
        """Its name in `status`."""
        return "clsact"

    def place(self, places: Mapping[str, int]) -> None:
        """As in `Attachment`."""
        former, self._wanted = self._wanted, dict(places)
        if self._is_first:
            self._made = set(_remembered(self._pins))
        for name, ifindex in places.items():
            if former.get(name) != ifindex and not self._runs(name, ifindex):
                self._attach(name, ifindex)
        if self._is_first or former != self._wanted:
            self._forget_others()
            for ifindex in self._made:
                self._remember(ifindex)
        self._is_first = False

    def mend(self) -> list[str]:
        """As in `Attachment`."""
        mended = []
        for name, ifindex in self._wanted.items():
            if not self._runs(name, ifindex):
                self._attach(name, ifindex)
                mended.append(f"program {name}")
        unpinned = [ifindex for ifindex in self._made if self._remember(ifindex)]
        return [*mended, "pin qdisc"] if unpinned else mended

    def close(self) -> None:
        """As in `Attachment`."""
        if self._pins is not None:
            return
        for name, ifindex in self._wanted.items():
            with contextlib.suppress(KernelError, OSError):
                for found in _ours(ifindex, self._sides[name]):
                    tc.delete_filter(ifindex, self._sides[name], found)
        self._wanted = {}
        for ifindex in self._made:
            with contextlib.suppress(KernelError, OSError):
                _delete_qdisc_if_empty(ifindex)
        self._made.clear()

    def _runs(self, name: str, ifindex: int) -> bool:
        found = _ours(ifindex, self._sides[name])
        program = bpf.object_id(self._programs[name])
        return [(each.name, each.program) for each in found] == [(NAME + name, program)]

    def _attach(self, name: str, ifindex: int) -> None:
        side = self._sides[name]
        if tc.add_clsact(ifindex):
            self._made.add(ifindex)
            self._remember(ifindex)
        elif side is tc.Side.EGRESS and tc.hooks().get(ifindex) != "clsact":
            what = f"{NAME}{name} to {_device(ifindex)}, whose qdisc ingress has no egress"
            hint = f"if it is not needed: tc qdisc del dev {_device(ifindex)} ingress"
            raise DeviceUnavailable("filter add", what, 0, hint)
        elif not any(_ours(ifindex, each) for each in tc.Side):
            # It may have been deleted, and made again by another program.
            self._disown(ifindex)
        there = tc.filters(ifindex, side)
        ours = [found for found in there if _is_ours(found)]
        taken = {found.preference for found in there if not _is_ours(found)}
        preference = ours[0].preference if ours else _first_free(taken)
        tc.put_filter(ifindex, side, _filter(name, preference), self._programs[name])
        for superfluous in ours[1:]:
            tc.delete_filter(ifindex, side, superfluous)

    def _remember(self, ifindex: int) -> bool:
        """Pins a program to record that a qdisc is ours; whether that was needed."""
        if self._pins is None:
            return False
        first = next(iter(self._programs.values()))
        return keep_pinned(first, self._pins / QDISC_PIN.format(ifindex))

    def _disown(self, ifindex: int) -> None:
        self._made.discard(ifindex)
        if self._pins is not None:
            (self._pins / QDISC_PIN.format(ifindex)).unlink(missing_ok=True)

    def _forget_others(self) -> None:
        """Removes our filters at other places, and our qdiscs that are no longer needed."""
        wanted = {(ifindex, self._sides[name]) for name, ifindex in self._wanted.items()}
        for ifindex, side, found in _all_ours():
            if (ifindex, side) not in wanted:
                tc.delete_filter(ifindex, side, found)
        for ifindex in self._made - set(self._wanted.values()):
            _delete_qdisc_if_empty(ifindex)
            self._disown(ifindex)


def _filter(program: str, preference: int) -> tc.Filter:
    return tc.Filter("bpf", preference, HANDLE, NAME + program)


def _first_free(taken: Collection[int]) -> int:
    preference = PREFERENCE
    while preference in taken:
        preference += 1
    return preference


def _is_ours(found: tc.Filter) -> bool:
    return found.kind == "bpf" and found.handle == HANDLE and found.name.startswith(NAME)


def behind(ifindex: int) -> str:
    """What others have put at a device's egress, behind our program there; empty if nothing.

    Raises:
        KernelError: the kernel does not say.
    """
    root, hook = tc.qdiscs_of(ifindex)
    if root:
        return f"qdisc, {root}"
    if hook != "clsact":  # `ingress` shows its filters for either side
        return ""
    others = (found for found in tc.filters(ifindex, tc.Side.EGRESS) if not _is_ours(found))
    return next((f"filter, {found.kind}" for found in others), "")


def _ours(ifindex: int, side: tc.Side) -> list[tc.Filter]:
    return [found for found in tc.filters(ifindex, side) if _is_ours(found)]


def _all_ours() -> Iterator[tuple[int, tc.Side, tc.Filter]]:
    for ifindex, kind in tc.hooks().items():
        # `ingress` shows its filters for either side.
        for side in tc.Side if kind == "clsact" else (tc.Side.INGRESS,):
            for found in _ours(ifindex, side):
                yield ifindex, side, found


def _remembered(pins: Path | None) -> list[int]:
    """Devices whose qdisc is ours, as the pins have it."""
    found = pins.glob(QDISC_PIN.format("*")) if pins is not None else ()
    numbers = (pin.name.rpartition("-")[2] for pin in found)
    return [int(number) for number in numbers if number.isdecimal()]


def _delete_qdisc_if_empty(ifindex: int) -> None:
    is_there = tc.hooks().get(ifindex) == "clsact"
    if is_there and not any(tc.filters(ifindex, side) for side in tc.Side):
        tc.delete_clsact(ifindex)


def _device(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"
