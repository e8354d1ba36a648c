"""What it means when our own lease key is seen in the store: ours still, renewed, or lost.

Upstream looks at nothing but the key's existence, so a second host that writes the same key is
taken for a renewal and both route one subnet. Here every sighting is judged by value.
"""

from __future__ import annotations

import enum

from pyflannel.core.lease import Lease


class Verdict(enum.Enum):
    """What the store holds in the place of our lease."""

    OURS = "ours"
    """Our own last write."""
    TOUCHED = "touched"
    """The same claim, written by another daemon, which asks whether we are alive."""
    MOVED = "moved"
    """The same attributes on another etcd lease: re-granted by a program acting for this node."""
    RESERVED = "reserved"
    """The same attributes without an etcd lease: an operator made a reservation of it."""
    ALTERED = "altered"
    """Our public address, but other attributes, or a value that cannot be read."""
    TAKEN = "taken"
    """Another public address: the subnet belongs to another node now."""
    GONE = "gone"
    """Deleted or expired."""


def judge(ours: Lease, seen: Lease | None, *, readable: bool = True) -> Verdict:
    """Compares what we hold with what stands in the store under our key.

    The revision alone proves nothing: a store that was emptied or restored counts anew, and another
    node's write may get the number that ours had.

    Args:
        ours: the lease as we last wrote or adopted it.
        seen: what the store holds; `None` if the key is gone or its value cannot be read.
        readable: `False` if there is a value but it is garbage.
    """
    if not readable:
        return Verdict.ALTERED
    if seen is None:
        return Verdict.GONE
    if seen.attrs != ours.attrs:
        ours_at = (ours.attrs.public_ip, ours.attrs.public_ipv6)
        seen_at = (seen.attrs.public_ip, seen.attrs.public_ipv6)
        same_node = seen_at[0] == ours_at[0] if ours_at[0] is not None else seen_at[1] == ours_at[1]
        return Verdict.ALTERED if same_node else Verdict.TAKEN
    if seen.store_lease == ours.store_lease:
        return Verdict.OURS if seen.revision == ours.revision else Verdict.TOUCHED
    return Verdict.RESERVED if seen.is_reservation else Verdict.MOVED
