"""Whole nodes: Debian trees booted with systemd, each in a network namespace of its own.

    [ node 1 ]---[ hub ]---[ node 2 ]
                  etcd

The hub is a namespace with a bridge (192.0.2.1/24) and etcd. A node is a tree of
`tools/node-image.sh` under a writable layer, booted with systemd-nspawn; node N is 192.0.2.(10+N)
on its eth0. Nothing of it touches the machine's own network or services: nspawn registers
nowhere, and the namespaces are ours.

What it takes on a machine that does not itself run systemd: `--register=no --keep-unit` (there is
no machined to tell), a control group for each node (without machined nspawn stays in the caller's,
and the inits of two nodes would manage, and kill, the same units' groups),
SYSTEMD_NSPAWN_API_VFS_WRITABLE=network (else net.ipv4.ip_forward cannot be set), and commands that
enter the namespaces of the node's init (machinectl would ask machined).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from pyflannel.lab.etcdprogram import etcd_command, etcd_environment, find_etcd

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
BOOT_S: Final = 60.0
"""A node needs about two seconds; the rest is for a busy machine."""
STOP_S: Final = 30.0
POLL_S: Final = 0.05
HUB: Final = "192.0.2.1"
ETCD: Final = f"http://{HUB}:2379"

NSPAWN_OPTIONS: Final = (
    "--boot",
    "--quiet",
    "--register=no",
    "--keep-unit",
    "--link-journal=no",
    "--console=pipe",
    "--resolv-conf=off",
    "--timezone=off",
    "--bind=/dev/net/tun",
    # What a node of its own would have: devices and rules, the daemon's eBPF programs, and what
    # dockerd needs for containers.
    "--capability=CAP_NET_ADMIN,CAP_NET_RAW,CAP_BPF,CAP_PERFMON,CAP_SYS_RESOURCE",
    "--system-call-filter=bpf add_key keyctl request_key",
)


IN_CGROUPS: Final = """
while [ "$1" != -- ]; do echo $$ >"$1/cgroup.procs"; shift; done
shift
exec "$@"
"""
"""Shell: becomes the command behind `--`, in the control groups before it."""


def cgroup_mounts() -> list[Path]:
    """Where the hierarchies are mounted that systemd manages: its own of version 1, version 2."""
    mounts = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(",")):
            mounts.append(Path(where))
    return mounts


def remove_cgroup(group: Path) -> None:
    """Removes a control group with those below it; nothing may run in them any more."""
    for directory, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(directory).rmdir()


def run(*command: str | Path, check: bool = True, timeout: float = 60.0, stdin: str = "") -> str:
    """Runs a command on this machine and gives its output, both streams."""
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}")
    return done.stdout


def until(what: str, probe: Callable[[], T], timeout: float = 60.0) -> T:
    """Polls until the probe gives something true, and gives that."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what}")
        time.sleep(POLL_S)


PINGS: Final = "/run/pings"
PING_S: Final = 0.01


def no_room(sockets: str) -> int:
    """Packets that sockets in a /proc/net/raw or icmp had no room for: their last column."""
    rows = (line.split() for line in sockets.splitlines())
    return sum(int(row[-1]) for row in rows if row and row[0].endswith(":"))


def lost_after(output: str, moment: float) -> int:
    """How many pings of an output of `pinging` were lost that had been sent after a moment.

    When a lost one was sent is known from the last that was answered before it: each is sent
    `PING_S` or more after the one before.
    """
    found = re.findall(r"^\[([\d.]+)\] .*icmp_seq=(\d+) .*time=([\d.]+) ms", output, re.MULTILINE)
    sent = {int(number): float(came) - float(took) / 1000 for came, number, took in found}
    lost, when = 0, min(sent.values())
    for number in range(1, max(sent) + 1):
        when = sent.get(number, when + PING_S)
        lost += number not in sent and when > moment
    return lost


@contextlib.contextmanager
def pinging(source: Node, target: Node) -> Iterator[list[tuple[int, int]]]:
    """A hundred pings a second across the overlay meanwhile; gives a list of (sent, received)."""
    near, far = source.subnet().split("/")[0], target.subnet().split("/")[0]
    with pings(source, ("ping",), ("-I", near, far)) as result:
        yield result


