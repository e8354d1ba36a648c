"""The peers whose datagrams policies of IPsec are for: their packets are left to user space.

What the programs send is not encrypted, and what they take was not asked whether it should have
been: both pass xfrm by. A socket's datagrams do not. So such a peer is not put into the programs'
map, and is a stranger to them in both directions.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.kernel import xfrm
from pyflannel.logs import get_logger

log = get_logger(__name__)

PAUSE_S: Final = 0.02
"""From the first word of a change until all is read: policies come in pairs, and in hundreds."""
QUICK_S: Final = 0.005
SHARE: Final = 10
"""A tenth of the time, at most, goes into reading while changes go on."""


class Guards:
    """The policies for one address and port.

    Args:
        address: the node's, on the underlay.
        port: the backend's.
    """

    def __init__(self, address: IPv4Address, port: int) -> None:
        self._address, self._port = address, port
        self._networks: frozenset[IPv4Network] = frozenset()
        self._by_mask: dict[int, set[int]] = {}
        """The networks as numbers, by their masks: there may be a policy for each of many peers."""
        self._watching: tuple[asyncio.AbstractEventLoop, socket.socket] | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._took_s = 0.0
        self._refused = ""

    @property
    def any(self) -> bool:
        """Whether there are policies for our datagrams, of a peer or not."""
        return bool(self._networks)

    @property
    def is_quick(self) -> bool:
        """Whether a look took as little as what is looked at on every full pass."""
        return self._took_s < QUICK_S

    def cover(self, peer: bytes) -> bool:
        """Whether one is for this peer's; its address in network byte order."""
        number = int.from_bytes(peer, "big")
        return any(number & mask in found for mask, found in self._by_mask.items())

    def look(self) -> bool:
        """Asks the kernel; whether something has changed. What cannot be asked stays as it was."""
        begun = time.monotonic()
        try:
            found = frozenset(xfrm.protected(self._address, self._port))
            self._took_s = time.monotonic() - begun
        except KernelError as error:
            if str(error) != self._refused:
                log.warning("not known whether policies of IPsec are for peers", error=error)
            self._refused = str(error)
            return False
        self._refused = ""
        if found == self._networks:
            return False
        self._networks = found
        self._by_mask = {}
        for network in found:
            self._by_mask.setdefault(int(network.netmask), set()).add(int(network.network_address))
        return True

    def watch(self, changed: Callable[[], object]) -> bool:
        """Has a function called when policies may have changed. Call it from the event loop.

        Returns:
            Whether it was so already. Where nothing has used IPsec since the boot, nothing is
            loaded for this: call it again later.
        """
        if self._watching is not None:
            return True
        if not xfrm.is_loaded():
            return False
        try:
            events = xfrm.open_events()
        except KernelError as error:
            log.debug("changes of IPsec policies are seen later", reason=str(error))
            return False
        loop = asyncio.get_running_loop()

        def look_now() -> None:
            self._soon = None
            changed()

        def look_soon() -> None:
            if self._soon is None:
                self._soon = loop.call_later(max(PAUSE_S, SHARE * self._took_s), look_now)

        def heard() -> None:
            xfrm.drain(events)
            look_soon()

        loop.add_reader(events.fileno(), heard)
        self._watching = loop, events
        look_soon()  # what has changed since the last look was told to nobody
        return False

    def stop(self) -> None:
        """Ends the watching. May be called twice."""
        if self._watching is not None:
            loop, events = self._watching
            loop.remove_reader(events.fileno())
            events.close()
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None
            self._watching = None
