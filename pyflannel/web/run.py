"""The two processes of the page: one that serves without rights, one that asks the daemons."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from pyflannel.core.errors import EXIT_DEFECT, EXIT_OK, DeviceUnavailable
from pyflannel.kernel.privileges import drop
from pyflannel.web import asker
from pyflannel.web.address import Address
from pyflannel.web.server import PageServer, serve
from pyflannel.web.watch import Watched

INTERVAL_S: Final = 2.0
"""Between two questions: as `pyflannel status --watch`."""

SEND_BYTES: Final = 256 * 1024
"""Send buffer of each connection: a page of 500 peers. The default is up to 4 MB (tcp_wmem), which
a client that does not read would hold for a while."""


def run(address: Address, sources: Mapping[str, asker.Ask], say: Callable[[str], None]) -> int:
    """Serves the page until a signal ends this process; the exit code.

    Args:
        address: where.
        sources: how to ask each node's daemon, by the node's name; the first is shown first.
        say: called with the URL.

    Raises:
        DeviceUnavailable: the address or the port is not available.
    """
    listening = _listen(address)
    say(Address(address.ip, listening.getsockname()[1]).url)
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        _serve(listening, theirs, list(sources))
    listening.close()
    theirs.close()
    try:
        asker.answer_requests(ours, sources)
    finally:
        ours.close()  # which ends the child
        _, status = os.waitpid(child, 0)
    # It ends before us only after a defect or a signal.
    return EXIT_OK if os.waitstatus_to_exitcode(status) == EXIT_OK else EXIT_DEFECT


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if address.ip.version == 6 else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
        listening.bind((str(address.ip), address.port))
        listening.listen()
    except OSError as error:
        listening.close()
        where = address.url.removeprefix("http://").rstrip("/")
        hint = "name another ADDRESS:PORT"
        raise DeviceUnavailable("listen on", where, error.errno or 0, hint) from error
    return listening


def _serve(listening: socket.socket, channel: socket.socket, names: list[str]) -> NoReturn:
    """The child process. It ends with its parent, and never returns to the caller."""
    code = EXIT_DEFECT
    try:
        # Ctrl-C at a terminal goes to both. The parent ends first, and this process follows.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        server = PageServer(map(Watched, names))
        if kept := drop():
            print(f"pyflannel web: the page's process keeps root's rights: {kept}", file=sys.stderr)
        asyncio.run(serve(server, listening, channel, INTERVAL_S))
        code = EXIT_OK
    except BaseException:  # noqa: BLE001 - the border of the process
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)
