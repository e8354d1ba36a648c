"""Chooses a data path, starts it, and replaces one that fails.

The backend owns the TUN, the socket and a runner, and calls the runner from the event loop. The
choice must be known before the TUN is opened (`Capabilities.wants_vnet_hdr`), so choosing and
starting are two steps. After a failure the backend chooses again and opens the TUN again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address

from pyflannel.aio.threads import in_thread
from pyflannel.core.errors import DatapathError
from pyflannel.core.lpm import PeerTable
from pyflannel.datapath import select
from pyflannel.datapath.base import Capabilities, Datapath, DatapathConfig, Link
from pyflannel.logs import get_logger

log = get_logger(__name__)


class Runner:
    """One node's data path, from the first choice to the last stop.

    Args:
        wanted: `--datapath`.
    """

    def __init__(self, wanted: str) -> None:
        self._wanted = wanted
        self._failed: dict[str, str] = {}
        self._choice: select.Choice | None = None
        self._path: Datapath | None = None
        self._starting = False
        self._complete = False
        self._starts = 0
        self.link = select.ANY_LINK
        """The external interface, as the last choice was told."""

    @property
    def running(self) -> bool:
        """Whether a data path has been started and not stopped."""
        return self._path is not None

    @property
    def chosen(self) -> Capabilities | None:
        """What the probe of the chosen one found; `None` before the first choice."""
        return self._choice.factory.capabilities if self._choice is not None else None

    def choose(self, link: Link) -> Capabilities:
        """Chooses the fastest one that works here and has not failed.

        Raises:
            DatapathError: there is none.
        """
        self.link = link
        choice = select.create(self._wanted, failed=self._failed, link=link)
        if self._choice is None or choice.reason != self._choice.reason:
            log.info(
                "data path chosen", datapath=choice.factory.capabilities.name, why=choice.reason
            )
        self._choice = choice
        return choice.factory.capabilities

    def leave_slow(self) -> bool:
        """Whether to choose again, since the one that runs is slow on this node.

        Not for `python`, which is what the slow path of others is.
        """
        reason = self._path.slowed() if self._path is not None else ""
        if not reason or self._wanted != select.AUTO or self.chosen is None:
            return False
        failed = {**self._failed, self.chosen.name: reason}
        following = select.create(select.AUTO, failed=failed, link=self.link)
        name = following.factory.capabilities.name
        return name != "python" and self.pass_over(DatapathError(reason))

    def pass_over(self, error: DatapathError) -> bool:
        """Whether another one is left to choose, after the chosen one could not start, or serve."""
        name = self.chosen.name if self.chosen is not None else ""
        if self._wanted != select.AUTO or name == "python":
            return False
        log.warning("taking another data path", datapath=name, error=error)
        self._failed[name] = str(error)
        return True

    async def start(self, config: DatapathConfig, table: PeerTable | None) -> None:
        """Starts the chosen one, with a table if that is known.

        Raises:
            DatapathError: it cannot start; nothing is left running.
        """
        assert self._choice is not None  # noqa: S101
        path = self._choice.factory(config)
        self._starting = True
        try:
            if table is not None:  # before its first packet
                path.replace_table(table)
            await in_thread("data path", path.prepare)
            path.start()
            if table is not None:  # and where it is in the kernel, as soon as that is there
                path.replace_table(table)
        except BaseException:
            path.stop()
            raise
        finally:
            self._starting = False
        self._path = path
        self._complete = False
        self._starts += 1

    async def complete(self) -> None:
        """Adds what could wait for the first peers. Call it once after each start."""
        if self._path is not None and not self._complete:
            self._complete = True
            await in_thread("data path", self._path.complete)

    def replace_table(self, table: PeerTable) -> None:
        """Puts another table in force, now and at the next start."""
        if self._path is not None:
            self._path.replace_table(table)

    def failure(self) -> str | None:
        """Why it no longer moves packets; `None` while all is well, or none runs."""
        return self._path.failure() if self._path is not None else None

    def minds(self, device: str) -> bool:
        """Whether to call `repair` after a change of this device; `""` stands for any device."""
        return self._path is not None and device in ("", *self._path.capabilities.devices)

    def repair(self) -> Sequence[str]:
        """Repairs its objects in the kernel; the names of what was repaired."""
        return self._path.repair() if self._path is not None else ()

    def stop(self) -> None:
        """Stops it. May be called twice."""
        if self._path is not None:
            self._path.stop()
            self._path = None

    # For reports

    @property
    def name(self) -> str | None:
        """Of the one that runs, or is being started."""
        if self._path is not None:
            return self._path.capabilities.name
        return self.chosen.name if self._starting and self.chosen is not None else None

    @property
    def why(self) -> str:
        """Why this one."""
        return self._choice.reason if self._choice is not None else ""

    @property
    def restarts(self) -> int:
        """How often one was started again."""
        return max(0, self._starts - 1)

    def offloads(self) -> Mapping[str, str]:
        """As in `Capabilities`."""
        return dict(self._path.capabilities.offloads) if self._path is not None else {}

    def counters(self) -> Mapping[str, int]:
        """As in `Datapath`; empty while none runs."""
        return self._path.counters() if self._path is not None else {}

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        """As in `Datapath`."""
        return self._path.peer_counters(peer) if self._path is not None else None
