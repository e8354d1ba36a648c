"""An edge of the probes whose peers answer, unless they are told otherwise."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from pyflannel.core.ip import IPAddress
from pyflannel.testing.fakeclock import FakeClock


class FakeEchoes:
    """As `probe.prober.Echoes`, for IPv4."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.ident = 7
        self.silent: set[str] = set()
        self.answers = True
        """Whether any peer does."""
        self.looks = 0
        """How often the answers were asked for."""
        self.carries: dict[str, int] = {}
        """By address: bytes of the largest packet that arrives."""
        self.refuses = 0
        self.device_mtu = 1500
        self.sent: list[tuple[float, str, int]] = []
        self._waiting: list[tuple[bytes, float]] = []
        self.delay = 0.01

    def send(self, address: IPAddress, message: bytes) -> int:
        size = len(message) + 20
        self.sent.append((self.clock.monotonic(), str(address), size))
        if self.refuses:
            return self.refuses
        if size > self.device_mtu:
            return errno.EMSGSIZE
        if (
            self.answers
            and str(address) not in self.silent
            and size <= self.carries.get(str(address), 9_000)
        ):
            self._waiting.append((b"\x00" + message[1:], self.clock.time() + self.delay))
        return 0

    def receive(self) -> Iterator[tuple[bytes, float]]:
        self.looks += 1
        now = self.clock.time()
        come = [each for each in self._waiting if each[1] <= now]
        self._waiting = [each for each in self._waiting if each[1] > now]
        yield from come

    def close(self) -> None:
        self.ident = 0
