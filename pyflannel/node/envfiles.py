"""`subnet.env` and `docker_opts.env`: written whole or not at all, again when deleted or damaged.

Docker, CNI plugins and our own next start read them. They change only when the subnet does. Like
upstream we never rewrite them for a changed MTU, because their readers have built on the old value.

Damaged is a `subnet.env` that says something else than was written (it was truncated, or edited),
and a `docker_opts.env` that does not give docker our subnet; `core.subnetenv` judges. A file is
judged when it has not changed between two looks: it may be in the middle of a write.

A disk that is full or read-only is no reason to stop carrying packets. The failure is logged once,
the write is tried again, and the node is not ready until `subnet.env` is there.

The files are taken back when the subnet that they name is another node's and there is none for us:
a container that is started with them would get an address of the other node. So are those that a
former run left, while a start waits for a subnet.

In a Kubernetes cluster the configuration for CNI may be written as well, after `subnet.env` and
never before it. That one is written once for each subnet and left alone afterwards: other agents
move or replace it on purpose, and two that put it back would fight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Protocol

from pyflannel.aio.clock import Clock
from pyflannel.core import subnetenv
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.subnetenv import SubnetEnv, docker_why_damaged, why_damaged
from pyflannel.kernel.files import (
    FileContent,
    FileText,
    FileUnreadable,
    read_text_if_exists,
    write_atomically,
)
from pyflannel.logs import get_logger
from pyflannel.node.trouble import Trouble
from pyflannel.report.model import WRITTEN, FilesReport

log = get_logger(__name__)

CHECK_INTERVAL_S: Final = 1.0
"""Between two looks whether the files are still there: two stat(2) calls a second cost nothing that
can be measured; an inotify watch would have to follow a directory that may be replaced itself."""


Stamp = tuple[int, int, int]
"""Inode, size and modification time of a file: differs after each time it was written."""
Judge = Callable[[str, str], str]
"""What is wrong with the first text, where the second was written; empty if nothing."""


class Disk(Protocol):
    """Where the files are."""

    def write(self, path: Path, content: bytes) -> None:
        """Writes a file, whole or not at all; raises `FlannelError`."""
        ...

    def read(self, path: Path) -> FileContent:
        """What is in a file."""
        ...

    def stamp(self, path: Path) -> Stamp | None:
        """`None` if there is nothing, not even what a symbolic link leads to."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file; raises `OSError`."""
        ...


class RealDisk:
    """The machine's."""

    def write(self, path: Path, content: bytes) -> None:
        """As in `Disk`."""
        write_atomically(path, content)

    def read(self, path: Path) -> FileContent:
        """As in `Disk`."""
        return read_text_if_exists(path)

    def stamp(self, path: Path) -> Stamp | None:
        """As in `Disk`."""
        try:
            found = path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns)

    def remove(self, path: Path) -> None:
        """As in `Disk`."""
        path.unlink()


