"""Single requests to one endpoint, through etcd3gw: blocking, so for a thread only.

etcd3gw builds the URLs and posts JSON with `requests`; this module gives it what it lacks. A
timeout on everything (its default is none). A session that ignores the environment, where
`REQUESTS_CA_BUNDLE` and proxy variables would override what the flags say. Our own TLS context, so
that the watch and the requests trust the same CA and nothing but it (`requests` adds the certifi
bundle otherwise). And a way to interrupt requests from outside: `abort` shuts their sockets down,
so that the daemon can stop while a frozen server keeps a thread waiting.

The module is imported late, in a thread: `requests`, `urllib3` and `futurist` take 70 ms and 12 MB.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from typing import Any, Final, cast

import etcd3gw
import requests
import urllib3
from etcd3gw.exceptions import Etcd3Exception
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

from pyflannel.store.etcd import gateway, v2
from pyflannel.store.etcd.endpoints import Endpoint
from pyflannel.store.etcd.failures import (
    AnswerTooLong,
    EndpointFailure,
    NoGateway,
    causes,
    explain,
    not_etcd,
    tls_reason,
)
from pyflannel.store.etcd.gateway import Message, parse_error

CONNECT_S: Final = 1.0
"""A connection within a data centre takes a millisecond; a lost SYN is repeated after one second,
which is when another endpoint is the better bet."""
ANSWER_S: Final = 1.5
"""A healthy cluster commits within 0.1 s, and elects a new leader within 1.0 to 2.0 s; with 1.5 s
the worst write through the death of a leader was measured at 1.6 to 1.8 s."""

MOST_BYTES: Final = 8 * 1024 * 1024
"""Largest answer that is read. A page of leases has some 100 KB; the largest value etcd takes by
default, 1.5 MiB, has 2 MiB in JSON. Decoding this much takes 30 ms, during which the interpreter
does nothing else."""

_SILENT: Final = (TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError)


class EndpointClient:
    """One endpoint. `post` may run in several threads at once.

    Args:
        context: TLS context; must be given for an https endpoint.
        connections: how many connections are kept open at most.
    """

    def __init__(
        self, endpoint: Endpoint, context: ssl.SSLContext | None, *, connections: int
    ) -> None:
        self.endpoint = endpoint
        self._connections = _Connections()
        self._session = _Session()
        self._session.trust_env = False
        adapter = _Adapter(context, endpoint.certified, self._connections, connections)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)
        self._clients = {
            path: etcd3gw.Etcd3Client(
                host=endpoint.host,
                port=endpoint.port,
                protocol=endpoint.scheme,
                timeout=cast("Any", (CONNECT_S, ANSWER_S)),
                api_path=path,
                session=self._session,
            )
            for path in gateway.API_PATHS
        }
        self._api_path = gateway.API_PATHS[0]

    def post(
        self,
        path: str,
        body: Message,
        token: str,
        progress: list[float] | None = None,
        more_s: float = 0.0,
    ) -> Message:
        """The answer to one request.

        Args:
            progress: its one element is set to the monotonic time whenever a part has come.
            more_s: seconds of silence that are borne beyond `ANSWER_S`.

        Raises:
            Refused: etcd said no.
            AnswerTooLong: it has more than `MOST_BYTES`.
            EndpointFailure: anything else.
        """
        self._session.local.progress = progress if progress is not None else [0.0]
        self._session.local.more_s = more_s
        try:
            return self._post(self._api_path, path, body, token)
        except NoGateway:
            if self._api_path != gateway.API_PATHS[0]:
                raise
            # An older etcd has the same gateway elsewhere.
            with contextlib.suppress(EndpointFailure):
                answer = self._post(gateway.API_PATHS[1], path, body, token)
                self._api_path = gateway.API_PATHS[1]
                return answer
            raise

    def _post(self, api_path: str, path: str, body: Message, token: str) -> Message:
        client = self._clients[api_path]
        headers = {"Authorization": token} if token else None
        self._connections.nothing_sent()
        try:
            answer = client.post(client.get_url(path), json=body, headers=headers)
        except AnswerTooLong:
            raise
        except (
            Etcd3Exception,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ) as error:
            raise self._translate(error) from error
        if not isinstance(answer, dict):
            raise EndpointFailure("it answers with JSON that is not etcd's")
        return cast("Message", answer)

    def _translate(self, error: Exception) -> Exception:
        if isinstance(error, Etcd3Exception) and error.detail_text is not None and error.args:
            # An HTTP status other than 200: the text is the body, the argument the status' name.
            return parse_error(error.detail_text) or not_etcd(_status(error), error.detail_text)
        found = list(causes(error))
        if any(isinstance(cause, requests.exceptions.JSONDecodeError) for cause in found):
            return not_etcd(http.HTTPStatus.OK, "")
        silent = any(isinstance(cause, _SILENT) for cause in found)
        # With TLS 1.3 a client learns only after its request that its certificate is not accepted.
        alert = any("ALERT" in tls_reason(cause) for cause in found)
        unsure = self._connections.something_sent and not alert
        return EndpointFailure(
            explain(error, tls=self.endpoint.scheme == "https"),
            unsure=unsure,
            dropped=unsure and not silent,
            silent=silent,
        )

    def holds_v2(self, key: bytes) -> bool | None:
        """Whether the store of the v2 API has a key; see `v2.holds`. No failure raises."""
        host = f"[{self.endpoint.host}]" if ":" in self.endpoint.host else self.endpoint.host
        url = f"{self.endpoint.scheme}://{host}:{self.endpoint.port}{v2.path(key)}"
        self._session.local.progress, self._session.local.more_s = [0.0], 0.0
        try:
            answer = self._session.get(url, timeout=(CONNECT_S, ANSWER_S), allow_redirects=False)
        except (
            AnswerTooLong,
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            http.client.HTTPException,
            OSError,
            ValueError,
        ):
            return None
        return v2.holds(answer.status_code, answer.text)

    def reach_at(self, addresses: Sequence[str]) -> None:
        """Where the endpoint's host is: new connections look nothing up themselves."""
        self._connections.addresses = tuple(addresses)

    def reached(self) -> frozenset[str]:
        """Addresses that the endpoint was reached at so far."""
        return self._connections.reached()

    def abort(self) -> None:
        """Breaks off every request that is under way; they fail at once in their threads."""
        self._connections.shut_down()

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._session.close()


