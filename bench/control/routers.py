"""`python -m bench.control.routers`: what other people's routes cost the daemon, beside upstream's.

A node of a lab with one peer, whose main table gets 100,000 routes of a routing daemon (`proto
bird`), which then change a thousand times a second. Measured per candidate and backend, as CPU of
the daemon alone (the scheduler's clock), in percent of one CPU:

* `none`: at rest, without such routes;
* `many`: at rest, with all of them;
* `busy`: while they change; `changes`: how many a second that were;
* `heal`: from the deletion of the peer's route until it is there again, s, worst of `HEALS`, while
  the others change; none if that takes longer than `GIVE_UP_S`.

Upstream's rows are there when `PYFLANNEL_UPSTREAM` names its binary.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from bench.control.__main__ import PREFIX, cpu_s, value
from bench.report import machine
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node

ROUTES = 100_000
CHANGES_A_SECOND = 1000
FIRST = IPv4Address("198.18.0.0")
"""A /15 for benchmarks (RFC 2544): room for 131,072 host routes."""
MEASURE_S = 30.0
"""Three of our full comparisons."""
SETTLE_S = 3.0
HEALS = 3
GIVE_UP_S = 12.0
"""Upstream compares host-gw's routes every 10 s, vxlan's never."""
PEER = "10.200.1.0/24"


def route(verb: str, number: int, metric: int = 0) -> str:
    """A line for `ip -batch`."""
    return f"route {verb} {FIRST + number}/32 via 192.0.2.254 proto bird metric {metric + 20}\n"


@contextlib.contextmanager
def changing(node: Node) -> Iterator[list[float]]:
    """Deletes routes and adds them again, so many a second, while the block runs.

    The list gets how many a second it really was.
    """
    done = threading.Event()
    rate: list[float] = []
    ip = node.space.popen(["ip", "-batch", "-"], stdin=-1)  # -1: a pipe
    feed = ip.stdin
    if feed is None:
        raise SystemExit("bench: ip has no standard input")

    def work() -> None:
        number, step = 0, 0.05
        due = start = time.monotonic()
        sent = 0
        while not done.is_set():
            for _ in range(round(CHANGES_A_SECOND * step) // 2):
                feed.write(route("del", number) + route("add", number))
                number = (number + 1) % ROUTES
                sent += 2
            feed.flush()  # waits for ip, but for what fits into the pipe
            due += step
            time.sleep(max(0.0, due - time.monotonic()))
        rate.append(sent / (time.monotonic() - start))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield rate
    finally:
        done.set()
        thread.join()
        feed.close()
        ip.wait()


def percent(pid: int) -> float:
    """CPU of a process over `MEASURE_S`."""
    time.sleep(SETTLE_S)
    start, before = time.perf_counter(), cpu_s(pid)
    time.sleep(MEASURE_S)
    return (cpu_s(pid) - before) / (time.perf_counter() - start) * 100


def is_there(node: Node) -> bool:
    """Whether the peer's route is in the kernel; by one look-up, whatever else is there."""
    shown = node.exec(["ip", "route", "get", PEER.replace(".0/24", ".9")], check=False).stdout
    return "dev flannel" in shown or "via 192.0.2.2 " in shown


def heal_s(node: Node) -> float | None:
    """How long the peer's route is away after its deletion."""
    node.exec(["ip", "route", "del", PEER])
    start = time.perf_counter()
    while not is_there(node):
        if time.perf_counter() - start > GIVE_UP_S:
            return None
        time.sleep(0.02)
    return time.perf_counter() - start


def one(backend: str, upstream: str, number: int) -> dict[str, float | None]:
    """One round over one candidate."""
    spec = LabSpec(
        name=f"routers{os.getpid()}-{number}",
        nodes=1,
        config={"Network": "10.0.0.0/8", "SubnetMax": "10.100.0.0", "Backend": {"Type": backend}},
        node_commands={1: upstream} if upstream else {},
    )
    with Lab(spec) as lab:
        node = lab.node(1)
        lab.etcd.put(f"{PREFIX}/subnets/{PEER.replace('/', '-')}", value(backend, 0))
        lab.wait(lambda: is_there(node), GIVE_UP_S, what="the peer's route")
        result: dict[str, float | None] = {"none": percent(node.pid)}
        batch = "".join(route("add", n) for n in range(ROUTES))
        node.exec(["ip", "-batch", "-"], stdin=batch, timeout=600)
        result["many"] = percent(node.pid)
        with changing(node) as rate:
            result["busy"] = percent(node.pid)
            heals = [heal_s(node)]
            while heals[-1] is not None and len(heals) < HEALS:
                heals.append(heal_s(node))
        known = [heal for heal in heals if heal is not None]
        result["changes"] = rate[0]
        result["heal"] = max(known) if len(known) == len(heals) else None
        return result


def main() -> int:
    """Runs all rounds and prints medians with ranges; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.control.routers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", action="append", choices=["vxlan", "host-gw"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    given = parser.parse_args()
    upstream = os.environ.get("PYFLANNEL_UPSTREAM", "")
    candidates = [("pyflannel", ""), *([("upstream", upstream)] if upstream else [])]
    results: dict[str, dict[str, list[float | None]]] = {}
    for backend in given.backend or ["vxlan", "host-gw"]:
        for turn in range(given.rounds):
            for name, command in candidates if turn % 2 == 0 else candidates[::-1]:
                samples = results.setdefault(f"{backend} {name}", defaultdict(list))
                for metric, sample in one(backend, command, turn).items():
                    samples[metric].append(sample)
    for name, samples in results.items():
        print(f"{name:18} " + "  ".join(_cell(*item) for item in samples.items()))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": machine(), "routes": ROUTES, "results": results}
        given.json.write_text(json.dumps(data, indent=1) + "\n")
    return 0


def _cell(metric: str, values: list[float | None]) -> str:
    known = [one for one in values if one is not None]
    if len(known) < len(values):
        return f"{metric} none"
    return f"{metric} {statistics.median(known):.2f} ({min(known):.2f}-{max(known):.2f})"


if __name__ == "__main__":
    sys.exit(main())
