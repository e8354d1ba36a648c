"""`python -m bench.control`: the daemon beside upstream's, in one run, rounds alternating.

Measured per candidate and backend, over a lab of one node and its etcd:

* `start`: from exec to `subnet.env`, ms;
* `leases_there`: from exec until all leases that are in etcd are programmed, s (kernel routes for
  vxlan and host-gw; for udp, where upstream's table cannot be seen, ours by its status);
* `program`: of that, the longest pass of the backend, ms: from the leases to all of them in the
  kernel (ours only, by its status);
* `burst`: from the last of that many puts while running until all are programmed, s;
* `change`: from before the put of one more lease until its route is there, median of ten, ms;
* `rss_1`, `rss`: resident memory with one lease and with all, MiB;
* `idle`: CPU over `IDLE_S` at rest with all leases, % of one CPU (the scheduler's clock);
* `event`: CPU for one more lease, ms.

"All" is 1,000, or `--leases`.

Upstream's rows are there when `PYFLANNEL_UPSTREAM` names its binary.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import machine
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node

BATCH = 100
"""Puts in one transaction; etcd takes at most 128 operations (--max-txn-ops)."""
IDLE_S = 20.0
"""Two of our full comparisons."""
CHANGES = 10
DEADLINE_S = 60.0
PREFIX = "/coreos.com/network"


def wait(predicate: Callable[[], bool], step: float = 0.002) -> float:
    """Seconds until the predicate holds."""
    start = time.perf_counter()
    while not predicate():
        if time.perf_counter() - start > DEADLINE_S:
            raise SystemExit("bench: gave up waiting")
        time.sleep(step)
    return time.perf_counter() - start


def value(backend: str, n: int) -> str:
    """A peer's lease, as its daemon would write it; it is on the link."""
    attrs: dict[str, object] = {"PublicIP": f"192.0.2.{2 + n % 200}", "PublicIPv6": None}
    if backend != "udp":
        attrs["BackendType"] = backend
    if backend == "vxlan":
        mac = f"02:00:00:{n >> 16 & 255:02x}:{n >> 8 & 255:02x}:{n & 255:02x}"
        attrs["BackendData"] = {"VNI": 1, "VtepMAC": mac}
    return json.dumps(attrs, separators=(",", ":"))


def put_leases(lab: Lab, backend: str, count: int, first: int = 0) -> None:
    """Writes so many peers, in transactions of a hundred."""
    for start in range(0, count, BATCH):
        puts = []
        for n in range(first + start, first + min(start + BATCH, count)):
            key = f"{PREFIX}/subnets/10.{128 + (n >> 8)}.{n & 255}.0-24"
            pair = {"key": key, "value": value(backend, n)}
            put = {name: base64.b64encode(text.encode()).decode() for name, text in pair.items()}
            puts.append({"requestPut": put})
        lab.etcd.post("/v3/kv/txn", {"success": puts})


def status(node: Node) -> dict[str, Any] | None:
    """What our daemon says of itself; `None` as long as it does not answer."""
    done = node.exec(["pyflannel", "status", "--json"], check=False)
    said: dict[str, Any] | None = json.loads(done.stdout) if done.returncode in (0, 1) else None
    return said


