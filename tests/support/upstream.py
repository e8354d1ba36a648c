"""What tests need to know of flannel's own daemon."""

from __future__ import annotations

import contextlib

from pyflannel.lab import LabError, Node


def end(node: Node) -> None:
    """Ends flannel's daemon on a node.

    Now and then it ignores SIGTERM while it becomes ready (seen with 0.28.9: it says that it shuts
    down, and stays). Then it has been killed.
    """
    with contextlib.suppress(LabError):
        node.stop_daemon()
