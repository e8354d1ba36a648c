"""What tests need to know of flannel's own daemon."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pyflannel.lab import Lab, LabError, Node, topology


def end(node: Node) -> None:
    """Ends flannel's daemon on a node.

    Now and then it ignores SIGTERM while it becomes ready (seen with 0.28.9: it says that it shuts
    down, and stays). Then it has been killed.
    """
    with contextlib.suppress(LabError):
        node.stop_daemon()


@contextlib.contextmanager
def another_daemon(lab: Lab, number: int, command: str) -> Iterator[None]:
    """Meanwhile a node's daemon is started by this command, with its options for the lab's etcd."""
    spec = lab.spec
    lab.spec = topology.with_node_commands(spec, {number: command})
    try:
        yield
    finally:
        lab.spec = spec
