"""Throughput of the overlays, side by side: one lab per candidate, measured in turn.

    pod1 – bridge – node1 – underlay – node2 – bridge – pod2

All labs of an underlay are up at once and at rest but for the one that is measured. Rounds
alternate: each begins with another candidate, so that what disturbs the machine for a while does
not always meet the same one. The first round warms up and is not counted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pyflannel.lab import Lab, LabSpec, Underlay, traffic
from pyflannel.lab.nodes import Node
from pyflannel.lab.spaces import Space

UPSTREAM = "PYFLANNEL_UPSTREAM"
TRAFFIC = [sys.executable, "-IS", traffic.__file__]
LOSS_LIMIT = 0.01
FIRST_PORT = 5201
SEARCH_STEPS = 6
"""Bisections of the packet rate: the answer is within 2 % of the fastest rate tried."""
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Candidate:
    """One way of carrying packets."""

    name: str
    backend: str
    datapath: str = ""
    command: str = ""
    stand_in: bool = False
    pods: bool = True
    """Between pods, or (no overlay at all) between the nodes themselves."""


def candidates(names: Sequence[str] | None = None) -> list[Candidate]:
    """Those asked for, all by default; upstream's place is taken by a C loop if it is not here."""
    upstream = os.environ.get(UPSTREAM, "")
    theirs = (
        Candidate("upstream udp", "udp", command=upstream)
        if upstream
        else Candidate("C loop (stand-in for upstream udp)", "alloc", stand_in=True)
    )
    every = [
        Candidate("no overlay", "host-gw", pods=False),
        Candidate("host-gw", "host-gw"),
        Candidate("vxlan", "vxlan"),
        theirs,
        Candidate("udp python", "udp", datapath="python"),
        Candidate("udp native", "udp", datapath="native"),
        Candidate("udp ebpf", "udp", datapath="ebpf"),
    ]
    if not names:
        return every
    chosen = [c for c in every if any(name in c.name for name in names)]
    if not chosen:
        raise SystemExit(
            f"bench: no candidate is called {names}; there are {[c.name for c in every]}"
        )
    return chosen


@dataclass
class Samples:
    """Everything measured of one candidate on one underlay, a value a round."""

    tcp1_gbit: list[float] = field(default_factory=list)
    tcp4_gbit: list[float] = field(default_factory=list)
    udp64_kpps: list[float] = field(default_factory=list)
    """Delivered at the highest rate with at most 1 % loss."""
    udp64_flood_kpps: list[float] = field(default_factory=list)
    udp64_4_kpps: list[float] = field(default_factory=list)
    """Delivered of what four senders send as fast as they can."""
    rr_p50_us: list[float] = field(default_factory=list)
    rr_p99_us: list[float] = field(default_factory=list)
    cpu_s_per_gb: list[float] = field(default_factory=list)
    """CPU seconds of the whole machine, traffic programs included, per gigabyte of TCP."""
    rss_mib: list[float] = field(default_factory=list)
    """Resident memory of one daemon after the traffic."""


