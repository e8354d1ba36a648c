"""A node of the lab: its namespaces, its daemon, its files, and the pod behind its bridge.

The daemon uses the default paths of its files, because every node has a `/run` of its own. It is
ready when it has rewritten its files, which both ours and upstream's do once per start. Then the
lab does what docker would do with `docker_opts.env`: a bridge with the leased address, and behind
it a "container", which is a network namespace.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from pyflannel.core.config import NetworkConfig
from pyflannel.lab import topology
from pyflannel.lab.errors import LabError, LabTimeout
from pyflannel.lab.processes import ProcessRef, abandon, end_all, ref_of, wait_gone
from pyflannel.lab.spaces import Space, ip_batch
from pyflannel.lab.state import LabState
from pyflannel.lab.topology import DockerOptions, LabSpec, PodNetwork

GRACE_S: Final = 3.0
"""Time between SIGTERM and SIGKILL. Our daemon ends within 2 s."""
READY_S: Final = 30.0
"""Default time for daemons to be ready. It takes them a second."""

Stamp = tuple[int, int]
"""Inode and modification time of a file: they differ after each rewrite."""


class Home(Protocol):
    """What a node needs from its lab."""

    spec: LabSpec

    @property
    def path(self) -> Path:
        """Where the lab's files are."""
        ...

    @property
    def state(self) -> LabState:
        """Its recorded state."""
        ...

    @property
    def switch(self) -> Space:
        """The namespace in which the nodes' cables end."""
        ...

    def remember(self, role: str, process: ProcessRef) -> None:
        """Records a process, so that other commands find it."""
        ...


