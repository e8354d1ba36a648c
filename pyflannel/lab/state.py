"""The record of a lab, so that later commands can find and remove it.

One directory per lab, `<base>/<name>/`, with `state.json` and the nodes' files. The base is
`/run/pyflannel-lab` for root and `$XDG_RUNTIME_DIR/pyflannel-lab` for others: both are empty after
a reboot, as the labs themselves are.

The directory appears complete (made under another name, then renamed), so two `up` at the same time
cannot both win, and a directory with a lab's name always has a state file. The file has the lab's
id from the start and is written again after each process that is started. So `down` can remove a
lab whose `up` was killed half way.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Final

from pyflannel.lab.errors import LabError, LabExists, NoSuchLab
from pyflannel.lab.processes import ProcessRef
from pyflannel.lab.topology import LabSpec, spec_from_json
from pyflannel.records import dataclass

BASE_VARIABLE: Final = "PYFLANNEL_LAB_DIR"
"""Environment variable with the base directory, instead of the default."""

ROOTS: Final = Path("/run/pyflannel-lab")
"""Root's labs. Other users may read it."""

_SHM: Final = Path("/dev/shm")  # noqa: S108 - etcd's directory in it is random and private
_ETCD_SPACE: Final = 512 * 1024 * 1024
"""Bytes that must be free for etcd's data. It allocates two log segments of 64 MB at once
(measured: 123 MB after the start), and there must be room for a second lab."""

_LOCK_WAIT_S: Final = 5.0
"""How long a command waits for another that is making or removing the same lab."""

_REMOVALS: Final = 10
"""Attempts to remove a directory in which a process still writes."""


@dataclass(slots=True)
class LabState:
    """What the state file records about a lab."""

    lab_id: str
    spec: LabSpec
    etcd_data: Path
    """Directory of etcd's data; outside the lab's own if there is memory-backed space."""
    processes: dict[str, ProcessRef] = field(default_factory=dict)
    """By role: `switch`, `etcd`, and for each node K `nodeK`, `podK` (holders) and `daemonK`."""

    def to_json(self) -> str:
        """The content of the state file."""
        return json.dumps(
            {
                "lab_id": self.lab_id,
                "spec": self.spec.to_json(),
                "etcd_data": str(self.etcd_data),
                "processes": {
                    role: {"pid": ref.pid, "start": ref.start}
                    for role, ref in self.processes.items()
                },
            },
            indent=2,
        )


