"""Namespaces of the lab, and how to run programs inside them.

A *space* is a set of namespaces of its own (network, host name, for nodes also mounts) held open by
a process that does nothing but sleep. Nothing is mounted under `/run/netns` and no file refers to
it: when the holder and all other processes inside have ended, the kernel removes the space with all
its devices, routes and rules. So to clean up it is enough to end the processes.

`nsenter` starts programs inside. A thread that enters the namespace (network namespaces belong to
threads) and does not return opens sockets inside.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pyflannel.lab.errors import LabError
from pyflannel.lab.processes import LAB_ID_VARIABLE, ProcessRef, ref_of
from pyflannel.records import dataclass

_CLONE_NEWNET: Final = 0x40000000
"""`CLONE_NEWNET` of linux/sched.h; `os` has it from Python 3.12 on only."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Space:
    """One set of namespaces, named by the process that holds it open."""

    name: str
    """`switch`, `node1`, `pod1`: also the host name inside."""
    holder: ProcessRef
    lab_id: str
    own_mounts: bool
    """Whether it has a mount namespace of its own (nodes), with a private `/run`."""

    def enter(self, argv: Sequence[str], *, cwd: Path | None = None) -> list[str]:
        """The command line that runs `argv` inside.

        Args:
            argv: program and arguments; the program is looked up inside.
            cwd: where to start; `/` if that does not exist inside.
        """
        if not self.holder.alive():
            raise LabError(f"{self.name} is gone: the process that held it open has ended")
        command = ["nsenter", "--target", str(self.holder.pid), "--net", "--uts"]
        if self.own_mounts:
            # With a mount namespace nsenter takes its root, which is not ours if we are in a
            # chroot.
            command += ["--mount", "--root", "--wd"]
        if cwd is not None:
            # nsenter's own --wd=DIR would be a directory of the outer mount namespace.
            change = 'cd "$0" 2>/dev/null || cd /; exec "$@"'
            return [*command, "--", "sh", "-c", change, str(cwd), *argv]
        return [*command, "--", *argv]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Our environment, marked as the lab's, plus `extra`; our own commands are in its PATH.

        They are at its end, so that `python3` stays the system's.
        """
        path = f"{os.environ.get('PATH', os.defpath)}:{Path(sys.executable).parent}"
        return {**os.environ, "PATH": path, LAB_ID_VARIABLE: self.lab_id, **(extra or {})}

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        detach: bool = False,
    ) -> subprocess.Popen[str]:
        """Starts a program inside; the pid is the program's own, for `nsenter` replaces itself.

        Args:
            argv: program and arguments.
            stdin: as for `subprocess.Popen`; nothing by default.
            stdout: as for `subprocess.Popen`; a pipe by default.
            stderr: as for `subprocess.Popen`; ours by default.
            env: added to our environment.
            detach: give it a session of its own, so that Ctrl-C at our terminal does not reach it.
        """
        return subprocess.Popen(
            self.enter(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            cwd="/",
            env=self.environment(env),
            start_new_session=detach,
        )

    def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = 60.0,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program inside and gives its output.

        Raises:
            LabError: if it cannot be started, takes longer than `timeout` seconds, or, with
                `check`, ends with anything but 0; with its output.
        """
        shown = shlex.join(argv)
        try:
            done = subprocess.run(
                self.enter(argv, cwd=Path.cwd()),
                check=False,
                input=stdin,
                capture_output=True,
                text=True,
                timeout=timeout,
                env=self.environment(env),
            )
        except FileNotFoundError as error:
            raise LabError("nsenter is missing (Debian: util-linux)") from error
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{self.name}$ {shown}: not done after {timeout} s") from error
        if check and done.returncode != 0:
            output = (done.stderr or done.stdout).strip()
            raise LabError(f"{self.name}$ {shown}: exit code {done.returncode}: {output}")
        return done

    def call(self, function: Callable[[], _T]) -> _T:
        """Calls a function in the network namespace and gives its result.

        It runs in a thread of its own, and only that thread changes its namespace. File descriptors
        that it opens belong to the process; sockets stay in the namespace.
        """
        outcome: list[_T] = []
        trouble: list[BaseException] = []

        def inside() -> None:
            try:
                _set_net_namespace(self.holder)
                outcome.append(function())
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                trouble.append(error)

        thread = threading.Thread(target=inside, name=f"in {self.name}")
        thread.start()
        thread.join()
        if trouble:
            raise trouble[0]
        return outcome[0]

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket that lives inside, for use by this process."""
        return self.call(lambda: socket.socket(family, kind, protocol))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePlan:
    """The description of a space."""

    name: str
    setup: str = ""
    """Shell lines that run inside before the space is ready. If one fails, the space is not
    made."""
    own_mounts: bool = False


def open_spaces(
    plans: Sequence[SpacePlan], lab_id: str, children: list[subprocess.Popen[str]]
) -> list[Space]:
    """Makes spaces, all at once, in the order asked for.

    Args:
        plans: what to make.
        lab_id: the mark of their holders.
        children: receives each holder as soon as it runs, so that the caller can end them even if
            one fails.
    """
    started: list[subprocess.Popen[str]] = []
    for plan in plans:
        child = _start_holder(plan, lab_id)
        started.append(child)
        children.append(child)
    return [_ready(plan, child, lab_id) for plan, child in zip(plans, started, strict=True)]


def ip_batch(space: Space, batch: str) -> None:
    """Runs the lines of `batch` through `ip -batch` inside; stops at the first that fails."""
    space.run([need("ip"), "-batch", "-"], stdin=batch)


def need(program: str) -> str:
    """Path of a system program.

    Raises:
        LabError: if it is missing, with the package that has it.
    """
    # Some users do not have /usr/sbin in PATH.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found is None:
        package = {"ip": "iproute2"}.get(program, program)
        raise LabError(f"{program} is missing (Debian: {package})")
    return found


def _start_holder(plan: SpacePlan, lab_id: str) -> subprocess.Popen[str]:
    flags = ["--net", "--uts"] + (["--mount", "--propagation=private"] if plan.own_mounts else [])
    # `sleep` gets the pipe closed: its reader sees the end once the holder has taken over.
    script = (
        f"set -e\nhostname {plan.name}\n{plan.setup}\necho ready\nexec sleep infinity >&- 2>&-\n"
    )
    try:
        return subprocess.Popen(
            ["unshare", *flags, "--", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env={**os.environ, LAB_ID_VARIABLE: lab_id},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise LabError("unshare is missing (Debian: util-linux)") from error


def _ready(plan: SpacePlan, child: subprocess.Popen[str], lab_id: str) -> Space:
    output = child.stdout
    if output is None:
        raise LabError(f"{plan.name}: holder without a pipe")
    with output:
        said = output.read().strip()
    holder = ref_of(child.pid)
    if said != "ready" or holder is None:
        raise LabError(f"{plan.name}: cannot make its namespaces: {said or 'no answer'}")
    return Space(plan.name, holder, lab_id, plan.own_mounts)


def _set_net_namespace(holder: ProcessRef) -> None:
    fd = os.open(f"/proc/{holder.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not holder.alive():
            raise LabError("the namespace is gone: the process that held it open has ended")
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, _CLONE_NEWNET) != 0:
            error = ctypes.get_errno()
            raise OSError(error, f"setns: {os.strerror(error)}")
    finally:
        os.close(fd)