class Rig:
    """A candidate's lab of two nodes."""

    def __init__(self, candidate: Candidate, underlay: Underlay, number: int) -> None:
        self.candidate = candidate
        self._stack = contextlib.ExitStack()
        commands = {1: candidate.command, 2: candidate.command} if candidate.command else {}
        self.lab = Lab(
            LabSpec(
                name=f"bench{os.getpid()}-{number}",
                nodes=2,
                backend=candidate.backend,
                datapath=candidate.datapath,
                node_commands=commands,
                underlay=underlay,
            )
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(self.lab)
        if self.candidate.stand_in:
            self._stack.enter_context(_stand_in(self.lab))
        self.lab.wait(lambda: self.lab.ping_all().ok, 20, what="all pods reach each other")
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def end(self, number: int) -> tuple[Space, str]:
        """Where traffic starts or ends, and its address."""
        node = self.lab.node(number)
        if not self.candidate.pods:
            return node.space, node.address
        return node.pod, str(node.pod_address())

    def daemon_rss_mib(self) -> float:
        """Resident memory of node 1's daemon; 0 where there is none worth counting."""
        if self.candidate.stand_in or not self.candidate.pods:
            return 0.0
        status = Path(f"/proc/{self.lab.node(1).pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextlib.contextmanager
def _stand_in(lab: Lab) -> Iterator[None]:
    """Runs the C loop on both nodes of a lab whose daemons only lease subnets."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit(
            f"bench: no C compiler for the stand-in; give {UPSTREAM}=/path/to/flanneld"
        )
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/plain_loop"
        source = str(HERE / "datapath" / "plain_loop.c")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, source], check=True)
        loops = []
        try:
            for node, peer in ((lab.node(1), lab.node(2)), (lab.node(2), lab.node(1))):
                loops.append(_start_loop(program, node, peer))
            yield
        finally:
            for loop in loops:
                loop.kill()
                loop.communicate()


def _start_loop(program: str, node: Node, peer: Node) -> subprocess.Popen[str]:
    theirs = peer.subnet_env()["FLANNEL_SUBNET"]
    network = node.subnet_env()["FLANNEL_NETWORK"]
    subnet = theirs.rsplit(".", 1)[0] + ".0/24"
    loop = node.space.popen([program, "flannel0", node.address, "8285", f"{subnet}={peer.address}"])
    if loop.stdout is None or loop.stdout.readline().strip() != "ready":
        raise SystemExit("bench: the stand-in did not start")
    own = node.subnet_env()["FLANNEL_SUBNET"].rsplit(".", 1)[0] + ".0/32"
    for command in (
        f"ip address add {own} dev flannel0",
        "ip link set flannel0 mtu 1472 up",
        f"ip route replace {network} dev flannel0",
    ):
        node.exec(command.split())
    node.exec(["ip", "link", "set", "docker0", "mtu", "1472"], check=False)
    node.exec(["ip", "link", "set", "eth0", "mtu", "1472"], pod=True)
    return loop


def _pair(
    rig: Rig, active: str, passive: str, *arguments: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    import json

    source, _ = rig.end(1)
    target, address = rig.end(2)
    taking = target.popen([*TRAFFIC, passive, *arguments], stderr=subprocess.STDOUT)
    try:
        if taking.stdout is None or taking.stdout.readline().strip() != "ready":
            raise SystemExit(f"bench: {passive} did not start in {rig.candidate.name}")
        made = source.run([*TRAFFIC, active, f"--host={address}", *arguments], timeout=60)
        output, _ = taking.communicate(timeout=30)
    finally:
        if taking.poll() is None:
            taking.kill()
            taking.communicate()
    return json.loads(made.stdout), json.loads(output)


def _busy_s() -> float:
    """CPU seconds the machine has spent on anything but idling (proc(5), /proc/stat)."""
    user, nice, system, _idle, _wait, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _tcp(rig: Rig, flows: int, seconds: float) -> tuple[float, float]:
    before = _busy_s()
    _, sink = _pair(rig, "tcp-source", "tcp-sink", f"--flows={flows}", f"--seconds={seconds}")
    spent = _busy_s() - before
    return sink["bytes"] * 8 / sink["seconds"] / 1e9, spent / (sink["bytes"] / 1e9)


def _udp(rig: Rig, rate: int, seconds: float) -> tuple[float, float]:
    """Delivered kpps and loss."""
    made, taken = _pair(
        rig, "udp-source", "udp-sink", f"--seconds={seconds}", f"--rate={rate}", "--size=64"
    )
    sent, received = made["sent"], taken["received"]
    return received / made["seconds"] / 1e3, max(0.0, 1 - received / sent) if sent else 1.0


def _udp_of(rig: Rig, senders: int, seconds: float) -> float:
    """Delivered kpps of so many floods at once."""
    role = "udp-source", "udp-sink", f"--seconds={seconds}", "--size=64"
    with ThreadPoolExecutor(senders) as pool:
        runs = [
            pool.submit(_pair, rig, *role, f"--port={FIRST_PORT + number}")
            for number in range(senders)
        ]
        done = [each.result() for each in runs]
    delivered: float = sum(taken["received"] / made["seconds"] for made, taken in done)
    return delivered / 1e3


def _best_rate(rig: Rig, flood_kpps: float, seconds: float) -> float:
    """The most that arrives with at most 1 % loss, by bisection below what a flood delivers."""
    low, high, best = 0.0, flood_kpps * 1.2, 0.0
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        delivered, loss = _udp(rig, max(1, int(middle * 1e3)), seconds)
        if loss <= LOSS_LIMIT:
            best, low = max(best, delivered), middle
        else:
            high = middle
    return best


def measure(rig: Rig, seconds: float, into: Samples) -> None:
    """One round over one candidate."""
    gbit, cpu = _tcp(rig, 1, seconds)
    into.tcp1_gbit.append(gbit)
    into.cpu_s_per_gb.append(cpu)
    into.tcp4_gbit.append(_tcp(rig, 4, seconds)[0])
    flood, loss = _udp(rig, 0, seconds)
    into.udp64_flood_kpps.append(flood)
    into.udp64_kpps.append(flood if loss <= LOSS_LIMIT else _best_rate(rig, flood, seconds / 2))
    into.udp64_4_kpps.append(_udp_of(rig, 4, seconds))
    asked, _ = _pair(rig, "ask", "echo", f"--seconds={seconds}")
    into.rr_p50_us.append(asked["p50_us"])
    into.rr_p99_us.append(asked["p99_us"])
    into.rss_mib.append(rig.daemon_rss_mib())


def run(
    underlay: Underlay,
    chosen: Sequence[Candidate],
    *,
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Samples]:
    """All rounds over one underlay; the warm-up round is left out of the result."""
    results = {candidate.name: Samples() for candidate in chosen}
    with contextlib.ExitStack() as stack:
        rigs = []
        for number, candidate in enumerate(chosen):
            say(f"{underlay}: setting up {candidate.name}")
            rigs.append(stack.enter_context(Rig(candidate, underlay, number)))
        for turn in range(rounds + 1):
            start = turn % len(rigs)
            for rig in rigs[start:] + rigs[:start]:
                into = results[rig.candidate.name] if turn else Samples()
                measure(rig, seconds if turn else min(seconds, 0.5), into)
                if turn:
                    say(
                        f"{underlay} {turn}/{rounds} {rig.candidate.name}: "
                        f"{into.tcp1_gbit[-1]:.2f} Gbit/s, {into.udp64_kpps[-1]:.0f} kpps, "
                        f"{into.rr_p50_us[-1]:.0f} µs"
                    )
    return results
