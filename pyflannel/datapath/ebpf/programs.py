"""The BPF object's programs and maps, loaded into the kernel."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Final

from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.ebpf.pins import keep_pinned

OBJECT: Final = "flannel.bpf.o"
PROGRAMS: Final = {
    "overlay_out": bpf.TCX_EGRESS,
    "underlay_in": bpf.TCX_INGRESS,
    "pair_in": bpf.TCX_INGRESS,
    "gro_in": bpf.TCX_INGRESS,
    "strip_out": bpf.TCX_EGRESS,
}
"""Each program, and the side of its device."""
AT_CARD: Final = {"underlay_in": "underlay_at_card"}
"""Programs with another code where segments are joined at the card (`cardgro.py`): its section."""
SLOW: Final = "slow"
"""The map that this code needs, and no other: the socket of user space."""


def shape(name: str, definition: bpf.MapDefinition) -> str:
    """What a map's pin is called.

    It contains the map's definition: after an update that changes the definition, an old map is not
    taken for ours.
    """
    d = definition
    return "-".join((name, *(str(n) for n in (d.type, d.key_bytes, d.value_bytes, d.entries))))


class Programs:
    """The object's maps and programs, loaded; owns their descriptors.

    Args:
        directory: where maps of an earlier run may be pinned, and where ours will be pinned.
        at_card: whether segments are to be joined at the card.
    """

    def __init__(self, directory: Path | None, *, at_card: bool = False) -> None:
        self._directory = directory
        self.maps: dict[str, bpf.Map] = {}
        self._pins: dict[str, Path] = {}
        self.programs: dict[str, int] = {}
        data = resources.files(__package__).joinpath(OBJECT).read_bytes()
        self._object = bpf.BpfObject(data)
        try:
            for name, definition in self._object.maps.items():
                if name != SLOW or at_card:
                    self.maps[name] = self._map(name, definition)
            fds = {name: each.fd for name, each in self.maps.items()}
            for name, where in PROGRAMS.items():
                section = AT_CARD.get(name, name) if at_card else name
                code = self._object.instructions(f"tcx/{section}", fds)
                self.programs[name] = bpf.load_program(name, code, self._object.license, where)
        except BaseException:
            self.close()
            raise

    def _map(self, name: str, definition: bpf.MapDefinition) -> bpf.Map:
        if self._directory is None:
            return bpf.Map.create(name, definition)
        self._pins[name] = path = self._directory / shape(name, definition)
        fd = bpf.get_pinned(str(path))
        if fd is not None:
            return bpf.Map(fd, name, definition)
        made = bpf.Map.create(name, definition)
        bpf.pin(made.fd, str(path))
        return made

    def mend_pins(self) -> list[str]:
        """Pins the maps that are no longer pinned; their names.

        Raises:
            KernelError, OSError: naming what cannot be pinned.
        """
        return [name for name, path in self._pins.items() if keep_pinned(self.maps[name].fd, path)]

    def close(self) -> None:
        """Closes all descriptors; what is pinned or attached stays."""
        for each in self.maps.values():
            each.close()
        for fd in self.programs.values():
            os.close(fd)
        self.programs.clear()
