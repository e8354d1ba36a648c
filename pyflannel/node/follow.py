"""Follows the machine: the external interface may be replaced, change its address or its MTU.

Kernel notifications about links, addresses and default routes lead, after a moment of quiet, to the
question whether the overlay can stay where it is. It can as long as the interface is up, has a
carrier and still has the leased address: a second address, a VPN's default route or a bridge beside
it are no reason to move. Otherwise another underlay is chosen, as at the start; and the first one
is gone back to when it returns, later and later if it keeps failing (`core.moving` has the
rules).

Where the overlay stays, or came to, on another card than before, or on one with another MAC, the
neighbours are told (`kernel.ndisc`): they would send to the former one for half a minute.

What an operator wishes for in the store (a public address) is part of the choice. When that changes
the choice is made anew, as a start would; a wish that cannot be met changes nothing.

A new choice is handed to the daemon. Where there is none (the interface is gone for now), or one
that the backend cannot work with, that is reported, and everything stays as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from pyflannel.aio.clock import Clock, within
from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.core.ip import IPAddress
from pyflannel.core.moving import Homing
from pyflannel.core.underlay import ExternalInterface
from pyflannel.kernel.base import Notification, Topic
from pyflannel.logs import get_logger
from pyflannel.node.trouble import Trouble

log = get_logger(__name__)

SETTLE_S: Final = 0.1
"""An interface that is replaced or renumbered makes a handful of notifications within milliseconds;
acting after the last of them acts once. Peers are to be reached again within 2 s in all."""
RECHECK_S: Final = 10.0
"""Looked at again even without a notification, as everything else is."""
ANNOUNCEMENTS: Final = 3
ANNOUNCE_INTERVAL_S: Final = 1.0
"""MAX_NEIGHBOR_ADVERTISEMENT and RetransTimer of RFC 4861 §10: one that is sent while the switch
learns the new card, or before the address is usable, is lost."""


class UnderlayFollower:
    """Watches for a change of the selected underlay.

    Args:
        first: what was selected at the start, and is gone back to.
        select: what is to carry the overlay now, given what carries it and what did first; raises
            `InterfaceError` if nothing can now.
        moved: told the new one; awaited, and never called twice at once. Raises `FlannelError` if
            the backend cannot work with it: what is there is left as it is, and it is told again,
            because an interface that is being set up looks like that for a moment.
        choose: what a start would choose now, for the wishes of now.
        wishes: those that the first choice was made for.
        announce: tells the neighbours where an interface's IPv6 address is; raises `KernelError` if
            it cannot.
    """

    def __init__(
        self,
        first: ExternalInterface,
        select: Callable[[ExternalInterface, ExternalInterface], Awaitable[ExternalInterface]],
        moved: Callable[[ExternalInterface], Awaitable[None]],
        clock: Clock,
        announce: Callable[[ExternalInterface], None] = lambda _: None,
        *,
        choose: Callable[[ExternalInterface], Awaitable[ExternalInterface]] | None = None,
        wishes: Collection[IPAddress] = (),
    ) -> None:
        self._choose = choose
        self._wishes = tuple(wishes)
        self._wished_anew = False
        self._announce = announce
        self._card = _card(first)
        self._announcements = 0
        self._home = first
        self._current = first
        self._away = False
        self._homing = Homing()
        self._refused: ExternalInterface | None = None
        self._select = select
        self._moved = moved
        self._clock = clock
        self.trouble = Trouble(clock)
        """Why there is no usable interface now."""
        self.unmet = Trouble(clock)
        """Why what is wished for cannot be."""
        self._hint = asyncio.Event()

    def notice(self, notification: Notification) -> None:
        """Takes a kernel notification; cheap."""
        if notification.topic in (Topic.LINK, Topic.ADDRESS, Topic.OVERFLOW) or (
            notification.topic is Topic.ROUTE
            and notification.dst is not None
            and notification.dst.prefixlen == 0
        ):
            self._hint.set()

    def wish(self, wishes: Collection[IPAddress]) -> None:
        """Takes what is wished for now, the same as before too; cheap."""
        if tuple(wishes) != self._wishes:
            self._wishes = tuple(wishes)
            self._wished_anew = True
            self._hint.set()

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            wait_s = ANNOUNCE_INTERVAL_S if self._announcements else RECHECK_S
            if self._away and (wait := self._homing.remaining(self._clock.monotonic())):
                wait_s = min(wait_s, wait)
            await within(self._clock, wait_s, self._hint.wait())
            if self._hint.is_set():
                await self._clock.sleep(SETTLE_S)
            self._hint.clear()
            await self.check()

    async def check(self) -> None:
        """Asks whether the overlay can stay, and reports it if it cannot."""
        if self._wished_anew and self._choose is not None:
            await self._choose_anew(self._choose)
        waiting = self._away and self._homing.remaining(self._clock.monotonic()) > 0
        try:
            # With nowhere to go back to it stays where it is, if it can.
            home = self._current if waiting else self._home
            selected = await self._select(self._current, home)
            if selected != self._current:
                await self._follow(selected)
        except FlannelError as error:
            if self.trouble.set(str(error)):
                log.warning(f"external interface is not usable now, waiting for it: {error}")
            return
        self._refused = None
        self._tell_neighbours(selected)
        if self.trouble.set(""):
            log.info("external interface is usable again", interface=selected.name)

    async def _choose_anew(
        self, choose: Callable[[ExternalInterface], Awaitable[ExternalInterface]]
    ) -> None:
        """What is chosen becomes the place to be at; the move is a usual one."""
        try:
            self._home = await choose(self._current)
        except FlannelError as error:
            if self.unmet.set(str(error)):
                log.error(
                    "the public address that is wished for cannot be used, staying as it is",
                    reason=error,
                )
            return
        self._wished_anew = self._away = False
        self._homing = Homing()
        self.unmet.set("")

    def _tell_neighbours(self, selected: ExternalInterface) -> None:
        card = _card(selected)
        if card != self._card:
            self._card, self._announcements = card, ANNOUNCEMENTS
        if self._announcements == 0 or selected.address6 is None or not selected.mac:
            self._announcements = 0
            return
        self._announcements -= 1
        try:
            self._announce(selected)
        except KernelError as error:
            log.debug("neighbours not told of the new card", error=error)

    async def _follow(self, selected: ExternalInterface) -> None:
        if selected != self._refused:
            log.warning(
                "external interface changed, following it",
                interface=selected.name,
                index=selected.index,
                public_ip=selected.public_ip,
                mtu=selected.mtu,
                former=f"{self._current.name} {self._current.public_ip} mtu {self._current.mtu}",
            )
        self._refused = selected
        await self._moved(selected)
        self._current = selected
        away = _addresses(selected) != _addresses(self._home)
        if away != self._away:
            self._away = away
            (self._homing.left if away else self._homing.returned)(self._clock.monotonic())


def _card(interface: ExternalInterface) -> tuple[object, ...]:
    """What the neighbours have to learn anew when it changes."""
    return (interface.index, interface.mac, interface.address6)


def _addresses(interface: ExternalInterface) -> tuple[object, ...]:
    """What makes a place the same: its interface may have become another one."""
    return (interface.address, interface.address6)