class Node:
    """One node of a lab: its namespaces, its daemon, its pod."""

    def __init__(self, lab: Home, number: int, space: Space, pod: Space) -> None:
        self._lab = lab
        self._child: subprocess.Popen[str] | None = None
        self._before: dict[Path, Stamp | None] = {}
        self.number = number
        self.space = space
        self.pod = pod
        self.directory = lab.path / space.name
        """Where the node's files are, seen from outside."""

    @property
    def name(self) -> str:
        """`node1`, also its host name."""
        return self.space.name

    @property
    def address(self) -> str:
        """Its underlay address, which a daemon publishes as public IP."""
        return str(topology.underlay_address(self.number).ip)

    @property
    def is_ours(self) -> bool:
        """Whether it runs `pyflanneld` and not another daemon."""
        return self.number not in self._lab.spec.node_commands

    @property
    def network_config(self) -> NetworkConfig:
        """The network config of the lab."""
        return self._lab.spec.network_config()

    @property
    def daemon(self) -> ProcessRef | None:
        """The daemon's process, `None` if it does not run."""
        ref = self._lab.state.processes.get(f"daemon{self.number}")
        return ref if ref is not None and ref.alive() else None

    @property
    def pid(self) -> int:
        """The daemon's pid.

        Raises:
            LabError: if it does not run.
        """
        daemon = self.daemon
        if daemon is None:
            raise LabError(f"{self.name}: its daemon does not run")
        return daemon.pid

    def exec(
        self,
        argv: Sequence[str],
        *,
        pod: bool = False,
        check: bool = True,
        timeout: float | None = 60.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program on the node, or in its pod, and gives its output."""
        space = self.pod if pod else self.space
        return space.run(argv, check=check, timeout=timeout, stdin=stdin, env=env)

    def path(self, inside: str) -> Path:
        """Where a file of the node's own `/run` or `/var/lib/pyflannel` is seen from outside."""
        for directory, place in (("/run/", "run"), ("/var/lib/pyflannel/", "state")):
            if inside.startswith(directory):
                return self.directory / place / inside.removeprefix(directory)
        raise LabError(f"{inside} is not one of {self.name}'s own files")

    def daemon_command(self, extra_args: Sequence[str] = ()) -> list[str]:
        """The command line its daemon is started with."""
        command = topology.daemon_command(self._lab.spec, self.number, our_daemon())
        return [*command, *extra_args]

    def start_daemon(
        self, extra_args: Sequence[str] = (), *, env: Mapping[str, str] | None = None
    ) -> ProcessRef:
        """Starts the daemon without waiting; `wait_ready` waits."""
        if self.daemon is not None:
            raise LabError(f"{self.name}: its daemon runs already")
        self._reap()
        self._before = {path: _stamp(path) for path in (self._subnet_file, self._docker_file)}
        command = self.daemon_command(extra_args)
        with (self.directory / "log").open("a", encoding="utf-8") as log:
            self._child = self.space.popen(
                command,
                stdout=log.fileno(),
                stderr=log.fileno(),
                env={**self._lab.spec.daemon_env, **(env or {})},
                detach=True,
            )
        ref = ref_of(self._child.pid)
        if ref is None:
            raise self._ended()
        self._lab.remember(f"daemon{self.number}", ref)
        return ref

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Sends a signal to the daemon; waits for its end if the signal is SIGKILL."""
        daemon = self.daemon
        if daemon is None or not daemon.send(signum):
            raise LabError(f"{self.name}: its daemon does not run")
        if signum == signal.SIGKILL:
            wait_gone([daemon], deadline=time.monotonic() + GRACE_S)
            self._reap()

    def stop_daemon(self, *, timeout: float = GRACE_S) -> int | None:
        """Ends the daemon in order.

        Returns:
            Its exit code, negative for a signal; `None` if it does not run or was started by
            another process than this.

        Raises:
            LabError: if it had to be killed.
        """
        daemon = self.daemon
        if daemon is None:
            return self._reap()
        stubborn = end_all([daemon], grace_s=timeout)
        code = self._reap()
        if stubborn:
            raise LabError(f"{self.name}: its daemon ignored SIGTERM for {timeout} s")
        return code

    def wait_exit(self, *, timeout: float = READY_S) -> int | None:
        """Waits until the daemon ends by itself; its exit code as `stop_daemon` gives it."""
        daemon = self.daemon
        if daemon is not None and wait_gone([daemon], deadline=time.monotonic() + timeout):
            raise LabTimeout(f"{self.name}: its daemon still runs after {timeout} s")
        return self._reap()

    def log(self, last: int | None = None) -> str:
        """The log of its daemons so far, or only the `last` lines."""
        try:
            text = (self.directory / "log").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        return text if last is None else "".join(text.splitlines(keepends=True)[-last:])

    def subnet_env(self) -> dict[str, str]:
        """The variables of `/run/flannel/subnet.env`; empty if it is not there."""
        try:
            text = self._subnet_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def docker_options(self) -> DockerOptions | None:
        """The options in `/run/docker_opts.env`; `None` if it is missing or empty."""
        try:
            return topology.parse_docker_options(self._docker_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def is_ready(self) -> bool:
        """Whether the daemon has written its files since it was started.

        Raises:
            LabError: if it ended instead, with the end of its log.
        """
        fresh = _fresh(self._subnet_file, self._before)
        if fresh and self.is_ours:
            fresh = _fresh(self._docker_file, self._before)
        if not fresh and self.daemon is None:
            raise self._ended()
        return fresh

    def attach_pod(self) -> None:
        """Sets up bridge and pod as `docker_opts.env` says; again after a change of subnet."""
        if not self.is_ours:
            self.exec(mk_docker_opts())
        network = self.pod_network()
        if network is None:
            raise LabError(f"{self.name}: no bridge address in /run/docker_opts.env")
        if not self._has_bridge():
            ip_batch(self.space, topology.bridge_creation(self.pod.holder.pid))
        ip_batch(self.space, topology.bridge_setup(network))
        ip_batch(self.pod, topology.pod_setup(network))

    def pod_network(self) -> PodNetwork | None:
        """The settings of bridge and pod, `None` before the daemon has written them."""
        return topology.pod_network(self.docker_options(), self.subnet_env())

    def pod_address(self, version: int = 4) -> str | None:
        """The pod's address of this IP version in the overlay, `None` before it has one."""
        network = self.pod_network()
        return network.pod_address(version) if network else None

    def unplug(self) -> None:
        """Pulls the node's underlay cable at the switch. The node gets no notification."""
        ip_batch(self._lab.switch, f"link set dev {self.name} down\n")

    def plug_in(self) -> None:
        """Puts the cable back."""
        ip_batch(self._lab.switch, f"link set dev {self.name} up\n")

    def close(self) -> None:
        """Reaps the daemon if this process started it and it has ended."""
        if self._child is not None:
            self._child.poll()

    def release(self) -> None:
        """Detaches a daemon that will outlive this process."""
        if self._child is not None:
            abandon(self._child)
            self._child = None

    @property
    def _subnet_file(self) -> Path:
        return self.path("/run/flannel/subnet.env")

    @property
    def _docker_file(self) -> Path:
        return self.path("/run/docker_opts.env")

    def _ended(self) -> LabError:
        code = self._reap()
        return LabError(f"{self.name}: its daemon ended with code {code}:\n{self.log(15)}")

    def _has_bridge(self) -> bool:
        return self.exec(["ip", "link", "show", "docker0"], check=False).returncode == 0

    def _reap(self) -> int | None:
        return self._child.wait() if self._child is not None else None


def our_daemon() -> list[str]:
    """How `pyflanneld` of this environment is started."""
    return _ours("pyflanneld", "pyflannel.cli.pyflanneld")


def mk_docker_opts() -> list[str]:
    """How `pyflannel-mk-docker-opts` of this environment is started."""
    return _ours("pyflannel-mk-docker-opts", "pyflannel.cli.dockeropts")


def _ours(script: str, module: str) -> list[str]:
    beside = Path(sys.executable).parent / script
    if os.access(beside, os.X_OK):
        return [str(beside)]
    return [sys.executable, "-m", module]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _fresh(path: Path, before: Mapping[Path, Stamp | None]) -> bool:
    now = _stamp(path)
    return now is not None and now != before.get(path)
