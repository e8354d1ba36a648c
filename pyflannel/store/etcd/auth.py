"""The token under which we speak to an etcd that knows users.

A token is good for every member, and lost with a restart of etcd, by disuse (5 minutes by default),
or when etcd was restored. So it is fetched when it is first needed and again whenever etcd does not
like it; requests that find out at the same time share one authentication, which costs etcd a bcrypt
(about 0.1 s). An etcd without authentication is remembered as such, until it asks for a token.

A wrong password would cost that at every attempt of every part of the daemon. So there is one
back-off for all of them: a second authentication may follow at once (etcd was restarted), later
ones after a second, two, four, up to two minutes; whoever asks in between gets the last refusal
again, without a request. A token that is accepted ends the back-off; so does another password in
the file.

After a restart of etcd all nodes of a cluster come at once, and a bcrypt that nobody waits for any
more is computed all the same: a thousand nodes that each give up after a second and a half, and ask
again, would keep etcd busy with answers to nobody. So each authentication that met silence makes
the next one wait twice as long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from pyflannel.aio.backoff import Backoff
from pyflannel.core.errors import StoreDenied
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import EndpointFailure, Refused
from pyflannel.store.etcd.password import Password

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 120.0
"""Between two authentications with a wrong password: 30 an hour, 3 s of a member's CPU."""

SILENCES: Final = 2
"""Requests in a row without an answer after which a token is thrown away."""
FIRST_PATIENCE_S: Final = 1.5
MOST_PATIENCE_S: Final = 120.0
"""Added to the usual time-out of a request: a thousand bcrypts take 70 s of CPU."""

Post = Callable[[Endpoint, str, gateway.Message, str, float], Awaitable[gateway.Message]]
"""Sends one request (path, body, token) to an endpoint, with more patience by so many seconds."""


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
        self._more_s = 0.0
        self._tried = ""
        self._pause_ends = float("-inf")
        self._refusal = StoreDenied("etcd refuses each token that it gives us", kind="token")

    @property
    def configured(self) -> bool:
        """Whether there is somebody to authenticate."""
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

        A member waits in silence for the log entry of a token's making, which a restored etcd does
        not have. But an etcd that has too much to do is silent as well, and another bcrypt is the
        last that it needs; so the token goes only with the second time in a row. In between the
        endpoint has answered a question without a token, or it would not have been asked again.
        """
        if token and self._token == token:
            self._silences += 1
            if self._silences >= SILENCES:
                self._silences = 0
                self.distrust(token)

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
        try:
            answer = await self._post(endpoint, gateway.AUTHENTICATE, body, "", self._more_s)
            self._more_s = 0.0
            return gateway.parse_token(answer)
        except EndpointFailure as failure:
            if failure.silent:
                self._more_s = min(max(FIRST_PATIENCE_S, 2 * self._more_s), MOST_PATIENCE_S)
            raise
        except Refused as refused:
            self._more_s = 0.0
            if refused.auth_is_off:
                return ""
            raise StoreDenied(
                f"etcd at {endpoint} does not accept user {self._user!r}: {refused} "
                "(--etcd-username, --etcd-password-file)",
                kind=f"user {self._user!r}: {refused}",
            ) from refused
