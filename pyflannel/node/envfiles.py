"""`subnet.env` and `docker_opts.env`: written whole or not at all, and written again when deleted.

Docker, CNI plugins and our own next start read them. They change only when the subnet does: like
upstream we never rewrite them for a changed MTU: whoever read them has built on the old value.
A disk that is full or read-only is no reason to stop carrying packets: it is said once, retried,
and the node is not ready until `subnet.env` is there.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Final

from pyflannel.api.status import StatusBoard
from pyflannel.core.errors import FlannelError
from pyflannel.kernel.files import write_atomically
from pyflannel.logs import get_logger

log = get_logger(__name__)

CHECK_INTERVAL_S: Final = 1.0
"""Between two looks whether the files are still there: two stat(2) calls a second cost nothing that
can be measured; an inotify watch would have to follow a directory that may be replaced itself."""


class EnvFiles:
    """Keeps the environment files; `contents` may be replaced at any time with `set`."""

    def __init__(self, board: StatusBoard) -> None:
        self._board = board
        self._contents: dict[Path, bytes] = {}
        self._failed: dict[Path, str] = {}
        self._primary: Path | None = None
        self.complete = asyncio.Event()
        """Set once all of them have been written."""

    def set(self, subnet_file: str, subnet_env: bytes, docker_file: str, docker_env: bytes) -> None:
        """Says what the files must hold and writes them at once; a failure is logged, not raised.

        Args:
            docker_file: empty for none.
        """
        self._primary = Path(subnet_file)
        self._contents = {self._primary: subnet_env}
        if docker_file:
            self._contents[Path(docker_file)] = docker_env
        for path in self._contents:
            self._write(path)
        self._judge()

    async def guard(self) -> None:
        """Writes again what was deleted or could not be written. Runs for ever."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for path in self._contents:
                if path in self._failed:
                    self._write(path)
                elif not path.exists():
                    log.warning("environment file was deleted, writing it again", path=path)
                    self._board.files_restored += 1
                    self._write(path)
            self._judge()

    def _judge(self) -> None:
        if not self._failed:
            self.complete.set()

    @property
    def failures(self) -> str:
        """What could not be written, and why; empty if nothing is amiss."""
        return "; ".join(self._failed.values())

    def _write(self, path: Path) -> None:
        try:
            write_atomically(path, self._contents[path])
        except FlannelError as error:
            if self._failed.get(path) != str(error):
                log.error(f"environment file not written, retrying: {error}", path=path)
            self._failed[path] = str(error)
            self._board.problem(f"file {path}", str(error))
        else:
            self._failed.pop(path, None)
            self._board.problem(f"file {path}", "")
            if path == self._primary:
                log.info(f"Wrote subnet file to {path}", path=path)
                if self._board.ready_since is None:
                    self._board.ready_since = time.time()
            else:
                log.info("wrote docker options", path=path)
        self._board.files = {str(p): self._failed.get(p, "written") for p in self._contents}
