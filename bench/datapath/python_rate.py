"""Packets per second through the plain Python data path, without a kernel device.

A socket pair stands for the TUN and loopback for the underlay, so the figures are the cost of the
loop and of four cheap system calls; on a real TUN the network stack comes on top. Each direction is
measured alone: a batch of packets is queued, then the event loop runs until all of them have come
out. Filling and emptying the queues is not in the time.

    python bench/datapath/python_rate.py [--loop asyncio|uvloop] [--seconds 2] [--json]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network

import uvloop

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import Protocol, ipv4_packet
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.python import PythonDatapath
from pyflannel.kernel.udp import open_udp
from pyflannel.testing.tunpair import TunPair, tun_pair

BATCH = 256
"""Packets queued at once: fits every queue on the way, also with the kernel's default limits."""
SIZES = (64, 1472)
OUT, BACK = "tun to udp", "udp to tun"
OURS, PEER = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
HERE, THERE = IPv4Address("10.5.1.2"), IPv4Address("10.5.2.2")


@dataclass(frozen=True)
class Result:
    """One row of the answer; median over the batches."""

    loop: str
    direction: str
    packet_bytes: int
    packets_per_second: int
    us_per_packet: float


async def measure(direction: str, size: int, seconds: float) -> float:
    """Microseconds per packet in one direction, median over batches."""
    with ExitStack() as stack:
        tun = stack.enter_context(tun_pair())
        ours = stack.enter_context(open_udp(OURS, 0))
        port = ours.getsockname()[1]
        peer = stack.enter_context(open_udp(PEER, port))
        config = DatapathConfig(
            tun_fd=tun.device.fileno(),
            udp_fd=ours.fileno(),
            tun_name="pair",
            tun_address=IPv4Address("10.5.1.0"),
            network=IPv4Network("10.5.0.0/16"),
            mtu=max(SIZES),
            port=port,
        )
        path = PythonDatapath(config)
        path.replace_table(PeerTable([Peer(IPv4Network("10.5.2.0/24"), PEER)]))
        path.start()
        stack.callback(path.stop)
        costs = []
        done, end = 0, time.monotonic() + seconds
        while time.monotonic() < end:
            queue(direction, size, tun, peer, (str(OURS), port))
            done += BATCH
            begin = time.perf_counter()
            while moved(path, direction) < done:  # noqa: ASYNC110  it has no event to give
                await asyncio.sleep(0)
            costs.append((time.perf_counter() - begin) / BATCH * 1e6)
            tun.emitted()
            empty(peer)
        return statistics.median(costs)


def queue(
    direction: str, size: int, tun: TunPair, peer: socket.socket, ours: tuple[str, int]
) -> None:
    """Puts a batch before the data path's door."""
    source, destination = (HERE, THERE) if direction == OUT else (THERE, HERE)
    packet = ipv4_packet(
        source=source, destination=destination, protocol=Protocol.UDP, payload=bytes(size - 20)
    )
    for _ in range(BATCH):
        if direction == OUT:
            tun.inject(packet)
        else:
            peer.sendto(packet, ours)


def moved(path: PythonDatapath, direction: str) -> int:
    """Packets that went through so far; fails loudly if some were dropped."""
    counters = path.counters()
    passed = ("tun_packets", "tun_bytes", "udp_packets", "udp_bytes")
    dropped = {name: value for name, value in counters.items() if value and name not in passed}
    if dropped:
        raise RuntimeError(f"packets were dropped: {dropped}")
    return counters["tun_packets" if direction == OUT else "udp_packets"]


def empty(source: socket.socket) -> None:
    """Throws away what has arrived."""
    try:
        while source.recv(2048):
            pass
    except BlockingIOError:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description="packets per second of the Python data path")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    parser.add_argument("--json", action="store_true", help="print JSON, a row a line")
    options = parser.parse_args()
    run = uvloop.run if options.loop == "uvloop" else asyncio.run
    for direction in (OUT, BACK):
        for size in SIZES:
            cost = run(measure(direction, size, options.seconds))
            row = Result(options.loop, direction, size, round(1e6 / cost), round(cost, 2))
            if options.json:
                print(json.dumps(asdict(row)))
            else:
                print(
                    f"{row.loop:8} {row.direction}  {row.packet_bytes:5} bytes "
                    f"{row.packets_per_second:8,} packets/s {row.us_per_packet:6.2f} us each"
                )


if __name__ == "__main__":
    main()
