"""`python -m bench.control.load`: what n nodes cost an etcd; see README.md beside this file.

Parts: `rest`, `start`, `outage`, `password` (upstream beside, where `PYFLANNEL_UPSTREAM` names its
binary), `crowd`, `widened`. Needs root, for a network namespace; everything runs in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bench.control.counted import (
    Count,
    CountedEtcd,
    counted_etcd,
    enter_namespace,
    limited_cpu,
)
from bench.report import machine
from pyflannel.store.etcd import codec

PREFIX = "/coreos.com/network"
CONFIG = {
    "Network": "10.0.0.0/8",
    "SubnetLen": 24,
    "SubnetMin": "10.1.0.0",
    "SubnetMax": "10.64.0.0",
    "Backend": {"Type": "vxlan"},
}
FULL = {**CONFIG, "SubnetMin": "10.1.0.0", "SubnetMax": "10.1.0.0"}
FILES = 16384
"""Descriptors, as far as they are allowed: a node needs some eight."""
USER, PASSWORD, ROOT = "flannel", "flannel-secret", "root-secret"
PATIENCE_S = 600.0


class Clients:
    """Processes of `bench.control.clients`."""

    def __init__(self, etcd: CountedEtcd, nodes: int, processes: int, *more: str) -> None:
        self.nodes = nodes
        self.ready: dict[int, float] = {}
        self._there = 0
        self._children: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        share = -(-nodes // processes)
        for first in range(0, nodes, share):
            command = [sys.executable, "-m", "bench.control.clients", f"--first={first}"]
            command += [f"--count={min(share, nodes - first)}"]
            command += [f"--endpoints={etcd.server.endpoint}", *more]
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            reader = threading.Thread(target=self._read, args=(child,), daemon=True)
            reader.start()
            self._children.append(child)
            self._readers.append(reader)
        wait(lambda: self._there == len(self._children))

    def _read(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                self.ready[said["node"]] = said["at"]
            else:
                self._there += 1

    def go(self) -> float:
        """Starts all of them; the time."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        return time.time()

    def wait_ready(self) -> None:
        """Until each has its lease."""
        wait(lambda: len(self.ready) == self.nodes or self._one_has_ended())

    def _one_has_ended(self) -> bool:
        if any(child.poll() is not None for child in self._children):
            raise SystemExit("bench: the clients have ended")
        return False

    def end(self) -> None:
        """Kills them."""
        for child in self._children:
            child.kill()
            child.wait()


