"""When the overlay stays on its interface, when it moves to another, and when it goes back.

While the daemon runs, the choice is not made again as long as there is no need: what carries the
overlay is left only when it is gone, down or without carrier, or has lost its leased address
(`standing`). Only then is there a search (`move`), which never ends at a device of our own, or at
one that carries this node's own subnet. And what was left is gone back to when it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from pyflannel.core.errors import InterfaceError
from pyflannel.core.ip import Family, IPAddress, SubnetKey, family_of, format_ip
from pyflannel.core.matching import select_interface
from pyflannel.core.options import DaemonOptions
from pyflannel.core.underlay import Candidate, ExternalInterface, Selection, Surroundings


def standing(
    current: ExternalInterface,
    home: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> ExternalInterface | None:
    """Where the overlay stays, or goes back to; `None` if it has to move.

    Args:
        current: what carries it now.
        home: what carried it first; the same in most cases.
        options, families: as for `select_interface`.
        around: links and addresses; routes do not matter here.

    Returns:
        The one or the other with its present name, index and MTU.
    """
    for place in (home, current):
        carrier = _carrier_of(place, options, families, around)
        if carrier is not None:
            return replace(
                place,
                name=carrier.name,
                index=carrier.index,
                mtu=carrier.mtu,
                mac=carrier.mac,
            )
    return None


def _carrier_of(
    place: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> Candidate | None:
    """The interface that carries a place's addresses now.

    It is the same interface, whatever it is called now; or another one of its name (the card was
    replaced); or, if no option forbids, one that took its addresses over (a bridge or a bond made
    of it).
    """
    wanted = [ip for family in families if (ip := place.local(family)) is not None]
    able = [
        candidate
        for candidate in around.candidates
        if not candidate.trouble()
        and not candidate.ours
        and candidate.mtu > 0
        and all(candidate.carries(ip) for ip in wanted)
    ]
    able.sort(key=lambda candidate: (candidate.index != place.index, candidate.name != place.name))
    for candidate in able:
        if place.name == candidate.name or place.index == candidate.index:
            return candidate
        if not candidate.loopback and _is_allowed(candidate, wanted, options, families, around):
            return candidate
    return None


def _is_allowed(
    candidate: Candidate,
    wanted: Sequence[IPAddress],
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
) -> bool:
    """Whether the operator's options let this interface be chosen for its addresses."""
    if not (options.iface or options.iface_regex or options.iface_can_reach):
        return True
    alone = replace(around, candidates=(candidate,))
    try:
        found = select_interface(options, families, alone, prefer=wanted).interface
    except InterfaceError:
        return False
    return all(found.local(family_of(ip)) == ip for ip in wanted)


def move(
    current: ExternalInterface,
    home: ExternalInterface,
    options: DaemonOptions,
    families: Sequence[Family],
    around: Surroundings,
    own: SubnetKey | None,
) -> Selection:
    """Chooses another underlay, now that the present one cannot be used.

    Args:
        current, home, options, families: as for `standing`.
        around: all of it.
        own: the subnet of this node; an interface with an address in it belongs to the containers.

    Raises:
        InterfaceError: nothing fits; the message begins with what is wrong with the present one.
    """
    fit = [
        candidate
        for candidate in around.candidates
        if not candidate.trouble() and not candidate.ours and not candidate.carries_subnet(own)
    ]
    prefer = [
        ip
        for place in (home, current)
        for family in families
        if (ip := place.local(family)) is not None
    ]
    why = _why_left(current, families, around)
    try:
        found = select_interface(options, families, replace(around, candidates=fit), prefer=prefer)
    except InterfaceError as error:
        raise InterfaceError(f"{why}. {error}") from error
    for family in families:
        former, now = current.local(family), found.interface.local(family)
        if now is not None and now.is_link_local and not (former and former.is_link_local):
            raise InterfaceError(
                f"{why}. {found.interface.name} has no {family} address that other nodes can reach"
            )
    return found


def _why_left(current: ExternalInterface, families: Sequence[Family], around: Surroundings) -> str:
    """What is wrong with the present interface."""
    for candidate in around.candidates:
        if candidate.index == current.index:
            if trouble := candidate.trouble():
                return trouble
            lost = [
                format_ip(ip)
                for family in families
                if (ip := current.local(family)) is not None and not candidate.carries(ip)
            ]
            return f"{candidate.name} has lost its address {', '.join(lost)}"
    return f"{current.name} is gone"


class Homing:
    """How long the overlay waits before it goes back. Pure: takes the time.

    Each move is told to every node of the cluster. An interface that comes and goes (a loose cable,
    a driver that resets) would make all of them follow it, so each return within `CALM_S` of the
    one before doubles the wait for the next. The first one is at once.
    """

    FIRST_S: Final = 2.0
    LONGEST_S: Final = 64.0
    CALM_S: Final = 600.0

    def __init__(self) -> None:
        self._returned = float("-inf")
        self._wait_s = 0.0
        self._from = float("-inf")

    def left(self, now: float) -> None:
        """The first underlay had to be left."""
        if now - self._returned > self.CALM_S:
            self._wait_s = 0.0
        self._from = now + self._wait_s

    def returned(self, now: float) -> None:
        """It was gone back to."""
        self._returned = now
        self._wait_s = min(max(self._wait_s * 2, self.FIRST_S), self.LONGEST_S)

    def remaining(self, now: float) -> float:
        """Seconds until it may be gone back to; 0 if it may be now."""
        return max(0.0, self._from - now)
