"""Measures a lab's overlay between two of its pods, with a few numbers.

Both pods, both nodes and both ends of the traffic share this machine's cores, so a figure is a cost
in CPU, not the speed of a link, and only figures of one run can be compared. The suite under
`bench/` does more (alternating order, many runs, baselines); this is for a quick look.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from pyflannel.lab import traffic
from pyflannel.lab.errors import LabError
from pyflannel.lab.nodes import Node
from pyflannel.records import dataclass

PROGRAM: Final = Path(traffic.__file__)

_MARGIN_S: Final = 30.0
"""Added to the time of the traffic: a busy machine may need this long to start two programs."""

DATAGRAM_BYTES: Final = 64
"""Payload of the small datagrams. Packets are counted, not bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Bulk TCP as it arrived."""

    flows: int
    gbit_per_s: float
    seen_as: tuple[str, ...]
    """Source addresses that the receiver saw: the pod's, unless a node rewrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """One byte there and back over TCP."""

    rounds: int
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketRate:
    """Small datagrams, sent as fast as they go."""

    size_bytes: int
    sent_kpps: float
    received_kpps: float
    loss: float
    """Share of the sent packets that did not arrive, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """All numbers of one run."""

    source: str
    target: str
    tcp_1: Throughput
    tcp_4: Throughput
    latency: Latency
    packets: PacketRate

    def to_json(self) -> dict[str, object]:
        """The result as JSON values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The result for people."""
        latency, packets = self.latency, self.packets
        delivered = f"{packets.received_kpps:8.0f} kpps of {packets.sent_kpps:.0f} sent"
        return [
            f"{self.source} to {self.target}",
            f"TCP bulk, 1 flow      {self.tcp_1.gbit_per_s:8.2f} Gbit/s",
            f"TCP bulk, 4 flows     {self.tcp_4.gbit_per_s:8.2f} Gbit/s",
            f"TCP request/response  {latency.p50_us:8.0f} µs median, {latency.p99_us:.0f} µs p99",
            f"UDP {packets.size_bytes} bytes, flood   {delivered}, {packets.loss:.0%} lost",
        ]


def run(source: Node, target: Node, *, seconds: float = 2.0) -> BenchResult:
    """Measures one thing after the other from a node's pod to another node's pod.

    Args:
        source: the node whose pod sends.
        target: the node whose pod takes in.
        seconds: how long each of the four measurements sends.
    """
    return BenchResult(
        source=source.pod.name,
        target=target.pod.name,
        tcp_1=tcp(source, target, flows=1, seconds=seconds),
        tcp_4=tcp(source, target, flows=4, seconds=seconds),
        latency=latency(source, target, seconds=seconds),
        packets=packet_rate(source, target, seconds=seconds),
    )


def tcp(source: Node, target: Node, *, flows: int = 1, seconds: float = 2.0) -> Throughput:
    """Bulk TCP throughput, counted at the receiver."""
    arguments = [f"--flows={flows}", f"--seconds={seconds}"]
    _, sink = _pair(source, target, "tcp-source", "tcp-sink", arguments, seconds)
    elapsed = float(str(sink["seconds"])) or 1.0
    peers = sink["peers"]
    return Throughput(
        flows=flows,
        gbit_per_s=float(str(sink["bytes"])) * 8 / elapsed / 1e9,
        seen_as=tuple(map(str, peers)) if isinstance(peers, list) else (),
    )


def latency(source: Node, target: Node, *, seconds: float = 2.0) -> Latency:
    """Time of a request of one byte and its answer."""
    asked, _ = _pair(source, target, "ask", "echo", [f"--seconds={seconds}"], seconds)
    return Latency(
        rounds=int(str(asked["rounds"])),
        p50_us=float(str(asked["p50_us"])),
        p99_us=float(str(asked["p99_us"])),
    )


def packet_rate(
    source: Node, target: Node, *, seconds: float = 2.0, rate: int = 0, size: int = DATAGRAM_BYTES
) -> PacketRate:
    """Small datagrams per second, `rate` of them or (0) as many as the sender can make."""
    arguments = [f"--seconds={seconds}", f"--rate={rate}", f"--size={size}"]
    made, taken = _pair(source, target, "udp-source", "udp-sink", arguments, seconds)
    sent, received = int(str(made["sent"])), int(str(taken["received"]))
    return PacketRate(
        size_bytes=size,
        sent_kpps=sent / (float(str(made["seconds"])) or 1.0) / 1e3,
        # Both over the sender's time: packets that are still queued at its end arrive a little
        # later.
        received_kpps=received / (float(str(made["seconds"])) or 1.0) / 1e3,
        loss=max(0.0, 1 - received / sent) if sent else 0.0,
    )


def _pair(
    source: Node,
    target: Node,
    active: str,
    passive: str,
    arguments: Sequence[str],
    seconds: float,
) -> tuple[Mapping[str, object], Mapping[str, object]]:
    address = target.pod_address()
    if address is None or source.pod_address() is None:
        raise LabError(f"{source.name} and {target.name} need a pod each: is the lab up?")
    program = [sys.executable, "-IS", str(PROGRAM)]
    taking = target.pod.popen([*program, passive, *arguments], stderr=subprocess.STDOUT)
    try:
        ready = taking.stdout.readline() if taking.stdout else ""
        if ready.strip() != "ready":
            rest = taking.stdout.read() if taking.stdout else ""
            raise LabError(f"{target.pod.name}: {passive} failed: {(ready + rest).strip()}")
        made = source.exec(
            [*program, active, f"--host={address}", *arguments],
            pod=True,
            timeout=seconds + _MARGIN_S,
        )
        output, _ = taking.communicate(timeout=_MARGIN_S)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{target.pod.name}: {passive} did not end") from error
    finally:
        if taking.poll() is None:
            taking.kill()
        with taking:
            pass
    try:
        return json.loads(made.stdout), json.loads(output)
    except ValueError as error:
        raise LabError(f"{target.pod.name}: {passive}: no report in {output!r}") from error