def programmed(node: Node, backend: str, *, upstream: bool) -> Callable[[], int]:
    """Counts the peers that are in force, cheaply, and in the node's own namespace."""
    if backend == "udp":
        if upstream:
            return lambda: node.log().count("Subnet added")

        def ask() -> int:
            said = status(node)
            return said["network"]["peers"] if said is not None else 0

        return ask

    def count() -> int:
        # /proc/net/route of the node's namespace: a line per IPv4 route; ours begin with 10.128/9.
        lines = Path(f"/proc/{node.space.holder.pid}/net/route").read_text().splitlines()
        return sum(1 for line in lines[1:] if int(line.split("\t")[1], 16) & 0x80FF == 0x800A)

    return count


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process (/proc/pid/task/tid/schedstat, ns)."""
    spent = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def one(backend: str, upstream: str, number: int, leases: int) -> dict[str, float]:
    """One round over one candidate."""
    spec = LabSpec(
        name=f"control{os.getpid()}-{number}",
        nodes=1,
        config={"Network": "10.0.0.0/8", "SubnetMax": "10.100.0.0", "Backend": {"Type": backend}},
        node_commands={1: upstream} if upstream else {},
        start_daemons=False,
    )
    result: dict[str, float] = {}
    with Lab(spec) as lab:
        node = lab.node(1)
        subnet_file = node.path("/run/flannel/subnet.env")
        start = time.perf_counter()
        node.start_daemon()
        wait(subnet_file.exists, 0.0005)
        result["start_ms"] = (time.perf_counter() - start) * 1e3
        count = programmed(node, backend, upstream=bool(upstream))
        put_leases(lab, backend, 1)
        wait(lambda: count() >= 1)
        result["rss_1_mib"] = rss_mib(node.pid)
        put_leases(lab, backend, leases - 1, 1)
        result["burst_s"] = wait(lambda: count() >= leases)
        time.sleep(2)
        result["rss_mib"] = rss_mib(node.pid)
        before = cpu_s(node.pid)
        time.sleep(IDLE_S)
        result["idle_percent"] = (cpu_s(node.pid) - before) / IDLE_S * 100
        result |= changes(lab, backend, count, leases)
        node.kill()
        for device in ("flannel.1",):
            node.exec(["ip", "link", "delete", device], check=False)
        node.exec(["ip", "route", "flush", "proto", "boot", "root", "10.0.0.0/8"], check=False)
        skip = len(node.log()) if upstream and backend == "udp" else 0
        start = time.perf_counter()
        node.start_daemon()
        if skip:
            wait(lambda: node.log()[skip:].count("Subnet added") >= leases)
        else:
            wait(lambda: count() >= leases)
        result["leases_there_s"] = time.perf_counter() - start
        if not upstream:
            wait(lambda: status(node) is not None, 0.05)
            result["program_ms"] = (status(node) or {})["network"]["longest_pass_s"] * 1e3
        node.stop_daemon()
    return result


def changes(lab: Lab, backend: str, count: Callable[[], int], leases: int) -> dict[str, float]:
    """Further leases, one by one: time to the kernel, and what each costs."""
    pid = lab.node(1).pid
    before, delays = cpu_s(pid), []
    for n in range(leases, leases + CHANGES):
        start = time.perf_counter()
        put_leases(lab, backend, 1, n)
        wait(lambda n=n: count() > n, 0.0005)  # type: ignore[misc]
        delays.append(time.perf_counter() - start)
    time.sleep(0.5)
    return {
        "change_ms": statistics.median(delays) * 1e3,
        "event_cpu_ms": (cpu_s(pid) - before) / CHANGES * 1e3,
    }


def main() -> int:
    """Runs all rounds and prints medians with ranges; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.control", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", action="append", choices=["udp", "vxlan", "host-gw"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--leases", type=int, default=1000, metavar="N")
    given = parser.parse_args()
    upstream = os.environ.get("PYFLANNEL_UPSTREAM", "")
    candidates = [("pyflannel", ""), *([("upstream", upstream)] if upstream else [])]
    results: dict[str, dict[str, list[float]]] = {}
    for backend in given.backend or ["udp", "vxlan", "host-gw"]:
        for turn in range(given.rounds):
            order = candidates if turn % 2 == 0 else candidates[::-1]
            for name, command in order:
                samples = results.setdefault(f"{backend} {name}", defaultdict(list))
                for metric, sample in one(backend, command, turn, given.leases).items():
                    samples[metric].append(sample)
    for name, samples in results.items():
        cells = [
            f"{metric} {statistics.median(values):.3g} ({min(values):.3g}–{max(values):.3g})"
            for metric, values in samples.items()
        ]
        print(f"{name:18} " + "  ".join(cells))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": machine(), "leases": given.leases, "results": results}
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
