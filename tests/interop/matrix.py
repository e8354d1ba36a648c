"""Every data path with every other, on every underlay: does all traffic arrive, unchanged?

    python -m tests.interop.matrix [--seed N] [--cells N]

    [ pod 1 ]---[ docker0, node 1 ]===[ underlay ]===[ node 2, docker0 ]---[ pod 2 ]

A cell is a pair of data paths on one underlay, with pods behind devices that finish checksums or do
not. Every kind of traffic goes through it, both ways. There are no daemons and no etcd: each node
is a thread of this process in a namespace, with the data path on a TUN and a socket as the udp
backend opens them. The kind `plain` is a sender and receiver of our own that behaves like
upstream's: a read, a look-up, TTL - 1, a send. With PYFLANNEL_UPSTREAM, the path of upstream's
daemon, that daemon is a kind as well, with an etcd of its own in its namespace. Where wireguard-go
and wg are installed, a WireGuard tunnel between the pods is one more kind of traffic. A kernel
that has them adds VLAN and bond as underlays, and IPIP and GRE tunnels between the pods.

What a cell proves: each payload arrives as it was sent; the capture in the receiving pod has no
wrong checksum; TTL, TOS and IP options are right; each node has received as many packets and bytes
as the other has sent, and has dropped none.

`nodes` has the data paths, `underlays` the connections between the nodes, `traffic` the pods and
the kinds of traffic.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from tests.contract.datapath_rigs import Namespace
from tests.interop.nodes import DEADLINE_S, UPSTREAM, Node, Trouble, UpstreamNode, kinds
from tests.interop.traffic import TRAFFIC, attach, ping
from tests.interop.underlays import UNDERLAYS, Underlay, wire


@dataclass(frozen=True, slots=True)
class Cell:
    """What is tried together."""

    left: str
    right: str
    underlay: Underlay
    pods_finish: bool
    """Whether the pods' devices finish checksums (`tx off`)."""

    def __str__(self) -> str:
        pods = "pods that finish checksums" if self.pods_finish else "pods as they come"
        return f"{self.left} and {self.right}, {self.underlay.name}, {pods}"


def all_cells() -> list[Cell]:
    """Each pair of data paths on each underlay; the pods' devices in turn."""
    every = itertools.combinations_with_replacement(kinds(), 2)
    pairs = [pair for pair in every if pair != (UPSTREAM, UPSTREAM)]  # nothing of ours in it
    return [
        Cell(left, right, underlay, bool(number % 2))
        for number, ((left, right), underlay) in enumerate(itertools.product(pairs, UNDERLAYS))
    ]


def pairwise(cells: list[Cell], rng: random.Random, most: int) -> list[Cell]:
    """Cells that have as many pairs of properties in them as so many can have, at random else."""

    def pairs(cell: Cell) -> set[tuple[object, object]]:
        values = (cell.left, cell.right, cell.underlay.name, f"pods {cell.pods_finish}")
        return set(itertools.combinations(values, 2))

    left, seen, chosen = list(cells), set[tuple[object, object]](), []
    rng.shuffle(left)
    while left and len(chosen) < most:
        best = max(left, key=lambda cell: len(pairs(cell) - seen))
        left.remove(best)
        seen |= pairs(best)
        chosen.append(best)
    return chosen


class Site:
    """The two nodes and their pods, for one cell."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        with ExitStack() as undo:
            spaces = [undo.enter_context(contextlib.closing(Namespace())) for _ in range(5)]
            switch, *nodes, pod1, pod2 = spaces
            wire(cell.underlay, nodes, switch, undo)
            mtu = cell.underlay.mtu - 28
            self.pods = [
                attach(number, node, pod, mtu, undo, finishes=cell.pods_finish)
                for number, (node, pod) in enumerate(zip(nodes, (pod1, pod2), strict=True), 1)
            ]
            self.nodes: list[Node | UpstreamNode] = []
            for number, (kind, space) in enumerate(
                zip((cell.left, cell.right), nodes, strict=True), 1
            ):
                node: Node | UpstreamNode = (
                    UpstreamNode(number, space)
                    if kind == UPSTREAM
                    else Node(number, kind, space, cell.underlay.mtu)
                )
                undo.callback(node.stop)
                node.start()
                self.nodes.append(node)
            if UPSTREAM in (cell.left, cell.right):
                self._until_they_talk()
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def _until_they_talk(self) -> None:
        """Upstream's daemon learns of the other node when it is ready already."""
        end = time.monotonic() + DEADLINE_S
        while True:
            try:
                ping(56)(*self.pods)
            except Trouble:
                if time.monotonic() > end:
                    raise
            else:
                return


def _balanced(site: Site) -> str:
    """What is wrong with the counters; empty if each has received what the other has sent."""
    left, right = (node.counters() for node in site.nodes)
    if left is None or right is None:
        return ""
    said = []
    for sender, receiver in ((left, right), (right, left)):
        for what in ("packets", "bytes"):
            sent, received = sender[f"tun_{what}"], receiver[f"udp_{what}"]
            if sent != received:
                said.append(f"{sent} {what} sent and {received} received")
    for node, count in zip(site.nodes, (left, right), strict=True):
        drops = {
            name: n
            for name, n in count.items()
            if n and name not in {"tun_packets", "tun_bytes", "udp_packets", "udp_bytes"}
        }
        if drops:
            said.append(f"{node.kind}: {drops}")
    return "; ".join(said)


def try_cell(cell: Cell) -> dict[str, str]:
    """All traffic through one cell, both ways: what is wrong with each; empty if nothing is."""
    site = Site(cell)
    found: dict[str, str] = {}
    try:
        for name, go in TRAFFIC.items():
            for source, target in (site.pods, site.pods[::-1]):
                try:
                    go(source, target)
                except (Trouble, OSError) as error:
                    found[name] = f"from {source.address}: {error}"
                for pod in site.pods:
                    pod.listen()
                    if pod.wrong:
                        found[name] = f"wrong checksum at {pod.address}: {pod.wrong[0]}"
                        pod.wrong.clear()
        end = time.monotonic() + DEADLINE_S
        while (reason := _balanced(site)) and not found and time.monotonic() < end:
            time.sleep(0.05)
        if reason:
            found["counters"] = reason
        if cell.pods_finish and not all(pod.checked for pod in site.pods):
            found["capture"] = "no checksum could be looked at"
    finally:
        site.close()
    return found


def run(cells: list[Cell], say: Callable[[str], None]) -> Iterator[tuple[Cell, dict[str, str]]]:
    """One cell after the other, each with a line."""
    for number, cell in enumerate(cells, 1):
        begun = time.monotonic()
        found = try_cell(cell)
        what = "; ".join(f"{name}: {why}" for name, why in found.items()) or "all arrives"
        say(f"{number}/{len(cells)} {cell}: {what} ({time.monotonic() - begun:.1f} s)")
        yield cell, found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="tries every data path with every other")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    parser.add_argument("--cells", type=int, default=0, help="so many, chosen pairwise; 0 is all")
    parser.add_argument("--only", default="", help="cells with this in their name")
    options = parser.parse_args()
    cells = [cell for cell in all_cells() if options.only in str(cell)]
    if options.cells:
        print(f"seed {options.seed}", flush=True)
        cells = pairwise(cells, random.Random(options.seed), options.cells)

    def say(text: str) -> None:
        print(text, flush=True)

    failed = [str(cell) for cell, found in run(cells, say) if found]
    say(json.dumps({"cells": len(cells), "traffic": len(TRAFFIC), "failed": failed}))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
