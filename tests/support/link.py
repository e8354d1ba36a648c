"""A way to a TCP server that can be cut without a word, or be slow."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit


class Link:
    """Forwards what comes to `endpoint`; closes with `close`.

    Args:
        endpoint: where it leads.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        assert url.hostname is not None
        assert url.port is not None
        self._there = (url.hostname, url.port)
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._whole = threading.Event()
        self._whole.set()
        self._closed = False
        self.delay_s = 0.0
        """How long each part of what is sent takes, either way."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing goes through any more, and no end is told: as behind a cable that was pulled."""
        self._whole.clear()

    def mend(self) -> None:
        """It goes through again; what was sent meanwhile comes late, as TCP would send it again."""
        self._whole.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                serving = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(serving)
                serving.start()

    def _serve(self, client: socket.socket) -> None:
        self._whole.wait()
        with client, contextlib.suppress(OSError):
            if self._closed:
                return
            with socket.create_connection(self._there, 5) as server:
                server.settimeout(None)
                self._open.append(server)
                back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
                back.start()
                if self._closed:
                    server.shutdown(socket.SHUT_RDWR)
                self._pump(client, server)
                back.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.delay_s)
                self._whole.wait()
                if self._closed:
                    return
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends all connections."""
        self._closed = True
        self._whole.set()
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