@contextlib.contextmanager
def pings(
    source: Node, ping: Sequence[str], where: Sequence[str]
) -> Iterator[list[tuple[int, int]]]:
    """The same with a command line of its own.

    Counted up to the last one that was answered: what is under way when it ends is not lost, and on
    a busy machine that is more than one. Answers that `ping` had no room for have arrived: its
    buffer holds some 170 that come at once, and after an outage it may have to wait for a
    processor.
    """
    result: list[tuple[int, int]] = []

    def carries() -> bool:
        return "1 received" in source.run(*ping, "-c", "1", "-W", "1", *where, check=False)

    until("the overlay carries", carries)
    # Into a file: a full pipe would stop it.
    words = shlex.join([*ping, "-n", "-D", "-i", str(PING_S), "-w", "900", *where])
    child = source.popen("sh", "-c", f"exec {words} > {PINGS}")
    begin = time.monotonic()
    try:
        yield result
        # What waited for a daemon stands in its queues before this one, and arrives before it.
        until("the overlay carries again", carries)
    finally:
        # Some before, some after it.
        time.sleep(max(0.3, 1.0 - (time.monotonic() - begin)))
        sockets = source.run("cat", "/proc/net/raw", "/proc/net/icmp")
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=10)
        output = source.run("cat", PINGS)
        answered = {int(number) for number in re.findall(r"bytes from .*icmp_seq=(\d+)", output)}
        assert answered, output
        sent, received = max(answered), len(answered)
        result.append((sent, received + min(sent - received, no_room(sockets))))