class EnvFiles:
    """Keeps the environment files; their contents may be replaced at any time with `set`.

    Args:
        clock: the time.
        disk: where the files are.
    """

    def __init__(self, clock: Clock, disk: Disk | None = None) -> None:
        self._clock = clock
        self._disk: Disk = disk if disk is not None else RealDisk()
        self._judges: dict[Path, Judge] = {}
        self._good: dict[Path, Stamp] = {}
        self._suspect: dict[Path, Stamp] = {}
        self._contents: dict[Path, bytes] = {}
        self._failed: dict[Path, Trouble] = {}
        self._restored = 0
        self._primary: Path | None = None
        self._cni: tuple[Path, Callable[[], bytes]] | None = None
        self.complete = asyncio.Event()
        """Set once all of them have been written."""
        self.ready_since: float | None = None
        """When `subnet.env` was first written, in seconds since the epoch; `None` also while it is
        withdrawn."""

    def set(
        self,
        subnet_file: str,
        subnet_env: bytes,
        docker_file: str = "",
        docker_env: bytes = b"",
        cni_file: str = "",
        cni_conf: Callable[[], bytes] = bytes,
    ) -> None:
        """Says what the files must hold and writes them at once; a failure is logged, not raised.

        Args:
            subnet_file: path of `subnet.env`.
            subnet_env: its content.
            docker_file: empty for none.
            docker_env: its content.
            cni_file: empty for none.
            cni_conf: gives its content when it is to be written; raises `FlannelError`.
        """
        self._primary = Path(subnet_file)
        self._contents = {self._primary: subnet_env}
        self._judges = {self._primary: why_damaged}
        if docker_file:
            self._contents[Path(docker_file)] = docker_env
            self._judges[Path(docker_file)] = docker_why_damaged
        for path in self._contents:
            self._write(path)
        self._cni = (Path(cni_file), cni_conf) if cni_file else None
        self._write_cni()
        self._judge()

    @property
    def withdrawn(self) -> bool:
        """Whether they were taken back, and not written since."""
        return self._primary is not None and not self._contents

    def withdraw(self, why: str) -> None:
        """Takes them back: what they say is not true any more, and nothing else is.

        The node is not ready until they are written again. What does not say what we wrote is
        another program's, and stays.
        """
        contents, self._contents = self._contents, {}
        for path, content in contents.items():
            found = self._disk.read(path)
            if isinstance(found, FileText) and not self._judges[path](found.text, content.decode()):
                self._take_back(path, why)
        self._failed.clear()
        self._good.clear()
        self.ready_since = None

    def withdraw_former(
        self, subnet_file: str, docker_file: str, subnet: SubnetKey, why: str
    ) -> None:
        """Takes back what a former run left, before anything was written; as `withdraw`.

        Args:
            subnet_file: path of `subnet.env`.
            docker_file: of docker's options; empty for none.
            subnet: the one that they name.
            why: what is said of it.
        """
        found = self._disk.read(Path(subnet_file))
        if isinstance(found, FileText) and subnetenv.parse(found.text).previous_subnet == subnet:
            self._take_back(Path(subnet_file), why)
        if not docker_file or subnet.v4 is None:
            return
        bip = f"--bip={subnet.v4.network_address + 1}/{subnet.v4.prefixlen}"
        found = self._disk.read(Path(docker_file))
        if isinstance(found, FileText) and not docker_why_damaged(found.text, bip):
            self._take_back(Path(docker_file), why)

    def _take_back(self, path: Path, why: str) -> None:
        try:
            self._disk.remove(path)
        except OSError as error:
            log.error("environment file not removed", path=path, error=error)
        else:
            log.error(f"environment file removed: {why}", path=path)

    async def guard(self) -> None:
        """Writes again what was deleted, damaged or could not be written. Runs until cancelled."""
        while True:
            await self._clock.sleep(CHECK_INTERVAL_S)
            self.look()

    def look(self) -> None:
        """One look at all files; each that is not as it must be is written again."""
        for path in self._contents:
            if path in self._failed:
                self._write(path)
            elif reason := self._why_wrong(path):
                log.warning(f"environment file {reason}, writing it again", path=path)
                self._restored += 1
                self._write(path)
        if self._cni is not None and self._cni[0] in self._failed:
            self._write_cni()
        self._judge()

    def _why_wrong(self, path: Path) -> str:
        stamp = self._disk.stamp(path)
        if stamp is None:
            return "was deleted"
        if stamp == self._good.get(path):
            return ""
        if stamp != self._suspect.get(path):
            self._suspect[path] = stamp
            return ""
        found = self._disk.read(path)
        if isinstance(found, FileUnreadable):
            return f"is damaged ({found.reason})"
        text = found.text if isinstance(found, FileText) else ""
        damage = self._judges[path](text, self._contents[path].decode("ascii"))
        if damage:
            return f"was altered ({damage})"
        self._good[path] = stamp
        return ""

    def _judge(self) -> None:
        if not self._failed:
            self.complete.set()

    @property
    def failures(self) -> str:
        """What could not be written, and why; empty if all of it is written."""
        return "; ".join(trouble.text for trouble in self._failed.values())

    def _write(self, path: Path) -> None:
        try:
            self._disk.write(path, self._contents[path])
        except FlannelError as error:
            if self._failed.setdefault(path, Trouble(self._clock)).set(str(error)):
                log.error(f"environment file not written, retrying: {error}", path=path)
        else:
            self._failed.pop(path, None)
            # Another program may have written since: the next look reads it, then it is good.
            self._good.pop(path, None)
            if (stamp := self._disk.stamp(path)) is not None:
                self._suspect[path] = stamp
            if path == self._primary:
                log.info(f"Wrote subnet file to {path}", path=path)
                if self.ready_since is None:
                    self.ready_since = self._clock.time()
            else:
                log.info("wrote docker options", path=path)

    def _paths(self) -> Iterable[Path]:
        return (*self._contents, self._cni[0]) if self._cni is not None else self._contents

    def _write_cni(self) -> None:
        """Writes the configuration for CNI, unless the file that its plugin reads is missing."""
        if self._cni is None:
            return
        path, content = self._cni
        try:
            if self._primary in self._failed:
                raise FlannelError(f"{path} waits for {self._primary}")  # noqa: TRY301
            self._disk.write(path, content())
        except FlannelError as error:
            if self._failed.setdefault(path, Trouble(self._clock)).set(str(error)):
                log.error(f"configuration for CNI not written, retrying: {error}", path=path)
        else:
            self._failed.pop(path, None)
            log.info("wrote the configuration for CNI", path=path)

    def report(self) -> FilesReport:
        """Each file with its state."""
        failed = self._failed
        return FilesReport(
            states={str(p): failed[p].text if p in failed else WRITTEN for p in self._paths()},
            restored=self._restored,
            failing_since={str(p): t.since for p, t in failed.items() if t.since is not None},
        )


def read_former(path: str) -> SubnetEnv:
    """What a former run left in `subnet.env`; a fault in it is logged and passed over."""
    content = read_text_if_exists(path)
    if isinstance(content, FileUnreadable):
        log.warning(f"former subnet file not usable, going on without: {content.reason}")
    former = subnetenv.parse(content.text if isinstance(content, FileText) else "")
    for reason in former.skipped:
        log.warning("former subnet file", path=path, reason=reason)
    return former
