"""A real API server over a real etcd, and a hand on it: in a test's process, or in a namespace.

Two tokens: `admin-token` may do everything, `flannel-token` is a service account with the role of
the manifest. Clients reach it through a relay that can be shut, so that an outage takes no restart.
What `KubeCluster` has for tests to do to a cluster has the same name here.

    python -m tests.kube.server ADDRESS PORT DIRECTORY [CONTROLLERS]

runs one, with a controller manager that gives podCIDRs, on an address of the namespace that it is
started in; PORT has `/control`, as in `tests.support.kubeserver`, and DIRECTORY gets a
`kubeconfig.json`. With CONTROLLERS, `*` for all of them, the controller manager does more, and
nothing of the manifest is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import yaml

from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdbuild import etcd
from pyflannel.testing.etcdserver import EtcdServer, free_ports
from tests.kube.build import api_server
from tests.support.kubeapi import FLANNEL, PREFIX

PODCIDRS: Final = "node-ipam-controller,ttl-controller"
SERVICE: Final = "10.96.0.1"
"""The address by which pods reach the API server."""
START_S: Final = 120.0
"""Ready after 4 to 11 s on a busy machine."""
MANIFEST: Final = Path(__file__).parents[2] / "kubernetes" / "pyflannel.yaml"
MERGE: Final = "application/strategic-merge-patch+json"


class RealCluster:
    """etcd and kube-apiserver; a context manager.

    Args:
        directory: for all that it keeps.
        host: the address that it listens on.
        empty: without the namespace and the role of the manifest.
    """

    def __init__(self, directory: Path, host: str = "127.0.0.1", *, empty: bool = False) -> None:
        self._directory = directory
        self._empty = empty
        self._host = host
        self._manager: subprocess.Popen[bytes] | None = None
        self._etcd = EtcdServer(directory / "etcd", binary=etcd("3.6"))
        self._authority = Authority(directory / "pki")
        self._account = self._authority.issue("account")
        self._server: subprocess.Popen[bytes] | None = None
        (self._port,) = free_ports(1, host)
        self.ca = self._authority.bundle
        self.relay = Relay(self._port, host)

    @property
    def url(self) -> str:
        return f"https://{self._host}:{self.relay.port}"

    def __enter__(self) -> Self:
        try:
            self._etcd.start()
            self.start_server()
            self.relay.open()
            if not self._empty:
                self._allow()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.relay.close()
        self._end(self._manager)
        self._end(self._server)
        self._etcd.stop()

    @staticmethod
    def _end(child: subprocess.Popen[bytes] | None) -> None:
        if child is None:
            return
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def manage(self, cluster_cidr: str, controllers: str = PODCIDRS) -> None:
        """Starts a controller manager that gives podCIDRs, and as a rule does nothing else."""
        program = self._directory / "kube-controller-manager"
        program.symlink_to(api_server())
        command = [
            str(program),
            f"--kubeconfig={self.kubeconfig('admin-token')}",
            "--leader-elect=false",
            "--allocate-node-cidrs",
            f"--cluster-cidr={cluster_cidr}",
            f"--controllers={controllers}",
            f"--root-ca-file={self.ca}",
            f"--service-account-private-key-file={self._account.key}",
            "--bind-address=127.0.0.1",
            f"--cert-dir={self._directory}",
        ]
        with (self._directory / "manager.log").open("wb") as log:
            self._manager = subprocess.Popen(command, stdout=log, stderr=log)

    def kubeconfig(self, token: str) -> Path:
        """A kubeconfig with its authority and a file that has the token."""
        (self._directory / token).write_text(token)
        path = self._directory / f"{token}.json"
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "us"}}],
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "us", "user": {"tokenFile": str(self._directory / token)}}],
        }
        path.write_text(json.dumps(config))
        return path

    def restart(self) -> None:
        """The API server ends and comes back."""
        self.end_server()
        self.start_server()

    def replace_account_key(self) -> None:
        """Tokens of service accounts that were given so far are not accepted any more."""
        self.end_server()
        self._account = self._authority.issue("account")
        self.start_server()

    def end_server(self) -> None:
        """It is away, for those who do not come through the relay as well."""
        server, self._server = self._server, None
        self._end(server)

    @property
    def up(self) -> bool:
        """Whether it runs."""
        return self._server is not None

    def backup(self) -> None:
        """Notes what etcd holds."""
        self._swap(shutil.copytree)

    def put_back(self) -> None:
        """etcd is what it was at the last backup."""

        def replace(data: Path, kept: Path) -> None:
            shutil.rmtree(data)
            kept.rename(data)

        self._swap(replace)

    def _swap(self, work: Callable[[Path, Path], object]) -> None:
        self.end_server()
        self._etcd.stop()
        work(self._directory / "etcd", self._directory / "etcd.kept")
        self._etcd.start()
        self.start_server()

    def start_server(self) -> None:
        """Starts it, and waits until it is ready."""
        names = f"IP:127.0.0.1,IP:{self._host},IP:{SERVICE},DNS:kubernetes.default.svc"
        made = self._authority.issue("server", hosts=names)
        tokens = self._directory / "tokens.csv"
        lines = ['admin-token,admin,admin,"system:masters"', f"flannel-token,{FLANNEL},f"]
        # Kubelets, and those that are told of all nodes.
        lines += [f'node{n}-token,system:node:node{n},node{n},"system:nodes"' for n in range(1, 4)]
        lines += [f"{n}-token,system:{n},{n}" for n in ("kube-proxy", "kube-scheduler")]
        tokens.write_text("\n".join([*lines, ""]))
        command = [
            str(api_server()),
            f"--etcd-servers={self._etcd.endpoint}",
            f"--bind-address={self._host}",
            f"--advertise-address={self._host}",
            f"--secure-port={self._port}",
            f"--tls-cert-file={made.cert}",
            f"--tls-private-key-file={made.key}",
            "--service-account-issuer=https://kube.test",
            f"--service-account-key-file={self._account.cert}",
            f"--service-account-signing-key-file={self._account.key}",
            "--allow-privileged",
            "--kubelet-preferred-address-types=InternalIP",
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
            self._host, port or self._port, timeout=20, context=context
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

    def grow(self, name: str, count: int) -> None:
        """So many versions more, by a node."""
        for _ in range(count):
            self.heartbeat(name)

    def delete(self, name: str) -> None:
        self._must("DELETE", f"/api/v1/nodes/{name}")

    def clear(self) -> None:
        """No nodes at all."""
        self._must("DELETE", "/api/v1/nodes")

    def annotations(self, name: str) -> dict[str, str]:
        return _flannels(self.nodes[name])

    def stop(self) -> None:
        self.relay.close()

    def start(self) -> None:
        self.relay.open()


def _flannels(node: Any) -> dict[str, str]:
    """flannel's annotations, without the prefix."""
    every = node["metadata"].get("annotations", {})
    return {k.removeprefix(PREFIX): v for k, v in every.items() if k.startswith(PREFIX)}


