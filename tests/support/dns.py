"""A small DNS server: what a test writes into its zone, it answers."""

from __future__ import annotations

import contextlib
import socket
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset


class DnsServer:
    """Answers over UDP until it is closed.

    Args:
        bound: a socket that is bound already, in any namespace.
    """

    def __init__(self, bound: socket.socket) -> None:
        self.zone: dict[tuple[str, str], list[str]] = {}
        """Records by name and type: `("_x._tcp.example.", "SRV"): ["0 1 2379 a.example."]`."""
        self.asked: list[tuple[str, str]] = []
        self._socket = bound
        self._socket.settimeout(0.1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="dns", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(TimeoutError):
                wire, sender = self._socket.recvfrom(4096)
                self._socket.sendto(self._answer(dns.message.from_wire(wire)), sender)

    def _answer(self, query: dns.message.Message) -> bytes:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA | dns.flags.RA
        (question,) = query.question
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        found = self.zone.get((name, kind))
        if found:
            text = (name, 0, dns.rdataclass.IN, question.rdtype)
            answer.answer.append(dns.rrset.from_text(*text, *found))
        elif not any(known == name for known, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer.to_wire()

    def close(self) -> None:
        """Ends it; the address is free afterwards."""
        self._closed.set()
        self._thread.join()
        self._socket.close()
