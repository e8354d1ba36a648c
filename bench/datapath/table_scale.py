"""`python -m bench.datapath.table_scale`: what a packet costs the native data path with more peers.

CPU of its threads per packet, from the TUN (a socket pair) to a socket on loopback, with 1, 1,000
and 10,000 peers and a destination at random each time. All peers have one address, so that nothing
but the look-up differs. Rounds alternate; median, range, and the ratio to one peer.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import ipv4_packet
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.native import NativeDatapath
from pyflannel.kernel.udp import open_udp
from pyflannel.testing.tunpair import tun_pair

SIZES = (1, 1000, 10000)
PACKETS = 200_000
BATCH = 1000
LOCAL, PEER = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
NETWORK = IPv4Network("10.0.0.0/8")


def packet(destination: int) -> bytes:
    """A packet of 64 bytes that is neither TCP nor UDP: nothing is joined on its account."""
    return ipv4_packet(
        source=IPv4Address("10.200.0.2"),
        destination=IPv4Address(destination),
        protocol=253,  # for experiments, RFC 3692
        payload=bytes(44),
    )


def threads_cpu_ns() -> int:
    """CPU time of all threads of this process but the calling one."""
    own = str(threading.get_native_id())
    tasks = (task for task in Path("/proc/self/task").iterdir() if task.name != own)
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def cost_ns(peers: int, packets: int) -> float:
    """CPU per packet with a table of so many peers."""
    rows = [
        Peer(IPv4Network((int(NETWORK.network_address) + (n << 8), 24)), PEER) for n in range(peers)
    ]
    rng = random.Random(peers)
    made = [packet((10 << 24) + (rng.randrange(peers) << 8) + 7) for _ in range(4096)]
    with tun_pair() as pair, open_udp(LOCAL, 0) as ours, open_udp(PEER, ours.getsockname()[1]):
        path = NativeDatapath(
            DatapathConfig(
                tun_fd=pair.device.fileno(),
                udp_fd=ours.fileno(),
                tun_name="pair",
                tun_address=IPv4Address("10.200.0.0"),
                network=NETWORK,
                mtu=1472,
                port=ours.getsockname()[1],
                underlay_name="lo",
                underlay_address=LOCAL,
            )
        )
        path.replace_table(PeerTable(rows))
        path.start()
        try:
            before, sent = threads_cpu_ns(), 0
            while sent < packets:
                for i in range(sent, sent + BATCH):
                    pair.inject(made[i & 4095])
                sent += BATCH
                counters = path.counters()
                while counters["tun_packets"] + counters["tun_send_error"] < sent:
                    time.sleep(0.0001)
                    counters = path.counters()
            return (threads_cpu_ns() - before) / sent
        finally:
            path.stop()


def main() -> int:
    """Runs all rounds and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.datapath.table_scale")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    samples: dict[int, list[float]] = {size: [] for size in SIZES}
    for turn in range(given.rounds + 1):
        for size in SIZES if turn % 2 else SIZES[::-1]:
            cost = cost_ns(size, PACKETS if turn else PACKETS // 10)
            if turn:
                samples[size].append(cost)
    base = statistics.median(samples[SIZES[0]])
    for size, values in samples.items():
        middle = statistics.median(values)
        spread = f"{min(values):.0f}–{max(values):.0f}"
        print(f"{size:6} peers  {middle:7.0f} ns per packet ({spread})  {middle / base:.3f} ×")
    return 0


if __name__ == "__main__":
    sys.exit(main())
