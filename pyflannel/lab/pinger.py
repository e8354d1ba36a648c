"""Pings many addresses at once from inside a pod, and reports what it saw as JSON.

Run as a program of its own (`python -I -S pinger.py ADDRESS…`): it needs nothing but the standard
library, so that twenty of them start in little time. Unlike ping(8) it reports the TTL of each
answer *and* the sources of the requests that reached this pod: if a node on the path rewrote a
source address, the other end sees it.

A short protocol keeps all pods in step. It prints `ready` when the socket is open; then a line on
stdin starts it; it prints `done` when all have answered or the time is over; the end of stdin asks
for the report. Every socket is open from before the first request until after the last answer, so
the report on foreign sources is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

ICMP_HEADER = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number (RFC 792, RFC 4443)."""
REPLY, REQUEST = 0, 8
REPLY_V6, REQUEST_V6 = 129, 128
PAYLOAD = bytes(range(48))
"""With the time stamp in front 56 bytes, as ping(8) sends them."""


@dataclass(slots=True)
class Target:
    """One address and its answers."""

    address: str
    sent: int = 0
    rtts_ms: list[float] = field(default_factory=list)
    ttl: int | None = None

    def report(self) -> dict[str, object]:
        """What is printed about it."""
        return {
            "address": self.address,
            "sent": self.sent,
            "received": len(self.rtts_ms),
            "ttl": self.ttl,
            "rtt_ms": min(self.rtts_ms) if self.rtts_ms else None,
        }


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int(word) for (word,) in struct.iter_unpack("!H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Pinger:
    """Sends echo requests to all targets in turns until each has answered `count` of them."""

    def __init__(self, addresses: list[str], *, count: int, interval_s: float) -> None:
        self._six = any(":" in address for address in addresses)
        self._count = count
        self._interval_s = interval_s
        self._identifier = os.getpid() & 0xFFFF
        self.targets = {address: Target(address) for address in addresses}
        self.foreign: set[str] = set()
        if self._six:
            self._socket = socket.socket(
                socket.AF_INET6, socket.SOCK_RAW, socket.getprotobyname("ipv6-icmp")
            )
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
        else:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.settimeout(0)

    def run(self, deadline_s: float) -> None:
        """Pings until every target has answered often enough, or for `deadline_s` seconds."""
        end = time.monotonic() + deadline_s
        next_round = time.monotonic()
        while not self._finished():
            now = time.monotonic()
            if now >= end:
                return
            if now >= next_round:
                self._send_round()
                next_round = now + self._interval_s
            wait = max(0.0, min(next_round, end) - now)
            if select.select([self._socket], [], [], wait)[0]:
                self.receive()

    def receive(self) -> None:
        """Reads everything that has arrived."""
        while True:
            try:
                data, ancillary, _, source = self._socket.recvmsg(2048, 64)
            except BlockingIOError:
                return
            now = time.monotonic_ns()
            if self._six:
                ttl = next((struct.unpack("@i", value)[0] for *_, value in ancillary), 0)
            else:
                # A raw IPv4 socket gives the IP header too; its length is in 32-bit words.
                ttl = data[8]
                data = data[(data[0] & 0x0F) * 4 :]
            self._take(data, str(source[0]), ttl, now)

    def _take(self, message: bytes, source: str, ttl: int, now_ns: int) -> None:
        if len(message) < ICMP_HEADER.size + 8:
            return
        kind, _, _, identifier, _ = ICMP_HEADER.unpack_from(message)
        if kind == (REQUEST_V6 if self._six else REQUEST):
            if source not in self.targets:
                self.foreign.add(source)
        elif kind == (REPLY_V6 if self._six else REPLY) and identifier == self._identifier:
            target = self.targets.get(source)
            if target is not None:
                (sent_ns,) = struct.unpack_from("!Q", message, ICMP_HEADER.size)
                target.rtts_ms.append((now_ns - sent_ns) / 1e6)
                target.ttl = ttl

    def _send_round(self) -> None:
        for target in self.targets.values():
            if len(target.rtts_ms) >= self._count:
                continue
            target.sent += 1
            try:
                self._socket.sendto(self._request(target.sent & 0xFFFF), (target.address, 0))
            except OSError:
                continue  # no route yet, or a neighbour that did not answer: counts as sent, lost

    def _request(self, sequence: int) -> bytes:
        kind = REQUEST_V6 if self._six else REQUEST
        payload = struct.pack("!Q", time.monotonic_ns()) + PAYLOAD
        header = ICMP_HEADER.pack(kind, 0, 0, self._identifier, sequence)
        # For IPv6 the kernel computes it, because it covers addresses that only the kernel knows
        # yet.
        value = 0 if self._six else checksum(header + payload)
        return ICMP_HEADER.pack(kind, 0, value, self._identifier, sequence) + payload

    def _finished(self) -> bool:
        return all(len(target.rtts_ms) >= self._count for target in self.targets.values())


def main() -> int:
    """Follows the protocol above; 0 even if the targets did not answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--interval", type=float, default=0.1)
    parser.add_argument("--deadline", type=float, default=5.0)
    parser.add_argument("addresses", nargs="*")
    options = parser.parse_args()
    pinger = Pinger(options.addresses, count=options.count, interval_s=options.interval)
    print("ready", flush=True)
    if not sys.stdin.readline():
        return 0
    pinger.run(options.deadline)
    print("done", flush=True)
    sys.stdin.read()
    pinger.receive()
    report = {
        "targets": [target.report() for target in pinger.targets.values()],
        "foreign_sources": sorted(pinger.foreign),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
