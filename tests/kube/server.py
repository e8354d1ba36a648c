"""A real API server on loopback, over a real etcd, and a hand on it.

Two tokens: `admin-token` may do everything, `flannel-token` is a service account with the role of
the manifest. Clients reach it through a relay that can be shut, so that an outage takes no restart.
What `KubeCluster` has for tests to do to a cluster has the same name here.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Final, Self

import yaml

from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdbuild import etcd
from pyflannel.testing.etcdserver import EtcdServer, free_ports
from tests.kube.build import api_server
from tests.support.kubeapi import FLANNEL, PREFIX

START_S: Final = 120.0
"""Ready after 4 to 11 s on a busy machine."""
MANIFEST: Final = Path(__file__).parents[2] / "kubernetes" / "pyflannel.yaml"
MERGE: Final = "application/strategic-merge-patch+json"


class RealCluster:
    """etcd and kube-apiserver; a context manager."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._etcd = EtcdServer(directory / "etcd", binary=etcd("3.6"))
        self._authority = Authority(directory / "pki")
        self._server: subprocess.Popen[bytes] | None = None
        (self._port,) = free_ports(1)
        self.ca = self._authority.bundle
        self.relay = Relay(self._port)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.relay.port}"

    def __enter__(self) -> Self:
        try:
            self._etcd.start()
            self._start()
            self.relay.open()
            self._allow()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.relay.close()
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._etcd.stop()

    def _start(self) -> None:
        made = self._authority.issue("server")
        account = self._authority.issue("account")
        tokens = self._directory / "tokens.csv"
        tokens.write_text(f'admin-token,admin,admin,"system:masters"\nflannel-token,{FLANNEL},f\n')
        command = [
            str(api_server()),
            f"--etcd-servers={self._etcd.endpoint}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            f"--tls-cert-file={made.cert}",
            f"--tls-private-key-file={made.key}",
            "--service-account-issuer=https://kube.test",
            f"--service-account-key-file={account.cert}",
            f"--service-account-signing-key-file={account.key}",
            f"--token-auth-file={tokens}",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--cert-dir={self._directory}",
            # Not flow control of ours: one client with many tests behind it.
            "--max-requests-inflight=0",
            "--max-mutating-requests-inflight=0",
            "--enable-priority-and-fairness=false",
        ]
        with (self._directory / "api.log").open("wb") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if self._ask("GET", "/readyz", port=self._port)[0] == 200:
                    return
            if time.monotonic() > end or self._server.poll() is not None:
                text = (self._directory / "api.log").read_text(errors="replace")
                raise AssertionError(f"kube-apiserver did not start: {text[-3000:]}")
            time.sleep(0.2)

    def _allow(self) -> None:
        """The role and its binding, from the manifest."""
        for made in yaml.safe_load_all(MANIFEST.read_text()):
            kind = made["kind"]
            if kind in {"Namespace", "ServiceAccount"}:
                above = "/api/v1/namespaces"
                if kind == "ServiceAccount":
                    above += f"/{made['metadata']['namespace']}/serviceaccounts"
            elif kind in {"ClusterRole", "ClusterRoleBinding"}:
                above = f"/apis/rbac.authorization.k8s.io/v1/{kind.lower()}s"
            else:
                continue
            self._must("POST", above, made)

    def _ask(
        self, method: str, path: str, body: object = None, kind: str = "", *, port: int = 0
    ) -> tuple[int, Any]:
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", port or self._port, timeout=20, context=context
        )
        headers = {"Authorization": "Bearer admin-token"}
        if body is not None:
            headers["Content-Type"] = kind or "application/json"
        try:
            text = json.dumps(body) if body is not None else None
            connection.request(method, path, text, headers)
            answer = connection.getresponse()
            raw = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(raw) if raw[:1] == b"{" else raw

    def _must(self, method: str, path: str, body: object = None, kind: str = "") -> Any:
        code, answer = self._ask(method, path, body, kind)
        assert 200 <= code < 300, (method, path, code, answer)
        return answer

    # As `KubeCluster`

    @property
    def nodes(self) -> dict[str, Any]:
        listed = self._must("GET", "/api/v1/nodes")
        return {node["metadata"]["name"]: node for node in listed["items"]}

    def create(self, name: str, pod_cidr: str = "", cidrs: tuple[str, ...] = ()) -> Any:
        every = [pod_cidr, *cidrs] if pod_cidr else []
        spec = {"podCIDR": every[0], "podCIDRs": every} if every else {}
        node = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec}
        self._must("POST", "/api/v1/nodes", node)
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        status = {"status": {"conditions": [ready]}}
        return self._must("PATCH", f"/api/v1/nodes/{name}/status", status, MERGE)

    def annotate(self, name: str, manager: str = "kubectl", **values: str | None) -> None:
        changes = {PREFIX + k.replace("_", "-"): v for k, v in values.items()}
        path = f"/api/v1/nodes/{name}?fieldManager={manager}"
        self._must("PATCH", path, {"metadata": {"annotations": changes}}, MERGE)

    def assign(self, name: str, *cidrs: str) -> None:
        spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)}
        self._must("PATCH", f"/api/v1/nodes/{name}", {"spec": spec}, MERGE)

    def heartbeat(self, name: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.monotonic() * 1000))
        ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": stamp}
        body = {"status": {"conditions": [ready]}}
        self._must("PATCH", f"/api/v1/nodes/{name}/status", body, MERGE)

    def delete(self, name: str) -> None:
        self._must("DELETE", f"/api/v1/nodes/{name}")

    def clear(self) -> None:
        """No nodes at all."""
        self._must("DELETE", "/api/v1/nodes")

    def annotations(self, name: str) -> dict[str, str]:
        every = self.nodes[name]["metadata"].get("annotations", {})
        return {k.removeprefix(PREFIX): v for k, v in every.items() if k.startswith(PREFIX)}

    def stop(self) -> None:
        self.relay.close()

    def start(self) -> None:
        self.relay.open()


class Relay:
    """Passes connections on to a port of loopback, until it is closed."""

    def __init__(self, target: int) -> None:
        self._target = target
        (self.port,) = free_ports(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        if self._loop is not None:
            return
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        self._thread.join(10)
        loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self.port)

    async def _end(self) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far = None
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far))
                group.create_task(_pump(far_reader, writer))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            for side in (writer, far):
                if side is not None:
                    side.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    raise ConnectionResetError