class _Session(requests.Session):
    """Reads answers in parts: what is silent for too long fails, what is long and comes does not.

    (With `requests` alone an answer is read whole, however long it is.)
    """

    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - inherited
        """As inherited, but for the reading."""
        kwargs["stream"] = True
        # etcd3gw has one time-out for all requests of a client.
        kwargs["timeout"] = (CONNECT_S, ANSWER_S + self.local.more_s)
        response = super().send(request, **kwargs)
        parts: list[bytes] = []
        length = 0
        for part in response.iter_content(64 * 1024):
            self.local.progress[0] = time.monotonic()
            length += len(part)
            if length > MOST_BYTES:
                response.close()
                raise AnswerTooLong(f"its answer has more than {MOST_BYTES} bytes")
            parts.append(part)
        response._content = b"".join(parts)  # noqa: SLF001 - as `Response.content` does
        return response


def _status(error: Etcd3Exception) -> int:
    """The HTTP status of an answer, of which etcd3gw keeps only the reason phrase."""
    phrase = str(error.args[0])
    return next((status.value for status in http.HTTPStatus if status.phrase == phrase), 0)


class _Connections:
    """The book of connections: which are open, and whether a thread's request got onto one.

    The first is for breaking them off from another thread. The second tells a write that
    surely did not happen from one that may have; exceptions do not tell.
    """

    def __init__(self) -> None:
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._open: set[HTTPConnection] = set()
        self._reached: set[str] = set()
        self._closed = False
        self.addresses: tuple[str, ...] = ()
        """What a new connection tries, in this order; empty for what the host's name leads to."""

    def add(self, connection: HTTPConnection) -> None:
        address = ""
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                address = str(connection.sock.getpeername()[0])
        with self._lock:
            self._open.add(connection)
            self._reached.add(address)
            closed = self._closed
        if closed:
            _shut_down(connection)

    def remove(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)

    def reached(self) -> frozenset[str]:
        """Addresses of the other side, of all connections so far."""
        with self._lock:
            return frozenset(self._reached)

    def nothing_sent(self) -> None:
        """A request of this thread begins."""
        self._thread.sent = False

    def sent(self) -> None:
        """The first byte of it is about to go out."""
        self._thread.sent = True

    @property
    def something_sent(self) -> bool:
        """Whether it got that far."""
        return bool(self._thread.sent)

    def shut_down(self) -> None:
        with self._lock:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            _shut_down(connection)


def _shut_down(connection: HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        # Unlike close(), it wakes a thread that is blocked in recv(). The plain socket's method, as
        # that of a TLS socket also throws away what the other thread is using.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _Adapter(HTTPAdapter):
    """Plugs our TLS context and our book of connections into `requests`."""

    def __init__(
        self,
        context: ssl.SSLContext | None,
        certified: str,
        connections: _Connections,
        most: int,
    ) -> None:
        self._context = context
        self._certified = certified
        self._connections = connections
        super().__init__(pool_connections=1, pool_maxsize=most, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - inherited
        """As inherited, with our context and our kind of connection."""
        if self._context is not None:
            kwargs["ssl_context"] = self._context
            kwargs["server_hostname"] = self._certified or None
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _pool_classes(self._connections)

    def cert_verify(self, conn: object, url: str, verify: object, cert: object) -> None:
        """Nothing, as certificates are the TLS context's; the inherited one adds certifi's."""


def _pool_classes(connections: _Connections) -> dict[str, type[HTTPConnectionPool]]:
    """Kinds of connection pools whose connections are in the book while they are open."""

    class Plain(HTTPConnection):
        def _new_conn(self) -> socket.socket:
            name = self._dns_host
            *others, last = connections.addresses or (name,)
            try:
                for self._dns_host in others:
                    with contextlib.suppress(NewConnectionError, ConnectTimeoutError):
                        return super()._new_conn()
                self._dns_host = last
                return super()._new_conn()
            finally:
                # The certificate is checked against the name, and so is the header `Host`.
                self._dns_host = name

        def connect(self) -> None:
            super().connect()
            connections.add(self)

        def send(self, data: Any) -> None:  # noqa: ANN401 - inherited
            if self.sock is None:
                self.connect()
            connections.sent()
            super().send(data)

        def close(self) -> None:
            connections.remove(self)
            super().close()

    class Secure(Plain, HTTPSConnection):
        """The same around a connection with TLS: its methods are the next ones of `super()`."""

    class PlainPool(HTTPConnectionPool):
        ConnectionCls = Plain

    class SecurePool(HTTPSConnectionPool):
        ConnectionCls = Secure

    return {"http": PlainPool, "https": SecurePool}