class Site:
    """The hub and its nodes. Everything is gone after the `with`."""

    def __init__(self, variant: str = "base") -> None:
        self.image = Path(run(ROOT / "tools/node-image.sh", variant, timeout=900).splitlines()[-1])
        self._stack = contextlib.ExitStack()
        self.name = f"pfs{os.getpid()}"
        self.directory = Path(tempfile.mkdtemp(prefix="pyflannel-site-", dir="/var/tmp"))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.nodes: list[Node] = []
        self._etcd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self.namespace("hub")
            self.in_hub("ip", "link", "set", "lo", "up")
            self.in_hub("ip", "link", "add", "br0", "type", "bridge")
            self.in_hub("ip", "addr", "add", f"{HUB}/24", "dev", "br0")
            self.in_hub("ip", "link", "set", "br0", "up")
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(self.stop_etcd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.power_off()
        self._stack.close()

    def namespace(self, suffix: str) -> str:
        """A network namespace of this site, removed with it."""
        name = f"{self.name}{suffix}"
        run("ip", "netns", "add", name)
        self.on_exit("ip", "netns", "del", name)
        return name

    def on_exit(self, *command: str | Path) -> None:
        """A command that always runs at the end; the latest comes first."""
        self._stack.callback(run, *command, check=False)

    def on_exit_call(self, function: Callable[[Path], None], path: Path) -> None:
        """The same with a function."""
        self._stack.callback(function, path)

    def in_hub(self, *command: str | Path, check: bool = True) -> str:
        """Runs a command in the hub."""
        return run("ip", "netns", "exec", f"{self.name}hub", *command, check=check)

    def start_etcd(self) -> None:
        """Starts etcd in the hub; what it had before it was stopped is there again."""
        program = find_etcd()
        assert program is not None
        log = (self.directory / "etcd.log").open("ab")
        self._etcd = subprocess.Popen(
            [
                *("ip", "netns", "exec", f"{self.name}hub"),
                *etcd_command(
                    program,
                    name="hub",
                    data=self.directory / "etcd",
                    clients=(ETCD, "http://127.0.0.1:2379"),
                    peer="http://127.0.0.1:2380",
                ),
            ],
            env={**os.environ, **etcd_environment()},
            stdout=log,
            stderr=log,
        )
        log.close()
        until("etcd answers", lambda: "true" in self.in_hub(*self._health(), check=False))

    @staticmethod
    def _health() -> tuple[str, ...]:
        ask = f"import urllib.request as r; print(r.urlopen('{ETCD}/health', timeout=1).read())"
        return (sys.executable, "-c", ask)

    def stop_etcd(self) -> None:
        """Stops it, if it runs."""
        if self._etcd is not None:
            self._etcd.terminate()
            self._etcd.wait(STOP_S)
            self._etcd = None

    def pyflannel(self, *arguments: str | Path, prefix: str = "/coreos.com/network") -> str:
        """Runs this checkout's operator tool in the hub."""
        tool = ROOT / ".venv/bin/pyflannel"
        return self.in_hub(tool, *arguments, f"--etcd-endpoints={ETCD}", f"--etcd-prefix={prefix}")

    def add_node(self) -> Node:
        """Boots another node."""
        node = Node(self, len(self.nodes) + 1)
        self.nodes.append(node)
        node.create()
        node.boot()
        return node


class Node:
    """One booted Debian. Use `Site.add_node`."""

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.number = number
        self.hostname = f"node{number}"
        self.address = f"192.0.2.{10 + number}"
        self.directory = site.directory / self.hostname
        self.root = self.directory / "root"
        self.netns = ""
        self._cgroups: list[Path] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def create(self) -> None:
        """Makes its cable and its file system."""
        self.netns = self.site.namespace(self.hostname)
        port = f"{self.site.name[-8:]}p{self.number}"
        self.site.in_hub(
            *("ip", "link", "add", port, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.netns),
        )
        self.site.in_hub("ip", "link", "set", port, "master", "br0", "up")
        for words in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", HUB),
        ):
            run("ip", "-n", self.netns, *words)
        for name in ("upper", "work", "root", "docker", "bpf"):
            (self.directory / name).mkdir(parents=True)
        layers = f"lowerdir={self.site.image},upperdir={self.directory}/upper"
        run(
            *("mount", "-t", "overlay", "overlay", "-o"),
            *(f"{layers},workdir={self.directory}/work", self.root),
        )
        self.site.on_exit("umount", self.root)
        # Where backend udp pins its programs; on a machine of its own systemd mounts it.
        run("mount", "-t", "bpf", "bpf", self.directory / "bpf")
        self.site.on_exit("umount", self.directory / "bpf")
        (self.root / "etc/hostname").write_text(self.hostname + "\n")
        for mount in cgroup_mounts():
            group = mount / f"{self.site.name}-{self.hostname}"
            group.mkdir()
            self.site.on_exit_call(remove_cgroup, group)
            self._cgroups.append(group)

    def boot(self) -> None:
        """Boots it and waits for the end of that."""
        assert self._nspawn is None
        log = (self.directory / "console.log").open("ab")
        self._nspawn = subprocess.Popen(
            [
                *("sh", "-c", IN_CGROUPS, "sh", *self._cgroups, "--"),
                "systemd-nspawn",
                *NSPAWN_OPTIONS,
                f"--directory={self.root}",
                f"--machine={self.site.name}-{self.hostname}",
                f"--hostname={self.hostname}",
                f"--network-namespace-path=/run/netns/{self.netns}",
                # Docker's storage cannot lie on an overlay.
                f"--bind={self.directory}/docker:/var/lib/docker",
                f"--bind={self.directory}/bpf:/sys/fs/bpf",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={
                **os.environ,
                "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
                "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
            },
        )
        log.close()
        self._leader = until("an init in the node", self._find_leader, BOOT_S)
        until("the node has booted", self._is_up, BOOT_S)

    def _find_leader(self) -> int:
        assert self._nspawn is not None
        if self._nspawn.poll() is not None:
            raise AssertionError(f"nspawn ended:\n{self.console()}")
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        # The first child sets the namespaces up and goes; the one with the node's name stays.
        for child in map(int, children):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
        return 0

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in {"running", "degraded"}

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> str:
        """Runs a command inside; gives its output, both streams."""
        entered = ("nsenter", "-t", str(self._leader), *self._namespaces(), "--root", "--wd")
        inside = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            **(env or {}),
        }
        assignments = [f"{name}={value}" for name, value in inside.items()]
        return run(
            *(*entered, "--", "env", "-i", *assignments, *command),
            check=check,
            timeout=timeout,
            stdin=stdin,
        )

    @staticmethod
    def _namespaces() -> tuple[str, ...]:
        return ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")

    def shell(self, script: str, *, check: bool = True, timeout: float = 60.0) -> str:
        """Runs a shell script inside, with `-e`."""
        return self.run("sh", "-ec", script, check=check, timeout=timeout)

    def popen(self, *command: str, stdin: int | None = None) -> subprocess.Popen[str]:
        """Starts a command inside; the caller ends it, and signals reach the command itself.

        Args:
            command: the words.
            stdin: as `subprocess` has it; the caller's own if left out.
        """
        entered = ("nsenter", "-t", str(self._leader), *self._namespaces(), "--root", "--wd")
        return subprocess.Popen(
            # Without a fork between them: nsenter would pass no signal on.
            [*entered, "--no-fork", "--", *command],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def read(self, path: str) -> str:
        """A file of the node."""
        return self.run("cat", path)

    def write(self, path: str, text: str) -> None:
        """Writes a file of the node."""
        self.run("sh", "-c", 'mkdir -p "$(dirname "$0")" && cat >"$0"', path, stdin=text)

    def exists(self, path: str) -> bool:
        """Whether it is there."""
        return "yes" in self.run("sh", "-c", f"test -e {path} && echo yes", check=False)

    def journal(self, unit: str = "pyflannel") -> str:
        """The unit's journal."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def show(self, name: str, unit: str = "pyflannel") -> str:
        """A property of the unit."""
        return self.run("systemctl", "show", "-P", name, unit).strip()

    def main_pid(self, unit: str = "pyflannel") -> int:
        """The unit's main process, as the node sees it; 0 if none."""
        return int(self.show("MainPID", unit))

    def subnet(self) -> str:
        """The leased subnet as subnet.env has it."""
        lines = dict(
            line.split("=", 1) for line in self.read("/run/flannel/subnet.env").splitlines()
        )
        return lines["FLANNEL_SUBNET"]

    def bridge(self) -> None:
        """A bridge with the first address of the leased subnet, as docker would make it."""
        self.run("ip", "link", "add", "cni0", "type", "bridge", check=False)
        self.run("ip", "addr", "flush", "dev", "cni0")
        self.run("ip", "addr", "add", self.subnet(), "dev", "cni0")
        self.run("ip", "link", "set", "cni0", "up")

    def console(self) -> str:
        """What the console has shown."""
        return (self.directory / "console.log").read_text(errors="replace")

    def install(self, package: Path) -> str:
        """Installs a .deb as an operator would."""
        target = self.root / "var/tmp" / package.name
        shutil.copy(package, target)
        # Where a file of /etc was changed here and in the package, the one here stays.
        return self.run("dpkg", "--force-confold", "-i", f"/var/tmp/{package.name}", timeout=120)

    def power_off(self) -> None:
        """Shuts it down; by force if it does not want to."""
        if self._nspawn is None:
            return
        if self._leader and self._nspawn.poll() is None:
            # What an init takes for "power off" when it is a container's (SIGRTMIN+4).
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGRTMIN + 4)
        try:
            self._nspawn.wait(STOP_S)
        except subprocess.TimeoutExpired:
            if self._leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGKILL)
            self._nspawn.kill()
            self._nspawn.wait()
        self._nspawn = None
        self._leader = 0

    def reboot(self) -> None:
        """Off and on again: /run and what the kernel had is gone, the disk stays."""
        self.power_off()
        # The kernel's part of a reboot: its network, all but the cable.
        run("ip", "-n", self.netns, "link", "set", "eth0", "down")
        self._forget_network()
        for words in (
            ("addr", "replace", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "replace", "default", "via", HUB),
        ):
            run("ip", "-n", self.netns, *words)
        self.boot()

    def _forget_network(self) -> None:
        for line in run("ip", "-n", self.netns, "-o", "link").splitlines():
            name = line.split(": ")[1].split("@")[0]
            if name not in {"lo", "eth0"}:
                run("ip", "-n", self.netns, "link", "del", name, check=False)
        run("ip", "netns", "exec", self.netns, "nft", "flush", "ruleset", check=False)
