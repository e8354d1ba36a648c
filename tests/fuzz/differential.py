"""One input for the three data paths and a model: the same verdict, the same bytes.

    python -m tests.fuzz.differential [--seconds S] [--seed N] [--only-programs]

An input is a packet from the TUN, or a frame from the wire with a peer's datagram in it, around
every edge of the rules and of what a kernel does with a frame; some are damaged. What must become
of it is said by two models that share no code with the implementations: `stack` (which datagram, if
any, a socket gets from a frame; RFC 791, RFC 768) and `Model` of the contract suite (what a data
path does with it). Three things are held to them:

* the eBPF programs, run by the kernel on a frame of ours (BPF_PROG_TEST_RUN). A program takes a
  packet or leaves it to user space; nothing that it takes may differ from what the models say by a
  byte, what it leaves must be as it was, and what is ordinary (docs/ebpf.md) it must take;
* the native engine and the python path, between socket pairs, in batches.

`overlay_out` sees packets without an Ethernet header, but a test run always begins with one: the
kernel takes the first 14 bytes for it, and the protocol from the first half of the inner source.
Inner sources therefore lie in 8.0.0.0/16: 0x0800 is IPv4.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Self

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath.base import COUNTERS, DatapathConfig
from pyflannel.datapath.ebpf import bpf
from pyflannel.datapath.select import IMPLEMENTATIONS
from tests.contract.datapath_cases import MTU, Model, packet, sum16
from tests.contract.datapath_rigs import DeviceRig, PairRig, Rig, Wire, udp_socket

NETWORK: Final = IPv4Network("8.0.0.0/16")
TUN_ADDRESS: Final = IPv4Address("8.0.1.0")
SUBNETS: Final = {"a": IPv4Network("8.0.2.0/24"), "b": IPv4Network("8.0.3.0/24")}
OURS: Final = IPv4Address("8.0.1.2")
AT_A: Final = IPv4Address("8.0.2.2")
AT_B: Final = IPv4Address("8.0.3.2")
OTHERS: Final = tuple(
    IPv4Address(each)
    for each in (
        *("8.0.1.0", "8.0.99.9", "8.0.255.255", "8.0.2.0", "8.0.3.255", "8.1.0.1", "192.0.2.77"),
        *("0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255"),
    )
)
SENDERS: Final = ("a", "a", "a", "b", "b", "stranger")
ROUND: Final = 60
"""Inputs before the counters are compared; their datagrams fit into every socket's buffer."""
ROUNDS: Final = 40
"""Rounds with one setting of the options."""
ETHERNET: Final = 14
OUTER: Final = 28
LEAST: Final = ETHERNET + 20
"""Bytes that a test run wants (net/bpf/test_run.c); no shorter packet reaches a program's end."""
TC_ACT_SHOT: Final = 2
TC_ACT_REDIRECT: Final = 7
LEFT: Final = 0xFFFFFFFF
"""TC_ACT_UNSPEC: the program leaves the packet to others."""
ECHO_TYPES: Final = (0, 3, 8, 11)
SPOILT: Final = (
    *("checksum 0", "checksum 0", "checksum 0", "right", "right", "right"),
    *("wrong checksum", "header checksum", "total short", "total long", "udp short", "udp long"),
    *("padded", "cut", "station", "fragment", "later fragment", "options", "protocol", "port"),
    *("address", "version", "byte", "source"),
)
"""What is done to the frame around a datagram."""
MARTIANS: Final = tuple(
    IPv4Network(each) for each in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
)
"""Sources that Linux drops (net/ipv4/route.c, ip_route_input_slow)."""


