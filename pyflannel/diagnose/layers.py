"""What the answers of a peer's layers mean together. Values in, values out.

A layer is one test: the node outside the tunnel, its overlay address through the tunnel, a large
packet, its bridge, a pod, a port. Each needs all that the ones before it need, and one thing more.
So the first that fails shows where the fault is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from pyflannel.records import dataclass


class Ask(StrEnum):
    """The tests, in this order."""

    BESIDE = "beside the tunnel"
    TUNNEL = "through the tunnel"
    LARGE = "large packet"
    BRIDGE = "its bridge"
    POD = "pod"
    POD_LARGE = "large packet to the pod"
    TCP = "TCP"


class Outcome(StrEnum):
    """The result of a test."""

    OK = "ok"
    LOST = "lost"
    NOT_TRIED = "not tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One test and its result."""

    ask: Ask
    target: str
    outcome: Outcome
    detail: str = ""
    """The round trip, how many were lost, why it was not tried."""
    passed: int | None = None
    """Of a large packet: bytes of the largest that was answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What follows."""

    well: bool
    text: str
    remedy: str = ""


def verdict(layers: Sequence[Layer], carrier: str, unprogrammed: str = "") -> Verdict:
    """The first fault, or that there is none.

    Args:
        layers: in order, without those that were not asked for.
        carrier: how the overlay's packets look on the underlay: `UDP port 8472`, `IP protocol 4`;
            empty without a tunnel.
        unprogrammed: why this node has no route to the peer; empty if it has one.
    """
    if unprogrammed:
        return Verdict(
            well=False,
            text=f"this node has no route to that peer: {unprogrammed}",
            remedy="pyflannel status says more",
        )
    lost = {layer.ask: layer for layer in layers if layer.outcome is Outcome.LOST}
    answered = {layer.ask for layer in layers if layer.outcome is Outcome.OK}
    for found in _faults(lost, answered, carrier):
        return found
    return Verdict(well=True, text="all layers that were tried answer")


def _faults(lost: dict[Ask, Layer], answered: set[Ask], carrier: str) -> Iterator[Verdict]:
    behind = answered & {Ask.POD, Ask.TCP, Ask.BRIDGE}
    if Ask.TUNNEL in lost and not behind:
        if Ask.BESIDE in answered:
            yield Verdict(
                well=False,
                text="the node answers, but its overlay address does not: the tunnel between the "
                f"two is broken. Most often a firewall drops {carrier or 'the packets'}, on either "
                "node or between them; or the peer's daemon has never run",
                remedy="pyflannel doctor on both nodes; open it in the provider's firewall, both "
                "ways",
            )
        yield Verdict(
            well=False,
            text="neither the node nor its overlay address answers: the node is down, or ping is "
            "dropped on the whole path",
            remedy="look at that node",
        )
    for ask in (Ask.LARGE, Ask.POD_LARGE):
        if ask in lost and (Ask.TUNNEL in answered or Ask.POD in answered):
            passed = lost[ask].passed
            most = f"; the largest that passed had {passed} bytes" if passed is not None else ""
            yield Verdict(
                well=False,
                text=f"small packets pass, large ones do not{most}: the path between the nodes "
                "has a smaller MTU than their interfaces",
                remedy="set MTU in the Backend of the network config, or "
                "repair the link with the smaller MTU",
            )
    if Ask.POD in lost and Ask.TCP not in answered:
        yield Verdict(
            well=False,
            text="the peer answers, but the pod does not: packets are lost on the peer, in its "
            "forward chains or at the bridge, or there is no such pod",
            remedy="pyflannel doctor on the peer",
        )
    if Ask.TCP in lost:
        yield Verdict(
            well=False,
            text="ping works, but TCP does not: a firewall drops that port, or a checksum that a "
            "device should finish is wrong when it arrives",
            remedy="try another --port; then ethtool -K DEVICE tx-checksum-ip-generic off for the "
            "tunnel's device, on both nodes; with vxlan TxChecksumOffload in Backend keeps it so",
        )
    if Ask.TUNNEL in lost and behind:
        yield Verdict(
            well=True,
            text="what is behind the peer's overlay address answers, and the address does not: "
            "the tunnel works. Something on the peer drops ping to that address, most often its "
            "firewall; pyflannel status says of such a peer that it is down",
            remedy="let ping in on the peer, from the overlay's network",
        )
    if Ask.BESIDE in lost and not carrier:
        yield Verdict(well=False, text="the node does not answer ping", remedy="look at that node")
