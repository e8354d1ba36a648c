"""The current trouble of the store: logged when it changes, and reported with its kind.

Before the lease it is what the store waits for, afterwards why it cannot maintain the lease.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import StoreDenied
from pyflannel.core.trouble import TroubleLog
from pyflannel.logs import get_logger
from pyflannel.report.model import StoreFault
from pyflannel.store.kubernetes.failures import NodeMissing, NotRegistered, UnusablePodCidr

log = get_logger(__name__)

WORTH_TELLING_S: Final = 1.0
"""The end of a wait that lasted this long is logged."""
_KINDS: Final[tuple[tuple[type[Exception], StoreFault], ...]] = (
    (NodeMissing, StoreFault.NODE_MISSING),
    (NotRegistered, StoreFault.NODE_MISSING),
    (UnusablePodCidr, StoreFault.NO_POD_CIDR),
    (StoreDenied, StoreFault.DENIED),
)


def fault_of(error: Exception | None) -> StoreFault:
    """Kinds of trouble that an operator can do something about."""
    return next((fault for kind, fault in _KINDS if isinstance(error, kind)), StoreFault.NONE)


class StoreTrouble:
    """The one thing that the store waits for, or that fails, at a time.

    Args:
        clock: the time.
        tell: called with what the store waits for, in words, and with `""` when that is over.
    """

    def __init__(self, clock: Clock, tell: Callable[[str], None]) -> None:
        self._clock = clock
        self._tell = tell
        self._waiting = TroubleLog()
        self.fault = StoreFault.NONE
        """Its kind."""
        self.failing = ""
        """Why the lease cannot be maintained."""
        self.since: float | None = None
        """When that began, in seconds since the epoch."""

    def waits(self, text: str, kind: str, error: Exception, *, quiet: bool = False) -> None:
        """There is no lease yet.

        Args:
            text: what the store waits for, and what to do.
            kind: as in `TroubleLog`.
            error: why.
            quiet: whether that is usual at a start, so that it is not logged.
        """
        self.fault = fault_of(error)
        self._tell(text)
        occasion = self._waiting.failed(self._clock.monotonic(), kind, text)
        if occasion is not None and not quiet:
            log.warning("waiting", reason=text)

    def over(self) -> None:
        """The wait is over."""
        self.fault = StoreFault.NONE
        lasted = self._waiting.over(self._clock.monotonic())
        if lasted is not None and lasted >= WORTH_TELLING_S:
            log.info("waiting is over", after_s=round(lasted, 1))

    def fails(self, error: Exception | None) -> None:
        """The lease cannot be maintained, or can be again."""
        reason = str(error) if error is not None else ""
        self.fault = fault_of(error)
        if bool(reason) != bool(self.failing):
            self.since = self._clock.time() if reason else None
        if reason and reason != self.failing:
            log.warning("this node's lease cannot be kept as it should be", reason=reason)
        self.failing = reason