@dataclass(frozen=True, slots=True)
class Input:
    """One packet: out of the TUN, or in a frame from the wire."""

    out: bool
    data: bytes
    frame: bytes = b""


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses on the wire, which the frames need."""

    addresses: dict[str, IPv4Address]
    mac: bytes
    port: int


def inner(rng: random.Random, *, out: bool) -> bytes:
    """A packet around the edges of the rules; one of five is damaged."""
    here, there = (OURS, AT_A) if out else (AT_A, OURS)
    source = here if rng.random() < 0.8 else rng.choice((AT_A, AT_B, OURS, *OTHERS))
    destination = rng.choice((there, there, AT_B if out else there, *OTHERS[:2]))
    if rng.random() < 0.1:
        destination = rng.choice((OURS, AT_A, AT_B, *OTHERS))
    length = rng.choice((0, 1, 7, 8, 12, 20, 21, 33, 64, 100, 511, 512, 513, 1251, 1252, 1253))
    if rng.random() < 0.05:
        length = MTU - 20 + rng.choice((-2, -1, 0, 1, 60))
    protocol = rng.choice((1, 6, 6, 17, 17, 253))
    payload = bytearray(rng.randbytes(length))
    if protocol == 1 and payload:
        payload[0] = rng.choice(ECHO_TYPES)
    data = packet(
        source,
        destination,
        ttl=rng.choice((0, 1, 2, 63, 64, 64, 64, 255)),
        protocol=protocol,
        payload=bytes(payload),
        tos=rng.randrange(256),
        identification=rng.randrange(65536),
        flags=rng.choice((0, 0x4000, 0x4000, 0x4000, 0x2000, 0x2001, 1, 0x8000)),
        options=bytes(4 * rng.choice((0, 0, 0, 0, 0, 0, 1, 9, 10))),
        checksum=rng.choice((None, None, None, None, 0, 0xFEFF, 0xFFFF, 0xFF12, 0xFE00)),
    )
    if rng.random() > 0.2:
        return data
    kind = rng.randrange(5)
    if kind == 0:
        return data[: rng.randrange(1, len(data))]
    if kind == 1:
        return data + rng.randbytes(rng.randrange(1, 9))
    if kind == 2:
        return bytes([0x40 | rng.randrange(16)]) + data[1:]
    if kind == 3:
        return bytes([rng.randrange(256)]) + data[1:]
    at = rng.randrange(len(data))
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def frame(rng: random.Random, data: bytes, place: Place) -> bytes:
    """A frame with the datagram in it, mostly as a peer sends it."""
    spoilt = rng.choice(SPOILT)
    source = place.addresses[rng.choice(SENDERS)].packed
    if spoilt == "source":
        source = rng.choice(OTHERS).packed
    ours = place.addresses["stranger" if spoilt == "address" else "ours"].packed
    ports = [rng.choice((place.port, place.port, place.port, 4711)), place.port]
    if spoilt == "port":
        ports[1] += 1
    length = 8 + len(data) + {"udp short": -1, "udp long": 1}.get(spoilt, 0)
    head = struct.pack("!HHHH", *ports, length, 0)
    checksum = sum16(source + ours + struct.pack("!HH", 17, length) + head + data) or 0xFFFF
    if spoilt == "checksum 0":
        checksum = 0
    if spoilt == "wrong checksum":
        checksum = checksum ^ (1 << rng.randrange(16)) or 1
    head = head[:6] + struct.pack("!H", checksum)
    options = bytes(4 * rng.randrange(1, 4)) if spoilt == "options" else b""
    first = 0x45 + len(options) // 4
    if spoilt == "version":
        first = rng.randrange(256)
    total = 28 + len(options) + len(data)
    total += {"total short": -rng.randrange(1, 9), "total long": rng.randrange(1, 9)}.get(spoilt, 0)
    fragment = {"fragment": 0x2000, "later fragment": 0x0001}.get(spoilt, 0x4000)
    protocol = 132 if spoilt == "protocol" else 17
    head4 = struct.pack(
        "!BBHHHBBH4s4s", first, 0, total, 7, fragment, 64, protocol, 0, source, ours
    )
    value = sum16(head4 + options)
    if spoilt == "header checksum":
        value ^= 1 << rng.randrange(16)
    head4 = head4[:10] + struct.pack("!H", value) + head4[12:] + options
    station = bytes.fromhex("020000000077") if spoilt == "station" else place.mac
    made = station + bytes.fromhex("02000000000a0800") + head4 + head + data
    if spoilt == "padded" or len(made) < 60:
        made += rng.randbytes(max(60 - len(made), rng.randrange(20)))
    if spoilt == "cut":
        made = made[: rng.randrange(ETHERNET, len(made))]
    if spoilt == "byte":
        at = rng.randrange(ETHERNET, len(made))
        made = made[:at] + bytes([rng.randrange(256)]) + made[at + 1 :]
    return made


def stack(data: bytes, place: Place) -> tuple[IPv4Address, int, bytes] | None:
    """What a socket on our address and port gets from a frame: sender, its port, payload.

    `None` if it gets nothing, or not from this frame alone (a fragment).
    """
    if data[:6] != place.mac or data[12:14] != b"\x08\x00":
        return None
    ip = data[ETHERNET:]
    if len(ip) < 20 or ip[0] >> 4 != 4:
        return None
    header, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4], "big")
    if header < 20 or total < header or total > len(ip) or sum16(ip[:header]):
        return None
    source, destination = IPv4Address(ip[12:16]), IPv4Address(ip[16:20])
    if destination != place.addresses["ours"] or any(source in each for each in MARTIANS):
        return None
    if source == destination:
        return None
    if int.from_bytes(ip[6:8], "big") & 0x3FFF or ip[9] != 17:
        return None
    udp = ip[header:total]
    if len(udp) < 8:
        return None
    sport, dport, length, checksum = struct.unpack_from("!HHHH", udp)
    if dport != place.port or not 8 <= length <= len(udp):
        return None
    pseudo = ip[12:20] + struct.pack("!HH", 17, length)
    if checksum and sum16(pseudo + udp[:length]):
        return None
    return source, sport, udp[8:length]


class Programs:
    """The programs of a running data path, run on frames of ours."""

    def __init__(self, fds: dict[str, int], ifindex: int) -> None:
        self._fds = fds
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._number = bpf.SYSCALL[os.uname().machine]
        self._in = ctypes.create_string_buffer(4096)
        self._out = ctypes.create_string_buffer(4096)
        self._context = ctypes.create_string_buffer(192)  # struct __sk_buff
        # Without ingress_ifindex: Linux 5.10 does not take it, and the programs do not look at it.
        struct.pack_into("=I", self._context, 40, ifindex)
        self._attr = ctypes.create_string_buffer(bpf.ATTR_BYTES)
        self.took_ns = 0
        """Of the last run, the program alone."""

    @classmethod
    def of(cls, rig: DeviceRig) -> Self:
        """Those of the `ebpf` data path that a rig has started."""
        return cls(rig.path._loaded.programs, rig.wire.ours()["ifindex"])  # type: ignore[attr-defined]

    def run(self, name: str, data: bytes) -> tuple[int, bytes]:
        """The program's verdict, and the frame as it has left it."""
        ctypes.memmove(self._in, data, len(data))
        struct.pack_into(
            "=IIIIQQIIIIQQ",
            self._attr,
            0,
            *(self._fds[name], 0, len(data), len(self._out)),
            *(ctypes.addressof(self._in), ctypes.addressof(self._out), 1, 0),
            *(len(self._context), 0, ctypes.addressof(self._context), 0),
        )
        done = self._libc.syscall(self._number, bpf.PROG_TEST_RUN, self._attr, bpf.ATTR_BYTES)
        if done < 0:
            raise OSError(ctypes.get_errno(), f"run {name} on {data.hex()}")
        _, verdict, _, size = struct.unpack_from("=IIII", self._attr)
        (self.took_ns,) = struct.unpack_from("=I", self._attr, 36)  # duration
        return verdict, self._out.raw[:size]


