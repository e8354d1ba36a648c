"""The process that asks the daemons, and the channel to the process that serves the page.

A byte of any value on the channel means "ask now". An answer is a frame: four bytes of length
(network order), then JSON, `{"node": name, "status": …}` or `{"node", "error"}`. All daemons are
asked at the same time, and one that has not answered yet is not asked again. So a daemon that hangs
does not delay the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from pyflannel.core.errors import FlannelError
from pyflannel.foreign import MOST_IN_LOG, shown

Ask = Callable[[], Mapping[str, Any]]
"""Gives a daemon's status, or raises a `FlannelError`."""
LENGTH: Final = struct.Struct("!I")
MOST_BYTES: Final = 64 * 1024 * 1024
"""Of an answer. 10,000 peers are 5 MB."""
NOW: Final = b"?"


def answer_requests(channel: socket.socket, sources: Mapping[str, Ask]) -> None:
    """Asks and answers until the other side closes the channel.

    Args:
        channel: one end of a stream socket pair.
        sources: by the name of the node.
    """
    busy: set[str] = set()
    lock = threading.Lock()

    def ask(name: str) -> None:
        frame = encode(name, sources[name])
        # The frames of several threads must not mix.
        with lock, contextlib.suppress(OSError):  # the other side has gone: `recv` says so too
            busy.discard(name)
            channel.sendall(frame)

    while channel.recv(4096):
        for name in sources:
            with lock:
                if name in busy:
                    continue
                busy.add(name)
            # Daemon threads, so that Ctrl-C also ends a pending question.
            threading.Thread(target=ask, args=(name,), name=f"ask {name}", daemon=True).start()


def encode(name: str, ask: Ask) -> bytes:
    """The frame with a daemon's answer, or with the reason why there is none."""
    answer: dict[str, object] = {"node": name}
    try:
        answer["status"] = ask()
    except FlannelError as error:
        answer["error"] = shown(error, MOST_IN_LOG)
    body = json.dumps(answer).encode()
    if len(body) > MOST_BYTES:
        body = json.dumps({"node": name, "error": "its status is too long"}).encode()
    return LENGTH.pack(len(body)) + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[str, Mapping[str, Any]]:
    """The next answer: the node's name, and the rest.

    Raises:
        asyncio.IncompleteReadError: the asker has ended.
    """
    (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    answer: dict[str, Any] = json.loads(await reader.readexactly(length))
    return str(answer.pop("node")), answer
