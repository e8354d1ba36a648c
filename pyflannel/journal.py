"""Entries with fields for systemd's journal, in its native protocol.

One datagram an entry: `NAME=value` lines, or for a value with a newline the name, its length in 64
bits of little endian, and the bytes (systemd.io, "Native Journal Protocol"). A line on stderr has a
priority and nothing else; so `journalctl PEER=10.5.7.0/24` and `CODE=PF171` need this.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
IDENTIFIER: Final = "pyflanneld"
"""As the journal calls us when it reads our stderr."""


FieldsOf = Callable[[logging.LogRecord, str], Mapping[str, str]]


def entry(fields: Mapping[str, str]) -> bytes:
    """The datagram of one entry.

    Args:
        fields: by name: capitals, digits and underscores, not beginning with one.
    """
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="surrogateescape")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(f"{name}=".encode() + data + b"\n")
    return b"".join(parts)


class JournalHandler(logging.Handler):
    """Sends records to the journal; a record that it does not take goes to another handler.

    Args:
        otherwise: takes what cannot be sent: there is no journal, or the entry is too long.
        fields: gives an entry's fields for a record and its formatted text.
        path: of the journal's socket.
    """

    def __init__(self, otherwise: logging.Handler, fields: FieldsOf, path: str = SOCKET) -> None:
        super().__init__()
        self._otherwise = otherwise
        self._fields = fields
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """As inherited."""
        try:
            found = entry(
                {"SYSLOG_IDENTIFIER": IDENTIFIER, **self._fields(record, self.format(record))}
            )
            # One an entry: it takes 10 µs, and nothing is left to close or to inherit.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)  # noqa: FBT003 - its only argument
                sock.sendto(found, self._path)
        except OSError:
            self._otherwise.handle(record)
