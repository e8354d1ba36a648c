"""The peers whose datagrams policies of IPsec are for: their packets are left to user space.

What the programs send is not encrypted, and what they take was not asked whether it should have
been: both pass xfrm by. A socket's datagrams do not. So such a peer is not put into the programs'
map, and is a stranger to them in both directions.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

from pyflannel.core.errors import KernelError
from pyflannel.kernel import xfrm
from pyflannel.logs import get_logger

log = get_logger(__name__)


class Guards:
    """The policies for one address and port.

    Args:
        address: the node's, on the underlay.
        port: the backend's.
    """

    def __init__(self, address: IPv4Address, port: int) -> None:
        self._address, self._port = address, port
        self._networks: frozenset[IPv4Network] = frozenset()
        self._watching: tuple[asyncio.AbstractEventLoop, socket.socket] | None = None
        self._refused = ""

    @property
    def any(self) -> bool:
        """Whether there are policies for our datagrams, of a peer or not."""
        return bool(self._networks)

    def cover(self, peer: IPv4Address) -> bool:
        """Whether one is for this peer's."""
        return any(peer in network for network in self._networks)

    def look(self) -> bool:
        """Asks the kernel; whether something has changed. What cannot be asked stays as it was."""
        try:
            found = frozenset(xfrm.protected(self._address, self._port))
        except KernelError as error:
            if str(error) != self._refused:
                log.warning("not known whether policies of IPsec are for peers", error=error)
            self._refused = str(error)
            return False
        self._refused = ""
        changed = found != self._networks
        self._networks = found
        return changed

    def watch(self, changed: Callable[[], object]) -> None:
        """Has a function called when policies may have changed. Call it from the event loop.

        Where nothing has used IPsec since the boot, nothing is loaded for this: call it later.
        """
        if self._watching is not None or not xfrm.is_loaded():
            return
        try:
            events = xfrm.open_events()
        except KernelError as error:
            log.debug("changes of IPsec policies are seen later", reason=str(error))
            return

        def heard() -> None:
            xfrm.drain(events)
            changed()

        loop = asyncio.get_running_loop()
        loop.add_reader(events.fileno(), heard)
        self._watching = loop, events

    def stop(self) -> None:
        """Ends the watching. May be called twice."""
        if self._watching is not None:
            loop, events = self._watching
            loop.remove_reader(events.fileno())
            events.close()
            self._watching = None
