"""The token under which we speak to an etcd that knows users.

A token is good for every member, and lost with a restart of etcd, by disuse (5 minutes by default),
or when etcd was restored. So it is fetched when it is first needed and again whenever etcd rejects
it; requests that find out at the same time share one authentication, which costs etcd a bcrypt
(about 0.1 s). An etcd without authentication is remembered as such, until it asks for a token.

A wrong password would cost that at every attempt of every part of the daemon. So there is one
back-off for all of them: a second authentication may follow at once (etcd was restarted), later
ones after a second, two, four, up to two minutes; a request in between gets the last refusal
again, without a request. A token that is accepted ends the back-off; so does another password in
the file.

After a restart of etcd all nodes of a cluster authenticate at once. A bcrypt whose client has given
up is computed all the same: nodes that each give up after a second and a half, and ask again, keep
etcd busy with answers that are not read (`bench/control/README.md` has figures). So an
authentication has a longer time-out than other requests, three times as long after each that met
silence, and at least three times what the last answer took. And a token is not thrown away because
etcd has too much to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pyflannel.aio.backoff import Backoff
from pyflannel.core.errors import StoreDenied
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import Code, EndpointFailure, Refused
from pyflannel.store.etcd.password import Password

T = TypeVar("T")

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 120.0
"""Between two authentications with a wrong password: 30 an hour, 3 s of a member's CPU."""

SILENCES: Final = 2
"""Requests in a row without an answer after which a token is thrown away, if a question without one
is answered quickly."""
MOST_SILENCES: Final = 8
"""After which it is thrown away in any case."""
QUICKLY_S: Final = 0.5
"""An etcd at ease answers a question without a token in 10 ms; with a hundred bcrypts in the queue
of a quarter of a CPU it takes seconds."""
LEAST_MORE_S: Final = 4.5
MORE_GROWS: Final = 3.0
MOST_MORE_S: Final = 120.0
"""Added to the usual time-out of a request: a thousand bcrypts take 70 s of CPU."""

Post = Callable[[Endpoint, str, gateway.Message, str, float], Awaitable[gateway.Message]]
"""Sends one request (path, body, token) to an endpoint, with this many seconds more than usual."""


class Tokens:
    """Keeps one token fresh.

    Args:
        user: with a `password`; if either is empty there is no authentication, as with upstream.
        password: asked anew for each authentication.
    """

    def __init__(
        self, user: str, password: Password, post: Post, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._user = user
        self._password = password
        self._post = post
        self._now = now
        self._token: str | None = None if self.configured else ""
        self._lock = asyncio.Lock()
        self._backoff = Backoff(first=FIRST_PAUSE_S, ceiling=LONGEST_PAUSE_S)
        self._unproven = 0
        self._silences = 0
        self._more_s = LEAST_MORE_S
        self._tried = ""
        self._pause_ends = float("-inf")
        self._refusal = StoreDenied("etcd rejects the tokens that it issues to us", kind="token")

    @property
    def configured(self) -> bool:
        """Whether there is a user to authenticate."""
        return bool(self._user and self._password)

    async def get(self, endpoint: Endpoint) -> str:
        """A token to try, fetched from that endpoint if there is none; empty if none is needed.

        Raises:
            StoreDenied: etcd does not know the user, or not by this password.
            EndpointFailure: the endpoint does not answer.
        """
        if self._token is None:
            async with self._lock:
                if self._token is None:
                    self._token = await self._fetch_in_time(endpoint)
        return self._token

    def accepted(self, token: str) -> None:
        """Says that etcd took a request with this token for ours (and allowed it or not)."""
        if token == self._token:
            self._silences = 0
            self._unproven = 0
            self._backoff.reset()

    def distrust(self, token: str) -> None:
        """Says that a request with this token was refused.

        Has no effect when the token has been replaced meanwhile.
        """
        if self.configured and self._token == token:
            self._token = None

    def met_silence(self, token: str) -> None:
        """Says that a request with this token found no answer.

        A member holds a request back until it has the log entry that made the token; a restored
        etcd never has it. But an overloaded etcd is silent as well, and another bcrypt would add to
        its load; see `answered_without`.
        """
        if token and self._token == token:
            self._silences += 1
            if self._silences >= MOST_SILENCES:
                self._forget()

    def answered_without(self, seconds: float) -> None:
        """Says how long an endpoint took to answer a question without a token.

        An endpoint that is quick without a token, and silent to ours for the second time, waits for
        a log entry that does not come.
        """
        if self._silences >= SILENCES and seconds < QUICKLY_S:
            self._forget()

    async def authorized(
        self,
        endpoint: Endpoint,
        send: Callable[[str], Awaitable[T]],
        *,
        denial_is_doubtful: bool = False,
    ) -> T:
        """What `send` gives with our token, or with a new one if that one is not good any more.

        Args:
            denial_is_doubtful: etcd 3.5 calls a watch with an outdated token a lack of permission;
                a request that costs nothing tells the two apart.
        """
        token = await self.get(endpoint)
        try:
            answer = await send(token)
        except EndpointFailure as failure:
            if failure.silent:
                self.met_silence(token)
            raise
        except Refused as refused:
            doubtful = denial_is_doubtful and refused.code == Code.PERMISSION_DENIED
            if not self.configured:
                raise
            if not refused.wants_token and not (
                doubtful and await self._is_outdated(endpoint, token)
            ):
                self.accepted(token)
                raise
            self.distrust(token)
        else:
            self.accepted(token)
            return answer
        token = await self.get(endpoint)
        try:
            answer = await send(token)
        except Refused as refused:
            if not refused.wants_token:
                self.accepted(token)
            raise
        self.accepted(token)
        return answer

    async def _is_outdated(self, endpoint: Endpoint, token: str) -> bool:
        try:
            await self._post(endpoint, gateway.RANGE, gateway.range_request(b"\0"), token, 0.0)
        except Refused as refused:
            return refused.wants_token
        return False

    def _forget(self) -> None:
        self._silences = 0
        if self._token:
            self._token = None

    async def _fetch_in_time(self, endpoint: Endpoint) -> str:
        password = self._password.read()
        if password != self._tried:
            self._tried = password
            self._backoff.reset()
        elif self._now() < self._pause_ends:
            raise StoreDenied(str(self._refusal), kind=self._refusal.kind)
        try:
            token = await self._fetch(endpoint, password)
        except StoreDenied as refusal:
            self._refusal = refusal
            self._pause_ends = self._now() + self._backoff.next()
            raise
        self._unproven += 1
        if self._unproven > 1:
            self._pause_ends = self._now() + self._backoff.next()
        return token

    async def _fetch(self, endpoint: Endpoint, password: str) -> str:
        body = {"name": self._user, "password": password}
        began = self._now()
        try:
            answer = await self._post(endpoint, gateway.AUTHENTICATE, body, "", self._more_s)
            self._more_s = _more(MORE_GROWS * (self._now() - began))
            return gateway.parse_token(answer)
        except EndpointFailure as failure:
            if failure.silent:
                self._more_s = _more(MORE_GROWS * self._more_s)
            raise
        except Refused as refused:
            self._more_s = _more(MORE_GROWS * (self._now() - began))
            if refused.auth_is_off:
                return ""
            raise StoreDenied(
                f"etcd at {endpoint} does not accept user {self._user!r}: {refused} "
                "(--etcd-username, --etcd-password-file)",
                kind=f"user {self._user!r}: {refused}",
            ) from refused


def _more(seconds: float) -> float:
    return min(max(LEAST_MORE_S, seconds), MOST_MORE_S)
