"""When to look at the rules again: after an announced change, and now and then in any case."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family
from pyflannel.kernel import firewall
from pyflannel.logs import get_logger

log = get_logger(__name__)

FULL_CHECK_S: Final = 60.0
"""Until a look without any hint, for each child process that a look costs: no more than one may be
spent per minute of rest. A single look costs one for each chain."""
SETTLE_S: Final = 0.2
"""One `iptables-restore` or `nft -f` makes a message per rule; act after the last of them."""
LEAST_INTERVAL_S: Final = 2.0
"""Between two looks that were asked for by events. Somebody who changes rules all the time (docker,
kube-proxy) must not make us spawn all the time; rules are to be back within five seconds."""
LEGACY_POLL_S: Final = 2.0
"""How often a legacy table is asked for its size, at least: a system call, and with the two waits
above the rules are back within five seconds."""


class ChangeMonitor:
    """Waits for changes of the given tables.

    Args:
        resync_s: how often to look at the rules if changes cannot be listened for, and to ask a
            legacy table for its size if that is more often than `LEGACY_POLL_S`.
    """

    def __init__(self, resync_s: float, tables: tuple[str, ...]) -> None:
        self._resync_s = resync_s
        self._tables = frozenset(tables)
        self._events: socket.socket | None = None
        self._deaf = False
        self._legacy: dict[tuple[Family, str], bytes | None] = {}
        self._last = float("-inf")
        self.full_check_s = FULL_CHECK_S
        """How long `wait` waits at most."""

    def arm(self, *, legacy: tuple[tuple[Family, str], ...] = (), processes: int = 0) -> None:
        """Starts to listen, and takes down how the given legacy tables look now.

        Args:
            legacy: tables of legacy iptables that hold rules of ours.
            processes: how many children a look at the rules costs.
        """
        self.full_check_s = FULL_CHECK_S * max(1, processes)
        if self._events is None and not self._deaf:
            try:
                self._events = firewall.open_nftables_events()
            except KernelError as error:
                self._deaf = True
                log.debug("changes of the rules are not announced here", error=error)
        self._legacy = {which: firewall.legacy_table_info(*which) for which in legacy}

    async def wait(self) -> bool:
        """Returns when the rules should be looked at: `True` after a change, `False` by time."""
        if self._deaf and not self._legacy:
            await asyncio.sleep(self._resync_s)
            return False
        full = time.monotonic() + self.full_check_s
        while (left := full - time.monotonic()) > 0:
            step = min(left, self._resync_s, LEGACY_POLL_S) if self._legacy else left
            hinted = await self._announced(step)
            if hinted or self._legacy_changed():
                pause = self._last + LEAST_INTERVAL_S - time.monotonic()
                await asyncio.sleep(max(SETTLE_S, pause))
                self._last = time.monotonic()
                if self._events is not None:
                    firewall.changed_tables(self._events)
                return True
        return False

    def close(self) -> None:
        """Stops listening."""
        if self._events is not None:
            self._events.close()
            self._events = None

    async def _announced(self, timeout_s: float) -> bool:
        """Whether a change of one of our tables was announced in time."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if self._events is None:
                await asyncio.sleep(left)
                return False
            if not await _readable(self._events, left):
                return False
            names = firewall.changed_tables(self._events)
            if names is None or names & self._tables:
                return True
        return False

    def _legacy_changed(self) -> bool:
        return any(
            firewall.legacy_table_info(*which) != known for which, known in self._legacy.items()
        )


async def _readable(sock: socket.socket, timeout_s: float) -> bool:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await ready.wait()
        return ready.is_set()
    finally:
        loop.remove_reader(sock)
