"""Programs at devices by tcx: an `Attachment`.

Each program has one *link* (kernel/bpf/tcx.c), which attaches it while a descriptor or a pin of the
link exists. An earlier run's link is opened by its pin, and our program replaces the one in it
without a gap.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.ebpf.pins import keep_pinned

PIN: Final = "link-{}-{}"
"""A link's pin: program, ifindex."""


def ask() -> None:
    """Asks the kernel whether it has tcx; nothing is attached, so it costs no time.

    Raises:
        KernelError: it has none, or we lack the right to load programs.
    """
    program = bpf.load_program("probe", bpf.ASK_THE_NEXT, b"Apache-2.0\0", bpf.TCX_INGRESS)
    try:
        if not bpf.has_tcx(program, bpf.TCX_INGRESS):
            raise KernelError("attach", "tcx program", errno.EINVAL)
    finally:
        os.close(program)


def try_out() -> None:
    """Attaches a program that does nothing to the loopback device, and detaches it again.

    At one side only: each time the kernel waits for all CPUs, 10 ms or more.

    Raises:
        KernelError: EINVAL where the kernel has no tcx.
    """
    program = bpf.load_program("probe", bpf.ASK_THE_NEXT, b"Apache-2.0\0", bpf.TCX_INGRESS)
    try:
        os.close(bpf.attach_tcx(program, socket.if_nametoindex("lo"), bpf.TCX_INGRESS))
    finally:
        os.close(program)


def remove(pins: Path | None) -> list[str]:
    """Detaches what is pinned in a directory of ours, in words."""
    found = sorted(pins.glob(PIN.format("*", "*"))) if pins is not None else []
    for pin in found:
        _detach(pin)
    return [f"tcx {pin.name}" for pin in found]


def _detach(pin: Path) -> None:
    """Detaches a pinned link now. Closing its last descriptor detaches it only later."""
    link = bpf.get_pinned(str(pin))
    if link is not None:
        with contextlib.suppress(KernelError):  # it is no link
            bpf.detach(link)
        os.close(link)
    pin.unlink(missing_ok=True)


class TcxLinks:
    """The links of all programs; see `Attachment` for the contract.

    Args:
        programs: name → descriptor; the caller's.
        sides: name → attach type.
        pins: directory for the links' pins, `None` to keep none.
    """

    def __init__(
        self, programs: Mapping[str, int], sides: Mapping[str, int], pins: Path | None
    ) -> None:
        self._programs = programs
        self._sides = sides
        self._pins = pins
        self._wanted: dict[str, int] = {}
        self._links: dict[tuple[str, int], int] = {}

    @property
    def name(self) -> str:
        """What it is called in status."""
        return "tcx"

    def place(self, places: Mapping[str, int]) -> None:
        """As in `Attachment`."""
        self._wanted = dict(places)
        for name, ifindex in places.items():
            if (name, ifindex) not in self._links:
                self._links[name, ifindex] = self._attach(name, ifindex)
        self._forget_others()

    def mend(self) -> list[str]:
        """As in `Attachment`."""
        mended = []
        for name, ifindex in self._wanted.items():
            link = self._links.get((name, ifindex))
            if link is not None and self._runs(link, name, ifindex):
                if self._pins is not None and keep_pinned(link, self._pin(name, ifindex)):
                    mended.append(f"pin {name}")
                continue
            if link is not None:
                os.close(self._links.pop((name, ifindex)))
            self._links[name, ifindex] = self._attach(name, ifindex)
            mended.append(f"program {name}")
        return mended

    def close(self) -> None:
        """Closes the links. Those that are pinned stay attached."""
        for link in self._links.values():
            os.close(link)
        self._links.clear()

    def _runs(self, link: int, name: str, ifindex: int) -> bool:
        found = bpf.link_info(link)
        program = bpf.object_id(self._programs[name])
        return (found.program, found.ifindex) == (program, ifindex)

    def _pin(self, name: str, ifindex: int) -> Path:
        assert self._pins is not None  # noqa: S101
        return self._pins / PIN.format(name, ifindex)

    def _attach(self, name: str, ifindex: int) -> int:
        """Attaches a program, in the link of an earlier run if there is one."""
        program = self._programs[name]
        if self._pins is None:
            return bpf.attach_tcx(program, ifindex, self._sides[name])
        path = self._pin(name, ifindex)
        link = bpf.get_pinned(str(path))
        if link is not None:
            try:
                bpf.update_link(link, program)
                if self._runs(link, name, ifindex):
                    return link
            except KernelError:
                pass  # it is no link, or its device is gone and another has its ifindex now
            os.close(link)
            path.unlink(missing_ok=True)
        link = bpf.attach_tcx(program, ifindex, self._sides[name])
        keep_pinned(link, path)
        return link

    def _forget_others(self) -> None:
        for place in self._links.keys() - self._wanted.items():
            os.close(self._links.pop(place))
        if self._pins is not None:
            names = {PIN.format(*place) for place in self._wanted.items()}
            for pin in self._pins.glob(PIN.format("*", "*")):
                if pin.name not in names:
                    _detach(pin)
