"""Cuts the answers of a watch into lines. Pure.

A watch's message may be larger than any reader's buffer (aiohttp's gives up at 512 KiB), and comes
in chunks that respect no boundary.
"""

from __future__ import annotations

from collections.abc import Callable


class LineSplitter:
    """Cuts a stream of chunks into lines, in time proportional to their length.

    Args:
        limit: most bytes of a line.
        failure: makes the exception for a longer one.
    """

    def __init__(self, limit: int, failure: Callable[[str], Exception]) -> None:
        self._limit = limit
        self._failure = failure
        self._parts: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete now, without line ends; empty ones are left out.

        Raises what `failure` makes: a line is longer than the limit.
        """
        *complete, rest = chunk.split(b"\n")
        lines: list[bytes] = []
        for piece in complete:
            self._hold(piece)
            line = b"".join(self._parts)
            if line.strip():
                lines.append(line)
            self._parts.clear()
            self._held = 0
        self._hold(rest)
        return lines

    def _hold(self, piece: bytes) -> None:
        self._held += len(piece)
        if self._held > self._limit:
            raise self._failure(f"it sends a message of more than {self._limit} bytes")
        if piece:
            self._parts.append(piece)
