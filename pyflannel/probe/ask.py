"""Asks one address now and waits for the answers; for commands, not for the daemon."""

from __future__ import annotations

import asyncio
import errno
import secrets
import time
from typing import Final

from pyflannel.core.ip import IPAddress, family_of
from pyflannel.kernel.icmp import EchoSocket
from pyflannel.probe import echo
from pyflannel.records import dataclass

WAIT_S: Final = 1.0
"""For the answer to each."""
BETWEEN_S: Final = 0.1
_LOOK_S: Final = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The result of a few echoes."""

    sent: int
    rtts_s: tuple[float, ...]
    refused: str = ""
    """The kernel's error for the last one that could not be sent."""

    @property
    def lost(self) -> int:
        """How many were not answered."""
        return self.sent - len(self.rtts_s)

    @property
    def ok(self) -> bool:
        """Whether one was."""
        return bool(self.rtts_s)


async def ask(
    address: IPAddress, *, size: int = 0, count: int = 3, first_ends: bool = False
) -> Answers:
    """Sends echoes one after the other.

    Args:
        address: where they go.
        size: bytes of the whole IP packet; 0 for a small one.
        count: of echoes.
        first_ends: whether to stop at the first answer.

    Raises:
        KernelError: there is no raw socket.
    """
    family = family_of(address)
    edge = EchoSocket(family)
    secret = secrets.token_bytes(echo.SECRET)
    rtts: list[float] = []
    sent, refused = 0, ""
    try:
        for number in range(count):
            if number:
                await asyncio.sleep(BETWEEN_S)
            message = echo.request(
                family, edge.ident, secret, number, max(size, echo.SMALLEST[family])
            )
            at = time.time()
            failed = edge.send(address, message)
            sent += 1
            refused = errno.errorcode.get(failed, str(failed)) if failed else ""
            if failed:
                continue
            deadline = time.monotonic() + WAIT_S
            while time.monotonic() < deadline:
                come = [
                    when
                    for text, when in edge.receive()
                    if echo.answer(family, text, secret) == number
                ]
                if come:
                    rtts.append(max(0.0, come[0] - at))
                    break
                await asyncio.sleep(_LOOK_S)
            if rtts and first_ends:
                break
    finally:
        edge.close()
    return Answers(sent=sent, rtts_s=tuple(rtts), refused=refused)


async def connect(address: IPAddress, port: int, timeout_s: float = 3.0) -> tuple[bool, str]:
    """Whether TCP reaches a port, and the result in words. A refusal counts as an answer."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(str(address), port)
    except ConnectionRefusedError:
        return True, "refused, so it arrives; the port is closed"
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return False, errno.errorcode.get(error.errno or 0, str(error))
    took = time.monotonic() - started
    writer.close()
    return True, f"connected, {took * 1000:.1f} ms"
