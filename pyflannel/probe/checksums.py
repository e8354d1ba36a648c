"""Detects that packets are lost if their checksum is left to the device.

Some kernels, cards and NAT rules lose them: ping works, TCP hangs. The probe sends two datagrams to
a peer that answers echoes, to a port where nothing listens. They differ only in who computes the
checksum, we or the device. If the peer refuses both, all is well; if it refuses neither (a
firewall), nothing is known. If it refuses only ours, the other was lost. Once may be chance;
several times in a row is not.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Final, Protocol

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import FlannelError
from pyflannel.core.ip import IPAddress
from pyflannel.logs import get_logger
from pyflannel.records import dataclass

log = get_logger(__name__)

WAIT_S: Final = 1.0
"""Time for an answer. Linux sends one such answer a second to an address, after a burst of six."""
EVERY_S: Final = 2.0
"""Between two peers. With 1,000 peers each is probed once an hour, at a packet a second."""
ROUNDS: Final = 5
"""Losses in a row. If one packet of ten is lost on the path, that happens by chance once in 100,000
turns."""


class Knocks(Protocol):
    """Datagrams to one address; see `kernel.knock.Knock`."""

    def send(self, *, written: bool) -> int:
        """Sends one, with its checksum or without; 0 or an `errno`."""
        ...

    def answered(self) -> bool:
        """Whether an answer has come since the last look."""
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Outcome(enum.Enum):
    """Of one round."""

    ARRIVES = enum.auto()
    LOST = enum.auto()
    """The datagram with our checksum arrived, and the other did not."""
    UNKNOWN = enum.auto()


@dataclass(slots=True)
class LostChecksums:
    """What is known about checksums; written by the probe, read by the backend."""

    text: str = ""
    """A sentence about the peer that loses such packets; empty while none is known."""


class ChecksumProbe:
    """Probes one peer after the other until it has found a loss. Call `run` once.

    Args:
        clock: the time.
        open_knock: gives the sockets for an address; raises `FlannelError`.
        answering: the addresses of peers that answer echoes now.
        lost: takes what is found.
    """

    def __init__(
        self,
        clock: Clock,
        open_knock: Callable[[IPAddress], Knocks],
        answering: Callable[[], Sequence[IPAddress]],
        lost: LostChecksums,
    ) -> None:
        self._clock = clock
        self._open = open_knock
        self._answering = answering
        self._lost = lost

    async def run(self) -> None:
        """Returns when it has found a loss."""
        while True:
            for address in self._answering():
                if await self._loses(address):
                    self._lost.text = (
                        f"{address} answers datagrams with a checksum, and none whose checksum is "
                        "left to the device"
                    )
                    return
                await self._clock.sleep(EVERY_S)
            await self._clock.sleep(EVERY_S)

    async def _loses(self, address: IPAddress) -> bool:
        for number in range(ROUNDS):
            # The order alternates: if the peer limits its answers, it is not always the second that
            # gets none.
            if await self._round(address, written_first=bool(number % 2)) is not Outcome.LOST:
                return False
        return True

    async def _round(self, address: IPAddress, *, written_first: bool) -> Outcome:
        try:
            # Each has its own socket, so that a late answer is not taken for the other's.
            with closing(self._open(address)) as left, closing(self._open(address)) as written:
                for knock in (written, left) if written_first else (left, written):
                    if knock.send(written=knock is written):
                        return Outcome.UNKNOWN
                    await self._clock.sleep(WAIT_S)
                if left.answered():
                    return Outcome.ARRIVES
                return Outcome.LOST if written.answered() else Outcome.UNKNOWN
        except FlannelError as error:
            log.debug("checksums not probed", address=address, error=error)
            return Outcome.UNKNOWN
