"""`python -m bench.datapath.table_scale`: what a packet costs each data path with more peers.

With 1, 1,000 and 10,000 peers. All have one address, so that nothing but the look-up differs.
Packets go to ten of them in turn, or to one at random each time: then the table's part of the cost
is that of memory which no cache holds. Rounds alternate; median, range, and the ratio to one peer.

* `native`: CPU of its threads, from the TUN (a socket pair) to a socket on loopback.
* `python`: CPU of its thread, likewise.
* `ebpf out`, `ebpf in`: time of `overlay_out` and of `underlay_in`, run by the kernel on a packet
  (BPF_PROG_TEST_RUN); without what the kernel does with the packet before and after.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import Protocol, ipv4_packet
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.native import NativeDatapath
from pyflannel.datapath.python import PythonDatapath
from pyflannel.datapath.select import IMPLEMENTATIONS
from pyflannel.kernel.udp import open_udp
from pyflannel.testing.tunpair import TunPair, tun_pair
from tests.contract.datapath_rigs import DeviceRig, Wire
from tests.fuzz.differential import TC_ACT_REDIRECT, Programs

SIZES: Final = (1, 1000, 10000)
NATIVE_PACKETS: Final = 200_000
PYTHON_PACKETS: Final = 20_000
PROGRAM_RUNS: Final = 20_000
BATCH: Final = 250
"""Packets in the TUN at a time: its queue takes them with the kernel's default limits."""
SAMPLES: Final = 4096
"""Packets that take turns."""
FEW: Final = 10
LOCAL, PEER = IPv4Address("127.0.0.1"), IPv4Address("127.0.0.2")
NETWORK: Final = IPv4Network("8.0.0.0/7")
PEERS: Final = IPv4Network("9.0.0.0/8")
OURS: Final = IPv4Address("8.0.0.2")
"""A pod here. The kernel takes the protocol of a test run of `overlay_out` from such an address
(tests/fuzz/differential.py)."""
TUN_ADDRESS: Final = IPv4Address("8.0.0.0")
ETHERNET: Final = struct.Struct("!6s6sH")
MTU: Final = 1472


def table(peers: int, address: IPv4Address) -> PeerTable:
    """So many peers of one address, with a /24 each."""
    first = int(PEERS.network_address)
    return PeerTable(
        [Peer(IPv4Network((first + (number << 8), 24)), address) for number in range(peers)]
    )


def packets(peers: int, spread: int, *, to_us: bool = False) -> list[bytes]:
    """Packets of 64 bytes to (or from) pods of so many peers, at random.

    They are neither TCP nor UDP: nothing is joined on their account.
    """
    rng, first = random.Random(peers), int(PEERS.network_address)
    made: list[bytes] = []
    for number in range(SAMPLES):
        if number >= spread:
            made.append(made[number - spread])
            continue
        pod = IPv4Address(first + (rng.randrange(peers) << 8) + 7)
        made.append(
            ipv4_packet(
                source=pod if to_us else OURS,
                destination=OURS if to_us else pod,
                protocol=253,  # for experiments, RFC 3692
                payload=bytes(44),
            )
        )
    return made


@contextmanager
def sockets() -> Iterator[tuple[TunPair, DatapathConfig]]:
    """A data path's ends on loopback."""
    with tun_pair() as pair, open_udp(LOCAL, 0) as ours, open_udp(PEER, ours.getsockname()[1]):
        yield (
            pair,
            DatapathConfig(
                tun_fd=pair.device.fileno(),
                udp_fd=ours.fileno(),
                tun_name="pair",
                tun_address=TUN_ADDRESS,
                network=NETWORK,
                mtu=MTU,
                port=ours.getsockname()[1],
                underlay_name="lo",
                underlay_address=LOCAL,
            ),
        )


def threads_cpu_ns() -> int:
    """CPU time of all threads of this process but the calling one."""
    own = str(threading.get_native_id())
    tasks = (task for task in Path("/proc/self/task").iterdir() if task.name != own)
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def native_ns(peers: int, spread: int, part: float) -> float:
    """CPU of a packet from the TUN to the socket."""
    made, wanted = packets(peers, spread), int(NATIVE_PACKETS * part)
    with sockets() as (pair, config):
        path = NativeDatapath(config)
        path.replace_table(table(peers, PEER))
        path.start()
        try:
            before, sent = threads_cpu_ns(), 0
            while sent < wanted:
                sent += _inject(pair, made, sent)
                while _moved(path.counters()) < sent:
                    time.sleep(0.0001)
            return (threads_cpu_ns() - before) / sent
        finally:
            path.stop()


