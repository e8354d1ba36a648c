"""Where the programs run, and what is pinned: desired state, compared with the kernel's.

Everybody with root can detach a program, delete a pin or the whole directory. Nothing announces it,
and the packets only become slower, or die with the daemon; so it is looked at on every full pass,
and put right.

Each program has one *link* (kernel/bpf/tcx.c), which attaches it while a descriptor or a pin of the
link exists. An earlier run's link is taken over by its pin: our program is put in the place of the
one that runs in it, without a gap.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.datapath.ebpf import bpf

PIN: Final = "link-{}-{}"
"""A link's pin: program, ifindex."""


def keep_pinned(fd: int, path: Path) -> bool:
    """Sees to it that a map or link is pinned under a path of ours; whether that was needed.

    Raises:
        KernelError, OSError: it cannot be pinned.
    """
    there = bpf.get_pinned(str(path))
    if there is not None:
        try:
            if bpf.object_id(there) == bpf.object_id(fd):
                return False
        finally:
            os.close(there)
        path.unlink()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    bpf.pin(fd, str(path))
    return True


class Links:
    """The links of all programs.

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

    def place(self, places: Mapping[str, int]) -> None:
        """Puts each program at its device, and takes away those at former ones.

        Args:
            places: program → ifindex.

        Raises:
            KernelError: a program cannot be attached; the others may be.
        """
        self._wanted = dict(places)
        for name, ifindex in places.items():
            if (name, ifindex) not in self._links:
                self._links[name, ifindex] = self._attach(name, ifindex)
        self._forget_others()

    def mend(self) -> list[str]:
        """Attaches what is not attached any more, and pins what is not pinned; what was put right.

        Raises:
            KernelError, OSError: naming what cannot be put right.
        """
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
        """Lets go of them; those that are pinned stay attached."""
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
        """Puts a program at its place, into the link of an earlier run if there is one."""
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
                pass  # it is no link, or its device is gone, whose number another one has now
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
            for pin in self._pins.glob("link-*"):
                if pin.name not in names:
                    pin.unlink(missing_ok=True)
