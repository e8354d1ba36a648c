"""`python -m bench.control.kubernetes`: a node of a large Kubernetes cluster, beside upstream's.

One node in a lab, an API server in memory with so many node objects of 8 KB, backend vxlan. The
candidates run one after the other, rounds alternating. Measured of the daemon's process:

* `ready`: from exec to `subnet.env`, s (most of it is the server, which is Python);
* `programmed`: from exec until all routes are there, s;
* `cpu_start`: its CPU until then, s;
* `rss`, `peak`: resident memory when it is at rest, and the highest, MiB;
* `heartbeat`: CPU for a heartbeat of another node, ms;
* `change`: from the order to the server that a peer has another MAC until the FDB entry is in the
  kernel, ms: the median of twenty;
* `storm`: the same, while heartbeats of others arrive as fast as the server can send them.

Upstream's rows are there when `PYFLANNEL_UPSTREAM` names its binary.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
from collections import defaultdict
from pathlib import Path

from bench.report import machine
from tests.support.kubelab import KubeLab

CONFIG = {"Network": "10.0.0.0/8", "Backend": {"Type": "vxlan"}}
DEADLINE_S = 300.0
REST_S = 5.0
HEARTBEATS = 1000
BEATS = 50
"""Heartbeats in one go, for which the server does nothing else."""
CHANGES = 20
TICKS = os.sysconf("SC_CLK_TCK")


def cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int, what: str) -> float:
    """A line of its status, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1024
    raise KeyError(what)


def settled(pid: int) -> float:
    """Its CPU seconds when it has come to rest."""
    before, end = cpu(pid), time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        time.sleep(REST_S)
        now = cpu(pid)
        if now - before < 0.05 * REST_S:
            return now
        before = now
    raise SystemExit("bench: it does not come to rest")


def change(cluster: KubeLab, number: int) -> float:
    """Gives a peer another MAC; milliseconds until the kernel says that it has it."""
    mac = f"02:{os.urandom(1).hex()}:00:00:00:{number:02x}"
    monitor = cluster.lab.node(1).space.popen(["bridge", "monitor", "fdb"])
    try:
        time.sleep(0.1)  # it says nothing when it listens
        start = time.perf_counter()
        data = json.dumps({"VNI": 1, "VtepMAC": mac})
        cluster.control("annotate", "n2", backend_data=data, brief=True)
        assert monitor.stdout is not None
        for line in monitor.stdout:
            if mac in line and not line.startswith("Deleted"):
                return (time.perf_counter() - start) * 1000
        raise SystemExit("bench: the peer's FDB entry has not changed")
    finally:
        monitor.terminate()
        monitor.wait()


def in_storm(cluster: KubeLab) -> float:
    """The same while heartbeats come."""
    over = threading.Event()

    def storm() -> None:
        while not over.is_set():
            cluster.control("beat", BEATS, brief=True)

    beating = threading.Thread(target=storm)
    beating.start()
    try:
        return statistics.median(change(cluster, number) for number in range(CHANGES))
    finally:
        over.set()
        beating.join()


def measure(cluster: KubeLab, nodes: int, *, upstream: bool) -> dict[str, float]:
    """One round of one candidate."""
    cluster.upstream = frozenset([1] if upstream else [])
    node = cluster.lab.node(1)
    node.path("/run/flannel/subnet.env").unlink(missing_ok=True)
    node.exec(["ip", "link", "del", "flannel.1"], check=False)
    start = time.perf_counter()
    cluster.start(1)
    pid = cluster.daemons[1].pid
    cluster.lab.wait(lambda: bool(cluster.subnet(1)), DEADLINE_S, what="subnet.env")
    ready = time.perf_counter() - start

    def routes() -> int:
        return cluster.run(1, "ip", "route", "show", "dev", "flannel.1").count("\n")

    while routes() < nodes - 1:
        if time.perf_counter() - start > DEADLINE_S:
            raise SystemExit(f"bench: {routes()} routes\n{cluster.log(1)[-2000:]}")
        time.sleep(0.05)
    programmed = time.perf_counter() - start
    at_rest = settled(pid)
    rss = memory(pid, "VmRSS")
    cluster.control("beat", HEARTBEATS, brief=True)
    after = settled(pid)
    found = {
        "ready": ready,
        "programmed": programmed,
        "cpu_start": at_rest,
        "rss": rss,
        "peak": memory(pid, "VmHWM"),
        "heartbeat": (after - at_rest) / HEARTBEATS * 1000,
        "change": statistics.median(change(cluster, number) for number in range(CHANGES)),
        "storm": in_storm(cluster),
    }
    cluster.stop(1)
    return found


def main() -> None:
    """Measures and prints a table; with `--json` all samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    os.environ["KUBESERVER_PIECE"] = str(1 << 16)
    candidates = [False, *([True] if os.environ.get("PYFLANNEL_UPSTREAM") else [])]
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with KubeLab("bench-kube", CONFIG, nodes=1) as cluster:
        for first in range(1, given.nodes + 1, 500):
            cluster.control("populate", first, min(first + 499, given.nodes), brief=True)
        cluster.control("compact", brief=True)
        for number in range(given.rounds):
            for upstream in candidates if number % 2 == 0 else candidates[::-1]:
                name = "upstream" if upstream else "pyflannel"
                for key, value in measure(cluster, given.nodes, upstream=upstream).items():
                    samples[name][key].append(value)
    if given.json:
        print(json.dumps({"machine": machine(), "nodes": given.nodes, "samples": samples}))
        return
    keys = list(samples["pyflannel"])
    print(f"{given.nodes} nodes".ljust(12), *(key.rjust(12) for key in keys))
    for name, columns in samples.items():
        cells = (f"{statistics.median(columns[key]):.2f}".rjust(12) for key in keys)
        print(name.ljust(12), *cells)


if __name__ == "__main__":
    main()