def python_ns(peers: int, spread: int, part: float) -> float:
    """CPU of a packet from the TUN to the socket."""
    return asyncio.run(_python_ns(peers, spread, int(PYTHON_PACKETS * part)))


async def _python_ns(peers: int, spread: int, wanted: int) -> float:
    made, sent, spent = packets(peers, spread), 0, 0
    with sockets() as (pair, config):
        path = PythonDatapath(config)
        path.replace_table(table(peers, PEER))
        path.start()
        try:
            while sent < wanted:
                sent += _inject(pair, made, sent)
                before = time.thread_time_ns()
                while _moved(path.counters()) < sent:  # noqa: ASYNC110  it has no event to give
                    await asyncio.sleep(0)
                spent += time.thread_time_ns() - before
        finally:
            path.stop()
    return spent / sent


def _inject(pair: TunPair, made: list[bytes], sent: int) -> int:
    """Puts the next batch into the TUN; how many that are."""
    for number in range(sent, sent + BATCH):
        pair.inject(made[number % SAMPLES])
    return BATCH


def _moved(counters: dict[str, int]) -> int:
    return counters["tun_packets"] + counters["tun_send_error"]


class Ebpf:
    """The programs of a data path on a wire, which serves one size after the other."""

    def __init__(self, stack: ExitStack) -> None:
        self._wire = Wire()
        stack.callback(self._wire.close)

    def out_ns(self, peers: int, spread: int, part: float) -> float:
        """Time of `overlay_out`."""
        return self._median_ns("overlay_out", packets(peers, spread), peers, part)

    def in_ns(self, peers: int, spread: int, part: float) -> float:
        """Time of `underlay_in`."""
        return self._median_ns("underlay_in", packets(peers, spread, to_us=True), peers, part)

    def _median_ns(self, name: str, made: list[bytes], peers: int, part: float) -> float:
        with DeviceRig(self._wire) as rig:
            address = rig.addresses["a"]
            rig.start(
                IMPLEMENTATIONS["ebpf"].make,
                table(peers, address),
                network=NETWORK,
                tun_address=TUN_ADDRESS,
            )
            programs = Programs.of(rig)
            if name == "underlay_in":
                station = bytes.fromhex(self._wire.ours()["address"].replace(":", ""))
                made = [_frame(each, station, address, rig) for each in made]
            took = []
            for number in range(int(PROGRAM_RUNS * part)):
                verdict, _ = programs.run(name, made[number % SAMPLES])
                if verdict != TC_ACT_REDIRECT:
                    raise SystemExit(f"{name} did not take the packet: verdict {verdict:#x}")
                took.append(programs.took_ns)
            return statistics.median(took)


def _frame(inner: bytes, station: bytes, sender: IPv4Address, rig: DeviceRig) -> bytes:
    """A peer's datagram as its programs send it: without a UDP checksum."""
    udp = struct.pack("!HHHH", rig.PORT, rig.PORT, 8 + len(inner), 0)
    outer = ipv4_packet(
        source=sender,
        destination=rig.addresses["ours"],
        protocol=Protocol.UDP,
        payload=udp + inner,
        dont_fragment=True,
    )
    return ETHERNET.pack(station, bytes.fromhex("02000000000a"), 0x0800) + outer


def show(name: str, samples: dict[int, list[float]]) -> None:
    """Prints the rows of one data path."""
    base = statistics.median(samples[SIZES[0]])
    for size, values in samples.items():
        middle = statistics.median(values)
        spread = f"{min(values):.0f}–{max(values):.0f}"
        print(f"{name:16} {size:6} peers  {middle:7.0f} ns ({spread})  {middle / base:.3f} ×")


def main() -> int:
    """Runs all rounds and prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.datapath.table_scale")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with ExitStack() as stack:
        ways: dict[str, Callable[[int, int, float], float]] = {
            "native": native_ns,
            "python": python_ns,
        }
        why_not = IMPLEMENTATIONS["ebpf"].probe()
        if isinstance(why_not, str):
            print(f"without ebpf: {why_not}", file=sys.stderr)
        else:
            ebpf = Ebpf(stack)
            ways |= {"ebpf out": ebpf.out_ns, "ebpf in": ebpf.in_ns}
        for name, cost_ns in ways.items():
            for spread, kind in ((FEW, "ten"), (SAMPLES, "random")):
                samples: dict[int, list[float]] = {size: [] for size in SIZES}
                for turn in range(given.rounds + 1):
                    for size in SIZES if turn % 2 else SIZES[::-1]:
                        cost = cost_ns(size, spread, 1.0 if turn else 0.1)
                        if turn:
                            samples[size].append(cost)
                show(f"{name}, {kind}", samples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