class Relay:
    """Passes connections on to another port of its address, until it is closed."""

    def __init__(self, target: int, host: str) -> None:
        self._target = target
        self._host = host
        (self.port,) = free_ports(1, host)
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
        self._server = await asyncio.start_server(self._pass_on, self._host, self.port)

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
            far_reader, far = await asyncio.open_connection(self._host, self._target)
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


def main() -> None:
    """Runs a cluster until told to end."""
    from aiohttp import web

    address, port, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])

    async def control(request: web.Request) -> web.Response:
        order = await request.json()

        def work() -> dict[str, object]:
            if call := order.get("call"):
                getattr(cluster, call)(*order.get("args", ()), **order.get("kwargs", {}))
            if not cluster.up:
                return {}
            nodes = cluster.nodes
            return {
                "nodes": nodes,
                "annotations": {name: _flannels(n) for name, n in nodes.items()},
            }

        return web.json_response(await asyncio.to_thread(work))

    with RealCluster(directory, address, empty=bool(sys.argv[4:])) as cluster:
        cluster.manage("10.244.0.0/16", *sys.argv[4:])
        cluster.kubeconfig("flannel-token").rename(directory / "kubeconfig.json")
        app = web.Application()
        app.router.add_post("/control", control)
        web.run_app(app, host=address, port=port, print=lambda *_: None, shutdown_timeout=0.2)


if __name__ == "__main__":
    main()