def wait(true: Callable[[], bool]) -> None:
    """Until it is, or a clear end."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            raise SystemExit("bench: gave up waiting")
        time.sleep(0.05)


@contextmanager
def clients(etcd: CountedEtcd, nodes: int, processes: int, *more: str) -> Iterator[Clients]:
    """Clients that are ended in any case."""
    made = Clients(etcd, nodes, processes, *more)
    try:
        yield made
    finally:
        made.end()


def put_config(etcd: CountedEtcd, config: dict[str, object], token: str = "") -> None:
    """Writes the network config."""
    etcd.server.put(codec.config_key(PREFIX), json.dumps(config).encode(), token=token)


def say(what: str, count: Count, nodes: int, seconds: float | None = None) -> dict[str, object]:
    """Prints what was counted, for each node, and each hour if the time is given."""
    per = nodes * (seconds / 3600 if seconds else 1)
    unit = "node and hour" if seconds else "node"
    by = ", ".join(f"{name} {number / per:.1f}" for name, number in count.requests.items())
    print(
        f"{what}: {count.total / per:.1f} requests ({by}), {count.connections / per:.1f}"
        f" connections, {count.to_etcd / per / 1024:.0f} KiB in, {count.from_etcd / per / 1024:.0f}"
        f" KiB out, {count.cpu_s / per * 1000:.0f} ms CPU of etcd, per {unit}",
        flush=True,
    )
    return {
        "what": what,
        "nodes": nodes,
        "seconds": seconds,
        "requests": count.requests,
        "connections": count.connections,
        "bytes_to_etcd": count.to_etcd,
        "bytes_from_etcd": count.from_etcd,
        "cpu_s": count.cpu_s,
    }


def settle(etcd: CountedEtcd, nodes: int, quiet_s: float = 3.0) -> None:
    """Returns when no more is asked than nodes at rest do, which read their key once a minute."""
    at_rest = 2 * nodes * quiet_s / 60 + 20
    before = etcd.count()
    while True:
        time.sleep(quiet_s)
        now = etcd.count()
        asked = (now - before).requests
        if asked.get("Txn", 0) < 3 and asked.get("Range", 0) < at_rest:
            return
        before = now


def rest(given: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """At rest, and what one more lease costs."""
    with counted_etcd(directory / "etcd") as etcd:
        put_config(etcd, CONFIG)
        time.sleep(5)
        alone = _over(etcd, given.seconds / 2)
        print(f"etcd alone: {alone.cpu_s / given.seconds * 2 * 100:.2f} % CPU")
        with clients(etcd, given.few, 2) as nodes:
            nodes.go()
            nodes.wait_ready()
            time.sleep(10)
            count = _over(etcd, given.seconds)
            more = replace(count, cpu_s=count.cpu_s - 2 * alone.cpu_s)
            found = [say("at rest", more, given.few, given.seconds)]
            before = etcd.count()
            for n in range(100):
                key = PREFIX.encode() + b"/subnets/10.200.%d.0-24" % n
                etcd.server.put(key, VALUE)
            time.sleep(2)
            return [*found, say("100 leases of others", etcd.count() - before, given.few)]


def _over(etcd: CountedEtcd, seconds: float) -> Count:
    """What is counted in that time."""
    before = etcd.count()
    time.sleep(seconds)
    return etcd.count() - before


VALUE = (
    b'{"PublicIP":"172.31.0.1","PublicIPv6":null,"BackendType":"vxlan",'
    b'"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:ff:ff"}}'
)


def start(given: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """All at once; and then an outage, if that is asked for."""
    found = []
    with counted_etcd(directory / "etcd") as etcd:
        put_config(etcd, CONFIG)
        with clients(etcd, given.nodes, given.processes) as nodes:
            before, began = etcd.count(), nodes.go()
            nodes.wait_ready()
            times = sorted(at - began for at in nodes.ready.values())
            print(
                f"ready after {times[0]:.1f} to {times[-1]:.1f} s,"
                f" median {statistics.median(times):.1f}"
            )
            settle(etcd, given.nodes)
            found.append(say(f"start of {given.nodes}", etcd.count() - before, given.nodes))
            if "outage" in given.part:
                before = etcd.count()
                etcd.server.kill()
                time.sleep(given.outage)
                dark = etcd.connections() - before.connections
                print(
                    f"while etcd is away: {dark / given.nodes / given.outage * 60:.1f}"
                    " connection attempts per node and minute"
                )
                etcd.server.start()
                began = time.monotonic()
                settle(etcd, given.nodes)
                # Counters of requests and CPU begin anew with the process.
                zero = Count({}, before.to_etcd, before.from_etcd, before.connections + dark, 0.0)
                found.append(say("after an outage", etcd.count() - zero, given.nodes))
                print(f"quiet after {time.monotonic() - began:.0f} s")
    return found


def protect(etcd: CountedEtcd) -> str:
    """Switches authentication on; a token of root."""
    return etcd.server.enable_auth(
        root_password=ROOT, user=USER, password=PASSWORD, prefix=PREFIX.encode()
    )


def change_password(etcd: CountedEtcd) -> None:
    """To another than the nodes have, and no token is worth anything any more."""
    body = {"name": USER, "password": "another"}
    etcd.server.post("auth/user/changepw", body, token=etcd.server.token("root", ROOT))
    etcd.server.restart()


def password(given: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """A password that is changed under running nodes: the CPU that costs etcd."""
    found = []
    secret = directory / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    # etcd's own cost of a password, 10: some 70 ms of CPU.
    for who, count in (("upstream", 10), ("pyflannel", 10), ("pyflannel", 100)):
        upstream = os.environ.get("PYFLANNEL_UPSTREAM", "")
        if who == "upstream" and not upstream:
            continue
        with counted_etcd(directory / f"etcd-{who}-{count}") as etcd:
            put_config(etcd, {**CONFIG, "Backend": {"Type": "alloc"}})
            protect(etcd)
            if who == "pyflannel":
                more = (f"--username={USER}", f"--password-file={secret}")
                with clients(etcd, count, 2, *more) as nodes:
                    nodes.go()
                    nodes.wait_ready()
                    found.append(_refused(etcd, who, count, given.seconds))
            else:
                with flanneld(etcd, upstream, count, directory):
                    found.append(_refused(etcd, who, count, given.seconds))
    return found


def crowd(given: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """100 nodes with a password start at once, with an etcd that has a quarter of a CPU."""
    del given
    secret = directory / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    with counted_etcd(directory / "etcd") as etcd:
        put_config(etcd, CONFIG)
        protect(etcd)
        more = (f"--username={USER}", f"--password-file={secret}")
        assert etcd.server.pid is not None
        with clients(etcd, 100, 2, *more) as nodes, limited_cpu(etcd.server.pid, 0.25):
            before, began = etcd.count(), nodes.go()
            try:
                nodes.wait_ready()
            finally:
                times = sorted(at - began for at in nodes.ready.values())
                tokens = (etcd.count() - before).requests.get("Authenticate", 0)
                print(
                    f"{len(times)} of 100 nodes have a subnet, after"
                    f" {times[0] if times else 0:.0f} to {times[-1] if times else 0:.0f} s;"
                    f" {tokens} authentications"
                )
            return [say("start with a password, slow etcd", etcd.count() - before, 100)]


def _refused(etcd: CountedEtcd, who: str, count: int, seconds: float) -> dict[str, object]:
    time.sleep(3)
    change_password(etcd)
    before, began = etcd.count(), time.monotonic()
    time.sleep(seconds)
    counted, lasted = etcd.count() - before, time.monotonic() - began
    print(
        f"{who}, {count} nodes, wrong password: etcd uses {counted.cpu_s / lasted * 100:.1f} % CPU"
    )
    return say(f"{who}, wrong password", counted, count, lasted)


@contextmanager
def flanneld(etcd: CountedEtcd, program: str, count: int, directory: Path) -> Iterator[None]:
    """So many of upstream's daemons, each with an address of its own."""
    batch = "link add eth0 type veth peer name eth1\nlink set eth1 up\nlink set eth0 up\n"
    batch += "address add 192.0.2.1/24 dev eth0\n"
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    children = []
    try:
        for n in range(count):
            files = directory / f"flanneld{n}"
            files.mkdir()
            with (files / "log").open("w") as log:
                child = subprocess.Popen(
                    [
                        program,
                        f"-etcd-endpoints={etcd.server.endpoint}",
                        f"-etcd-username={USER}",
                        f"-etcd-password={PASSWORD}",
                        "-iface=eth0",
                        f"-public-ip=172.16.1.{n}",
                        f"-subnet-file={files / 'subnet.env'}",
                    ],
                    stdout=log,
                    stderr=log,
                )
            children.append(child)
        wait(
            lambda: all((directory / f"flanneld{n}" / "subnet.env").exists() for n in range(count))
        )
        yield
        ended = [child.poll() for child in children]
        if any(code is not None for code in ended):
            print(f"upstream's daemons have ended: {Counter(ended)}")
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            child.wait()
        subprocess.run(["ip", "link", "delete", "eth0"], check=False)


