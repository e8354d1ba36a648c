"""What is said of trouble with this node's lease: each kind once, and that it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.errors import (
    LeaseError,
    PublicIPInUse,
    StoreConfigError,
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreLeaseNotFound,
    SubnetsExhausted,
    SubnetsOverlap,
)
from pyflannel.core.holding import Answer, Do, Holding
from pyflannel.core.trouble import Trouble, TroubleLog
from pyflannel.logs import get_logger
from pyflannel.store.etcd.base import Store
from pyflannel.store.etcd.own import OwnLease

log = get_logger(__name__)

_WAITING: Final = {
    Answer.RACED: "{error}",
    Answer.LEASE_ENDED: "{error}",
    Answer.FULL: "{error}",
    Answer.IN_USE: "{error}",
    Answer.REFUSED: "{error}",
    Answer.UNREACHABLE: "waiting for etcd at {etcd} with the subnet lease: {error}",
}
"""What a node without a lease says that it waits for."""


class Complaints:
    """Says what keeps this node from a lease, or from looking after the one it has.

    Args:
        tell: told in words what is being waited for.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        holding: Holding,
        own: OwnLease,
        tell: Callable[[str], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._holding = holding
        self._own = own
        self._tell = tell
        self._trouble = TroubleLog()

    @property
    def present(self) -> Trouble | None:
        """The trouble there is."""
        return self._trouble.present

    def failed(self, do: Do, error: StoreError | LeaseError) -> None:
        """Says why a step failed, unless that was said."""
        answer = answer_of(error)
        if answer in (Answer.RACED, Answer.LEASE_ENDED):
            log.debug("own lease: trying again", step=do.value, error=error)
            return
        kind = f"{answer.name} {error.kind if isinstance(error, StoreError) else error}"
        occasion = self._trouble.failed(self._clock.monotonic(), kind, str(error))
        if not self._holding.has:
            self._tell(_WAITING[answer].format(error=error, etcd=self._store.describe()))
        if occasion is None:
            return
        if not self._holding.has:
            write = log.warning if answer is Answer.UNREACHABLE else log.error
            write(
                f"no subnet lease yet, still trying: {error}"
                if self._own.loss is None
                else f"the subnet lease is not back yet, still trying: {error}",
                endpoints=self._store.describe(),
            )
        elif do is Do.RENEW and self._holding.renewal is not None:
            log.warning(
                "Error renewing lease, trying again",
                subnet=self._own.held().key.describe(),
                reason=self._holding.renewal.reason,
                error=error,
            )
        else:
            log.warning(
                "own lease not checked or written, trying again",
                subnet=self._own.held().key.describe(),
                step=do.value,
                error=error,
            )

    def over(self) -> None:
        """Says that a trouble is over, if there was one."""
        lasted = self._trouble.over(self._clock.monotonic())
        if lasted is not None:
            log.info("own lease is checked and written again", after_s=round(lasted, 1))


def answer_of(error: StoreError | LeaseError) -> Answer:
    """What an error means for what is done next."""
    match error:
        case StoreConflict():
            return Answer.RACED
        case StoreLeaseNotFound():
            return Answer.LEASE_ENDED
        case SubnetsExhausted() | SubnetsOverlap():
            return Answer.FULL
        case PublicIPInUse():
            return Answer.IN_USE
        case StoreDenied() | StoreConfigError():
            return Answer.REFUSED
        case _:
            return Answer.UNREACHABLE
