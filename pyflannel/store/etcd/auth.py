"""The token under which we speak to an etcd that knows users.

A token is good for every member, and lost with a restart of etcd, by disuse (5 minutes by default),
or when etcd was restored. So it is fetched when it is first needed and again whenever etcd does not
like it; requests that find out at the same time share one authentication, which costs etcd a bcrypt
(about 0.1 s). An etcd without authentication is remembered as such, until it asks for a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pyflannel.core.errors import StoreDenied
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import Code, Refused
from pyflannel.store.etcd.password import Password

Post = Callable[[Endpoint, str, gateway.Message, str], Awaitable[gateway.Message]]
"""Sends one request (path, body, token) to an endpoint."""


class Tokens:
    """Keeps one token fresh.

    Args:
        user: with a `password`; if either is empty there is no authentication, as with upstream.
        password: asked anew for each authentication.
    """

    def __init__(self, user: str, password: Password, post: Post) -> None:
        self._user = user
        self._password = password
        self._post = post
        self._token: str | None = None if self.configured else ""
        self._lock = asyncio.Lock()

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
                    self._token = await self._fetch(endpoint)
        return self._token

    def distrust(self, token: str) -> None:
        """Says that a request with this token was refused, or found no answer at all.

        (A member waits in silence for the log entry of a token's making, which a restored etcd does
        not have.) Has no effect when the token has been replaced meanwhile.
        """
        if self.configured and self._token == token:
            self._token = None

    async def _fetch(self, endpoint: Endpoint) -> str:
        body = {"name": self._user, "password": self._password.read()}
        try:
            return gateway.parse_token(await self._post(endpoint, gateway.AUTHENTICATE, body, ""))
        except Refused as refused:
            if refused.code == Code.FAILED_PRECONDITION:
                # "authentication is not enabled"
                return ""
            raise StoreDenied(
                f"etcd at {endpoint} does not accept user {self._user!r}: {refused} "
                "(--etcd-username, --etcd-password-file)"
            ) from refused