def widened(given: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    """A full network that is widened under 100 waiting nodes."""
    del given
    with counted_etcd(directory / "etcd") as etcd:
        put_config(etcd, FULL)
        etcd.server.put(PREFIX.encode() + b"/subnets/10.1.0.0-24", VALUE)
        with clients(etcd, 100, 2) as nodes:
            nodes.go()
            time.sleep(15)
            before, began = etcd.count(), time.time()
            put_config(etcd, CONFIG)
            nodes.wait_ready()
            times = sorted(at - began for at in nodes.ready.values())
            settle(etcd, 100)
            count = etcd.count() - before
            print(
                f"100 nodes have a subnet after {times[0]:.2f} to {times[-1]:.2f} s,"
                f" median {statistics.median(times):.2f}; most within 100 ms:"
                f" {most_within(times, 0.1)}; {count.requests.get('Txn', 0)} transactions"
            )
            return [say("a full network is widened", count, 100)]


def most_within(times: Sequence[float], window: float) -> int:
    """How many of these times, at most, lie within one window."""
    return max(sum(start <= at < start + window for at in times) for start in times)


PARTS = {"rest": rest, "start": start, "password": password, "crowd": crowd, "widened": widened}


def main() -> int:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.control.load", description=__doc__)
    parser.add_argument("--part", action="append", choices=[*PARTS, "outage"])
    parser.add_argument("--nodes", type=int, default=1000, help="for start and outage")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--few", type=int, default=20, metavar="N", help="nodes at rest")
    parser.add_argument("--seconds", type=float, default=120.0, help="at rest, and refused")
    parser.add_argument("--outage", type=float, default=60.0, help="seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was counted there")
    given = parser.parse_args()
    given.part = given.part or [*PARTS, "outage"]
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, most), most))
    enter_namespace()
    found = []
    for name, part in PARTS.items():
        if name in given.part or (name == "start" and "outage" in given.part):
            directory = Path(tempfile.mkdtemp(prefix="pyflannel-load-"))
            try:
                found += part(given, directory)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(), "counted": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
