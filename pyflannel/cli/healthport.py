"""Another node's health port, asked for `/metrics`."""

from __future__ import annotations

import http.client
import time
from typing import Final

from pyflannel.report.scraped import NotTold, Scraped, scraped

ASK_S: Final = 5.0
"""For the whole answer of one node."""
MOST_BYTES: Final = 4 << 20
"""Of an answer: ten times what 250 peers take. The rest is not read."""
PIECE: Final = 1 << 16


class NoAnswer(Exception):
    """Why nothing is known of a node, in words."""


def ask(host: str, port: int) -> Scraped:
    """What a node tells of itself.

    Raises:
        NoAnswer: it cannot be asked, or tells nothing.
    """
    text = _fetch(host, port, "/metrics")
    try:
        return scraped(text)
    except NotTold:
        raise NoAnswer(
            f"what answers on port {port} tells no lease: another program, or another release"
        ) from None


def _fetch(host: str, port: int, path: str) -> str:
    deadline = time.monotonic() + ASK_S
    connection = http.client.HTTPConnection(host, port, timeout=ASK_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        if answer.status == http.HTTPStatus.NOT_FOUND:
            raise NoAnswer(
                f"its health port {port} has no metrics: flannel's own daemon, or --metrics=false"
            )
        if answer.status != http.HTTPStatus.OK:
            raise NoAnswer(f"port {port} answers {answer.status}")
        found = b""
        while len(found) < MOST_BYTES and (piece := answer.read1(PIECE)):
            found += piece
            if time.monotonic() > deadline:
                raise NoAnswer(f"no whole answer on port {port} within {ASK_S:g} s")
    except TimeoutError:
        raise NoAnswer(f"no answer on port {port} within {ASK_S:g} s") from None
    except OSError as error:
        raise NoAnswer(f"health port {port}: {error.strerror or error}") from error
    except http.client.HTTPException as error:
        raise NoAnswer(f"what answers on port {port} speaks no HTTP: {error!r}") from error
    finally:
        connection.close()
    return found.decode(errors="replace")
