"""An etcd in a network namespace of its own, and what its clients cost it.

Requests are etcd's own counters; bytes and packets are those of nftables on loopback, TCP and IP
headers included, so nothing stands between client and server; CPU is the scheduler's clock. A
request over the JSON gateway is two of etcd's (the gateway is a client of the same process), of
which gRPC counts the second.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from pyflannel.kernel import netns
from pyflannel.testing.etcdserver import EtcdServer

CGROUPS = Path("/sys/fs/cgroup")
_REQUESTS = "grpc_server_started_total{"
_RULES = """
table inet bench {{
  chain in {{
    type filter hook input priority 0;
    tcp dport {port} counter
    tcp sport {port} counter
    tcp dport {port} tcp flags syn / syn,ack counter
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Count:
    """What has been counted so far, or between two times."""

    requests: dict[str, int] = field(default_factory=dict)
    """By gRPC method."""
    to_etcd: int = 0
    """Bytes."""
    from_etcd: int = 0
    """Bytes."""
    connections: int = 0
    """Attempts, successful or not."""
    cpu_s: float = 0.0
    """Of etcd."""

    def __sub__(self, before: Self) -> Count:
        fresh = {
            name: number - before.requests.get(name, 0) for name, number in self.requests.items()
        }
        return Count(
            {name: number for name, number in sorted(fresh.items()) if number},
            self.to_etcd - before.to_etcd,
            self.from_etcd - before.from_etcd,
            self.connections - before.connections,
            self.cpu_s - before.cpu_s,
        )

    @property
    def total(self) -> int:
        """All requests; opening a watch is one."""
        return sum(self.requests.values())


def enter_namespace() -> None:
    """Moves this process, with loopback up and nothing else there; call before any thread."""
    netns.enter_new()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextmanager
def counted_etcd(directory: Path, *options: str) -> Iterator[CountedEtcd]:
    """An etcd that is counted from the start."""
    with EtcdServer(directory, options=options) as server:
        rules = _RULES.format(port=server.port)
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
        try:
            yield CountedEtcd(server)
        finally:
            subprocess.run(["nft", "delete", "table", "inet", "bench"], check=True)


@contextmanager
def limited_cpu(pid: int, share: float) -> Iterator[None]:
    """Gives a process so much of one CPU (cgroups of either version), as a small machine would.

    Raises:
        OSError: not as root, or where the kernel has no such limit.
    """
    name, period = f"pyflannel-bench-{pid}", 100_000
    former = CGROUPS / "cpu"
    group = (former if former.is_dir() else CGROUPS) / name
    group.mkdir()
    try:
        if former.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(period))
            (group / "cpu.cfs_quota_us").write_text(str(int(share * period)))
        else:
            (group / "cpu.max").write_text(f"{int(share * period)} {period}")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            (group.parent / "cgroup.procs").write_text(each)
        group.rmdir()


class CountedEtcd:
    """The server and its counters. A server that is restarted counts its requests from 0 again."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server

    def count(self) -> Count:
        """Everything so far."""
        requests: dict[str, int] = {}
        for name, number in self.server.metrics().items():
            if name.startswith(_REQUESTS) and number:
                method = name.partition('grpc_method="')[2].partition('"')[0]
                requests[method] = requests.get(method, 0) + int(number)
        to_etcd, from_etcd, connections = _counters()
        return Count(
            requests, to_etcd["bytes"], from_etcd["bytes"], connections["packets"], self._cpu_s()
        )

    def connections(self) -> int:
        """Attempts to connect so far, also while the server is away."""
        return _counters()[2]["packets"]

    def _cpu_s(self) -> float:
        if self.server.pid is None:
            return 0.0
        threads = Path(f"/proc/{self.server.pid}/task").iterdir()
        return sum(int((t / "schedstat").read_text().split()[0]) for t in threads) / 1e9


def _counters() -> list[dict[str, int]]:
    listed = subprocess.run(
        ["nft", "-j", "list", "chain", "inet", "bench", "in"],
        check=True,
        capture_output=True,
        text=True,
    )
    rules = [one["rule"] for one in json.loads(listed.stdout)["nftables"] if "rule" in one]
    return [part["counter"] for rule in rules for part in rule["expr"] if "counter" in part]
