"""A lab whose nodes take their subnets from Kubernetes: the API server of `kubeapi`, real daemons.

The server runs in the namespace of the underlay's switch, where a lab has its etcd otherwise. Each
node's daemon is pyflanneld or, where the test says so, upstream's flanneld.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pyflannel.lab import Lab, LabSpec, topology
from pyflannel.lab.nodes import Node, our_daemon

PORT = 8080
ADDRESS = str(topology.underlay_address(topology.SWITCH_HOST).ip)
URL = f"http://{ADDRESS}:{PORT}"
NET_CONF = "/run/kube-flannel/net-conf.json"
REPOSITORY = Path(__file__).parents[2]


class KubeLab:
    """Nodes, pods and an API server.

    Args:
        name: of the lab.
        config: `net-conf.json`.
        nodes: how many.
        upstream: which of them run flanneld.
        real: a directory for a real API server, where `make kube` has built one.
    """

    def __init__(
        self,
        name: str,
        config: Mapping[str, object],
        *,
        nodes: int = 2,
        upstream: Sequence[int] = (),
        real: Path | None = None,
    ) -> None:
        self.config = config
        self.upstream = frozenset(upstream)
        # Of a static file in name only: so there is no etcd, and pods are set up by subnet.env.
        spec = LabSpec(
            name=name,
            nodes=nodes,
            config=config,
            store="static",
            start_daemons=False,
            node_commands=dict.fromkeys(range(1, nodes + 1), "none"),
        )
        # A place of its own: tests of labs look at what is in the usual one.
        self._base = Path(tempfile.mkdtemp(prefix="kubelab-", dir="/run"))
        self.lab = Lab(spec, base=self._base)
        self.daemons: dict[int, subprocess.Popen[str]] = {}
        self._server: subprocess.Popen[str] | None = None
        self._real = real

    def __enter__(self) -> Self:
        self.lab.up()
        try:
            self._server = self.lab.switch.popen(
                [
                    sys.executable,
                    "-m",
                    *self._module(),
                ],
                stdout=subprocess.DEVNULL,
                env={"PYTHONPATH": str(REPOSITORY)},
            )
            self.lab.wait(self._answers, 120 if self._real else 20, what="the API server")
            for node in self.lab.nodes:
                self.write_config(node, self.config)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, kind: object = None, error: object = None, _: object = None) -> None:
        if isinstance(error, Exception):
            for number in self.daemons:
                error.add_note(f"node {number}:\n{self.log(number)[-6000:]}")
        children = [*self.daemons.values()]
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)
            children.append(self._server)
        for child in children:
            child.terminate()
        try:
            for child in children:
                child.wait(20)
        finally:
            for child in children:
                child.kill()
                child.wait()
            self.lab.down()
            shutil.rmtree(self._base, ignore_errors=True)
            shutil.rmtree(self._base, ignore_errors=True)

    def _module(self) -> list[str]:
        if self._real is not None:
            return ["tests.kube.server", ADDRESS, str(PORT), str(self._real)]
        return ["tests.support.kubeserver", ADDRESS, str(PORT)]

    def write_config(self, node: Node, config: Mapping[str, object]) -> None:
        target = node.path(NET_CONF)
        target.parent.mkdir(exist_ok=True)
        fresh = target.with_suffix(".new")
        fresh.write_text(json.dumps(config))
        fresh.rename(target)

    def _answers(self) -> bool:
        try:
            self.control()
        except OSError:
            return False
        return True

    def control(
        self, call: str = "", *args: object, brief: bool = False, **kwargs: object
    ) -> dict[str, Any]:
        """Does something to the cluster; gives what it holds afterwards, or nothing if brief."""

        def ask() -> bytes:
            connection = http.client.HTTPConnection(ADDRESS, PORT, timeout=120)
            try:
                body = json.dumps({"call": call, "args": args, "kwargs": kwargs, "brief": brief})
                connection.request("POST", "/control", body)
                return connection.getresponse().read()
            finally:
                connection.close()

        found: dict[str, Any] = json.loads(self.lab.switch.call(ask))
        return found

    def pause_server(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def resume_server(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def start(self, number: int, *arguments: str, **env: str) -> None:
        """Starts a node's daemon."""
        node = self.lab.node(number)
        program = [os.environ["PYFLANNEL_UPSTREAM"]] if number in self.upstream else our_daemon()
        command = [
            *program,
            "--kube-subnet-mgr",
            f"--kubeconfig-file={self._real}/kubeconfig.json"
            if self._real is not None
            else f"--kube-api-url={URL}",
            f"--net-config-path={NET_CONF}",
            "--iface=eth0",
            *arguments,
        ]
        with (node.directory / "kube.log").open("a") as log:
            self.daemons[number] = node.space.popen(
                command,
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                env={"NODE_NAME": f"n{number}", **env},
            )

    def stop(self, number: int, signum: int = signal.SIGTERM) -> int:
        """Ends it; gives its exit code."""
        daemon = self.daemons.pop(number)
        daemon.send_signal(signum)
        return daemon.wait(20)

    def log(self, number: int) -> str:
        path = self.lab.node(number).directory / "kube.log"
        return path.read_text() if path.exists() else ""

    def subnet(self, number: int) -> str:
        return self.lab.node(number).subnet_env().get("FLANNEL_SUBNET", "")

    def wait_subnet(self, number: int, subnet: str, deadline: float = 20) -> None:
        self.lab.wait(
            lambda: self.subnet(number) == subnet, deadline, what=f"subnet.env of node {number}"
        )

    def wait_pings(self, deadline: float = 20) -> None:
        self.lab.wait(lambda: self.lab.ping_all().ok, deadline, what="all pairs of pods")

    def status(self, number: int) -> dict[str, Any]:
        asked = self.lab.node(number).exec(["pyflannel", "status", "--json"], check=False)
        found: dict[str, Any] = json.loads(asked.stdout or "{}")
        return found

    def run(self, number: int, *command: str) -> str:
        return self.lab.node(number).exec(command).stdout