def state_from_json(text: str) -> LabState:
    """The state that `LabState.to_json` wrote.

    Raises:
        ValueError: if `text` is anything else.
    """
    try:
        data = json.loads(text)
        return LabState(
            lab_id=str(data["lab_id"]),
            spec=spec_from_json(data["spec"]),
            etcd_data=Path(data["etcd_data"]),
            processes={
                str(role): ProcessRef(int(ref["pid"]), int(ref["start"]))
                for role, ref in data["processes"].items()
            },
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the state of a lab: {error!r}") from error


def base_directory() -> Path:
    """The directory under which this user's labs live."""
    if chosen := os.environ.get(BASE_VARIABLE):
        return Path(chosen)
    if os.geteuid() == 0:
        return ROOTS
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "pyflannel-lab"
    return Path(f"/tmp/pyflannel-lab-{os.geteuid()}")  # noqa: S108 - ownership is checked on use


class StateDirectory:
    """The directory of one lab."""

    def __init__(self, name: str, base: Path | None = None) -> None:
        self._base = base if base is not None else base_directory()
        self.name = name
        self.path = self._base / name

    @property
    def _file(self) -> Path:
        return self.path / "state.json"

    def create(self, spec: LabSpec) -> LabState:
        """Makes the directory and the first state file, atomically for other processes.

        Raises:
            LabExists: if there is a lab of this name; it is not changed.
        """
        self._make_base()
        lab_id = uuid.uuid4().hex
        state = LabState(lab_id, spec, self._place_for_etcd(lab_id))
        draft = self._base / f".{self.name}.{lab_id}"
        draft.mkdir(mode=0o755)
        (draft / "state.json").write_text(state.to_json(), encoding="utf-8")
        try:
            draft.rename(self.path)
        except OSError as error:
            shutil.rmtree(draft)
            if not self.path.is_dir():
                raise LabError(f"cannot make {self.path}: {error.strerror}") from error
            raise LabExists(
                f"a lab named {self.name!r} is up already ({self.path}); take it down with "
                f"`pyflannel lab down --name {self.name}` or give the new one another --name"
            ) from error
        return state

    def load(self) -> LabState:
        """The lab's state.

        Raises:
            NoSuchLab: if there is no lab of this name.
            LabError: if the directory is not a lab's.
        """
        try:
            return state_from_json(self._file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.path.exists():
                raise LabError(f"{self.path} was not made by the lab; left alone") from error
            raise NoSuchLab(self._missing()) from error
        except ValueError as error:
            raise LabError(f"{self._file}: {error}; left alone") from error

    def is_roots(self) -> bool:
        """Whether root has a lab of this name, we are not root, and have none."""
        theirs = ROOTS / self.name / "state.json"
        return os.geteuid() != 0 and not self._file.exists() and theirs.exists()

    def _missing(self) -> str:
        if self.is_roots():
            return f"no lab of yours named {self.name!r} is up, but one of root's is: use sudo"
        return f"no lab named {self.name!r} is up; `pyflannel lab up --name {self.name}` makes one"

    def save(self, state: LabState) -> None:
        """Replaces the state file atomically."""
        draft = self.path / ".state.json"
        draft.write_text(state.to_json(), encoding="utf-8")
        draft.rename(self._file)

    def remove(self, state: LabState) -> None:
        """Removes the lab's files. Missing ones are no error."""
        # The name is random and only ours; rmtree does not follow a symbolic link put there.
        if state.lab_id in state.etcd_data.name:
            shutil.rmtree(state.etcd_data, ignore_errors=True)
        # Rename it first. If it were removed in place while a node's last process still writes, a
        # directory without a state file could stay: neither a lab nor a free name.
        doomed = self._base / f".{self.name}.{state.lab_id}"
        with contextlib.suppress(OSError):
            self.path.rename(doomed)
        _remove_tree(doomed)
        with contextlib.suppress(OSError):
            self._base.rmdir()  # succeeds only after the last lab

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the lab against other commands that make or remove it.

        Raises:
            LabError: if another command holds the lock for longer than a few seconds.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NoSuchLab(f"no lab named {self.name!r} is up") from error
        try:
            deadline = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise LabError(
                            f"the lab {self.name!r} is being built or taken down by another command"
                        ) from error
                    time.sleep(0.02)
            yield
        finally:
            os.close(fd)

    def _make_base(self) -> None:
        try:
            self._base.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise LabError(f"cannot make {self._base}: {error.strerror}") from error
        found = self._base.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise LabError(f"{self._base} is not a directory of ours; set {BASE_VARIABLE}")

    def _place_for_etcd(self, lab_id: str) -> Path:
        # etcd waits for the disk at every write. In memory a start takes 0.1 s instead of 0.3 s.
        try:
            free = shutil.disk_usage(_SHM).free
        except OSError:
            free = 0
        if free >= _ETCD_SPACE and os.access(_SHM, os.W_OK):
            return _SHM / f"pyflannel-lab-{lab_id}"
        return self.path / "etcd"


def _remove_tree(path: Path) -> None:
    """Removes a directory to which a process may still write."""
    for _ in range(_REMOVALS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.05)


def all_labs(base: Path | None = None) -> list[str]:
    """Names of the labs that are up, or half up."""
    where = base if base is not None else base_directory()
    if not where.is_dir():
        return []
    # Hidden ones are being made or removed.
    return sorted(entry.parent.name for entry in where.glob("[!.]*/state.json"))