class Disagreement(AssertionError):
    """An implementation did something else than the models say."""


@dataclass(slots=True)
class Told:
    """What the models say about one input."""

    passes: bytes | None
    """The packet as it goes on, towards the TUN or a peer; `None` if it does not."""
    peer: str = ""


class Fuzz:
    """Everything for a run; `step` does one round."""

    def __init__(self, seed: int, *, only_programs: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.inputs: Counter[str] = Counter()
        self._kinds = () if only_programs else ("python", "native")
        self._always = ExitStack()
        found = IMPLEMENTATIONS["ebpf"].probe()
        self.why_no_programs = found if isinstance(found, str) else ""
        self._wire = None if self.why_no_programs else Wire()
        if self._wire is not None:
            self._always.callback(self._wire.close)
        self._now: ExitStack = ExitStack()
        self._left = 0

    def close(self) -> None:
        """Ends the data paths and takes the devices away."""
        self._now.close()
        self._always.close()

    def _begin(self) -> None:
        """The data paths anew, with other options."""
        self._now.close()
        self._now = ExitStack()
        options: dict[str, Any] = {
            "accept_any": self.rng.random() < 0.3,
            "any_port": self.rng.random() < 0.3,
            "network": NETWORK,
            "tun_address": TUN_ADDRESS,
        }
        # Sockets on loopback are made before this thread enters the namespace of the wire.
        self._rigs: dict[str, tuple[Rig, dict[str, socket.socket]]] = {}
        for kind in self._kinds:
            rig: Rig = self._now.enter_context(PairRig(vnet_hdr=self.rng.random() < 0.5))
            others = {
                name: self._now.enter_context(udp_socket(rig.addresses[name], 0))
                for name in rig.peers
            }
            rig.start(IMPLEMENTATIONS[kind].make, self._table(rig), **options)
            self._rigs[kind] = (rig, others)
        addresses = {
            name: IPv4Address(f"192.0.2.{number}")
            for number, name in enumerate(("ours", "a", "b", "stranger"), 1)
        }
        self._place = Place(addresses, bytes.fromhex("02000000000b"), DeviceRig.PORT)
        self._programs = None
        if self._wire is not None:
            wired = self._now.enter_context(DeviceRig(self._wire))
            wired.start(IMPLEMENTATIONS["ebpf"].make, self._table(wired), **options)
            link = self._wire.ours()
            self._place = Place(
                wired.addresses, bytes.fromhex(link["address"].replace(":", "")), wired.PORT
            )
            self._programs = Programs.of(wired)
        self._config = DatapathConfig(
            tun_fd=-1, udp_fd=-1, tun_name="", mtu=MTU, port=self._place.port, **options
        )

    def _table(self, rig: Rig) -> PeerTable:
        return PeerTable([Peer(SUBNETS[name], rig.addresses[name]) for name in SUBNETS])

    def _model(self) -> Model:
        peers = {name: Peer(SUBNETS[name], self._place.addresses[name]) for name in SUBNETS}
        return Model(self._config, peers)

    def _datagram(self, given: Input) -> tuple[str, bool, bytes] | None:
        """Who sends it, whether from the backend's port, and the payload."""
        found = stack(given.frame, self._place)
        if found is None:
            return None
        source, port, payload = found
        names = {address: name for name, address in self._place.addresses.items()}
        return names.get(source, "nobody"), port == self._place.port, payload

    def _judge(self, model: Model, given: Input) -> Told:
        """Has the model look at one input, and says what goes on."""
        before = len(model.to_tun), len(model.to_peer)
        if given.out:
            packets = model.counters["tun_packets"]
            model.from_tun(given.data)
            if model.counters["tun_packets"] == packets:
                return Told(None)
            peer, data = model.to_peer[before[1]]
            return Told(data, peer)
        found = self._datagram(given)
        if found is None:
            return Told(None)
        name, right_port, payload = found
        packets = model.counters["udp_packets"]
        model.from_udp(name if right_port or self._config.any_port else "another port", payload)
        if model.counters["udp_packets"] == packets:
            return Told(None)
        return Told(model.to_tun[before[0]])

    def step(self) -> None:
        """One round of inputs.

        Raises:
            Disagreement: with the input in hexadecimal.
        """
        if self._left == 0:
            self._begin()
            self._left = ROUNDS
        self._left -= 1
        model = self._model()
        given = []
        for _ in range(ROUND):
            out = self.rng.random() < 0.4
            data = inner(self.rng, out=out)
            given.append(Input(out, data, b"" if out else frame(self.rng, data, self._place)))
        for each in given:
            told = self._judge(model, each)
            if self._programs is not None:
                self._run_program(self._programs, each, told)
        for kind, (rig, others) in self._rigs.items():
            self._run_path(kind, rig, others, given, model)
        self.inputs["inputs"] += ROUND

    # The programs

    def _run_program(self, programs: Programs, given: Input, told: Told) -> None:
        name, data = ("overlay_out", given.data) if given.out else ("underlay_in", given.frame)
        if len(data) < LEAST:
            return
        verdict, left = programs.run(name, data)
        kind = {LEFT: "left", TC_ACT_REDIRECT: "taken", TC_ACT_SHOT: "shot"}.get(verdict, "?")
        self.inputs[f"{name} {kind}"] += 1
        if verdict == LEFT:
            if left != data:
                self._disagree(f"{name} leaves it changed", given, left)
            if told.passes is not None and self._is_ordinary(given):
                self._disagree(f"{name} leaves what is ordinary", given, left)
            return
        if verdict != TC_ACT_REDIRECT:
            self._disagree(f"{name} answers {verdict}", given, left)
        if told.passes is None:
            self._disagree(f"{name} takes what must not pass", given, left)
        assert told.passes is not None
        carried = self._unwrapped(told, left) if given.out else left[ETHERNET:]
        # Behind the packet there may be what padded the frame: the stack cuts it off.
        end = len(told.passes)
        if carried[:end] != told.passes or (given.out and carried[end:]):
            self._disagree(f"{name} makes another packet of it", given, left)

    def _unwrapped(self, told: Told, left: bytes) -> bytes:
        """The packet in a frame that goes out, if the headers around it are as they are to be."""
        place = self._place
        ip, udp = left[ETHERNET : ETHERNET + 20], left[ETHERNET + 20 : ETHERNET + OUTER]
        size = len(left) - ETHERNET
        good = (
            left[12:14] == b"\x08\x00"
            and (ip[0], ip[8], ip[9]) == (0x45, 64, 17)
            and int.from_bytes(ip[2:4], "big") == size
            and int.from_bytes(ip[6:8], "big") == 0x4000
            and not sum16(ip)
            and ip[12:16] == place.addresses["ours"].packed
            and ip[16:20] == place.addresses[told.peer].packed
            and udp == struct.pack("!HHHH", place.port, place.port, size - 20, 0)
        )
        return left[ETHERNET + OUTER :] if good else b""

    def _is_ordinary(self, given: Input) -> bool:
        """What the programs promise to carry themselves, of what passes."""
        if given.out:
            return given.data[0] == 0x45 and given.data[12:14] == b"\x08\x00"
        ip = given.frame[ETHERNET:]
        total, length = int.from_bytes(ip[2:4], "big"), int.from_bytes(ip[24:26], "big")
        return ip[0] == 0x45 and total == length + 20 and length >= OUTER

    # The paths in user space

    def _run_path(
        self,
        kind: str,
        rig: Rig,
        others: dict[str, socket.socket],
        given: list[Input],
        model: Model,
    ) -> None:
        before = rig.path.counters()
        rig.to_tun.clear()
        rig.to_peer.clear()
        rig._arrived_before = -self._made(before)
        ours = (str(rig.config.underlay_address), rig.config.port)
        wanted = Counter(model.counters)
        for each in given:
            if each.out:
                rig.inject(each.data)
                continue
            found = self._datagram(each)
            if found is None:
                continue
            name, right_port, payload = found
            if name not in rig.peers:
                # On loopback there is no such address; any sender is a stranger.
                name = "stranger"
            (rig.peers if right_port else others)[name].sendto(payload, ours)
            rig._delivered += 1
        rig.settle()
        after = rig.path.counters()
        got = Counter({name: after[name] - before[name] for name in COUNTERS})
        # How many errors are made depends on the time.
        errors = sum(got.pop(name, 0) for name in ERRORS)
        expected = sum(wanted.pop(name, 0) for name in ERRORS)
        if +got != +wanted or errors != expected:
            self._disagree(f"{kind} counts {dict(+got)} and not {dict(+wanted)}", *given)
        for what, came, should in (
            ("to the TUN", [("", d) for d in rig.to_tun], [("", d) for d in model.to_tun]),
            ("to the peers", rig.to_peer, model.to_peer),
        ):
            surplus = Counter(came) - Counter(should)
            missing = Counter(should) - Counter(came)
            suppressed = sum(n for (_, data), n in missing.items() if self._is_error(data))
            if surplus or sum(missing.values()) != suppressed:
                self._disagree(f"{kind} {what}: {surplus} and not {missing}", *given)
        self.inputs[kind] += len(given)

    @staticmethod
    def _made(count: dict[str, int]) -> int:
        """Packets that have come out by now, and were taken by the rounds before."""
        return (
            count["tun_packets"]
            + count["udp_packets"]
            + count["icmp_unreachable"]
            + count["icmp_time_exceeded"]
            + count["icmp_frag_needed"]
        )

    def _is_error(self, data: bytes) -> bool:
        return data[8:10] == b"\x08\x01" and data[12:16] == TUN_ADDRESS.packed

    def _disagree(self, what: str, *given: Input | bytes) -> None:
        shown = "\n".join(
            f"left: {each.hex()}"
            if isinstance(each, bytes)
            else f"from the TUN: {each.data.hex()}"
            if each.out
            else f"from the wire: {each.frame.hex()}"
            for each in given
        )
        options = replace(self._config, tun_fd=-1)
        raise Disagreement(f"seed {self.seed}: {what}\n{options}\n{shown}")


ERRORS: Final = ("icmp_unreachable", "icmp_time_exceeded", "icmp_frag_needed", "icmp_suppressed")


def run(
    seconds: float,
    seed: int,
    *,
    only_programs: bool = False,
    report: Callable[[str], None] | None = None,
) -> Counter[str]:
    """Runs for so long; what was done, by name.

    Raises:
        Disagreement: an implementation did something else than the models say.
    """
    fuzz = Fuzz(seed, only_programs=only_programs)
    try:
        end, said = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end or not fuzz.inputs:
            fuzz.step()
            if report is not None and time.monotonic() > said + 60:
                said = time.monotonic()
                report(json.dumps(fuzz.inputs))
        return fuzz.inputs
    finally:
        fuzz.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="fuzzes the three data paths against the model")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--only-programs", action="store_true")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)

    def report(text: str) -> None:
        print(text, flush=True)

    done = run(options.seconds, options.seed, only_programs=options.only_programs, report=report)
    report(json.dumps(done))


if __name__ == "__main__":
    main()
