"""What happens in a campaign, drawn from a seed: rounds of one or two faults that last for a while.

Pure: the same seed and number of faults give the same rounds. Which member leads at the time, and
which subnet a node has, is not known here; a fault finds that out when it is its turn.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

NODES: Final = 3
MEMBERS: Final = 3


class Area(enum.IntEnum):
    """What a fault is about; two faults of one round are about different things.

    In this order they begin, so that a node is cut off before its key is taken, and a key is taken
    before the members that would accept that are gone. (They are healed in an order of their own.)
    """

    NETWORK = 1
    ACCESS = 2
    KEYS = 3
    SPACE = 4
    MEMBERS = 5
    DAEMON = 6


class Kind(enum.Enum):
    """All kinds of faults."""

    CUT_FROM_ONE = "node cut off from one member", Area.NETWORK
    CUT_FROM_TWO = "node cut off from two members", Area.NETWORK
    CUT_FROM_ALL = "node cut off from all members", Area.NETWORK
    COMPACTED = "history goes on and is compacted while a node is cut off", Area.NETWORK
    SLOW = "slow link of a node", Area.NETWORK
    LOSSY = "lossy link of a node", Area.NETWORK
    AUTH = "authentication switched on, and off again", Area.ACCESS
    PASSWORD = "password changed, in the nodes' files only later", Area.ACCESS
    ROLE = "the role may only read for a while", Area.ACCESS
    NOSPACE = "alarm NOSPACE", Area.SPACE
    KEY_DELETED = "own key deleted", Area.KEYS
    LEASE_REVOKED = "etcd lease revoked", Area.KEYS
    KEY_TAKEN = "own key overwritten by another address", Area.KEYS
    KEY_GARBLED = "own key overwritten by garbage", Area.KEYS
    LEASE_SHORT = "own key put on an etcd lease of 15 s", Area.KEYS
    EMPTIED = "all keys below subnets/ deleted", Area.KEYS
    LEADER_KILLED = "leader killed", Area.MEMBERS
    LEADER_FROZEN = "leader frozen", Area.MEMBERS
    MEMBER_KILLED = "member killed", Area.MEMBERS
    MEMBER_FROZEN = "member frozen", Area.MEMBERS
    QUORUM_LOST = "two members killed", Area.MEMBERS
    QUORUM_FROZEN = "two members frozen", Area.MEMBERS
    ALL_RESTARTED = "all members restarted", Area.MEMBERS
    CERTIFICATES = "authority and certificates exchanged, the nodes' only later", Area.MEMBERS
    LEARNER = "a learner under the fourth endpoint", Area.MEMBERS
    STRANGER = "a cluster of its own under the fourth endpoint", Area.MEMBERS
    REPLACED = "all members lose their data and form a new cluster", Area.MEMBERS
    RESTORED = "all members go back to an earlier state", Area.MEMBERS
    DAEMON_KILLED = "daemon killed, started later", Area.DAEMON
    DAEMON_FROZEN = "daemon frozen", Area.DAEMON

    @property
    def says(self) -> str:
        """The kind in words."""
        return self.value[0]

    @property
    def area(self) -> Area:
        """What it is about."""
        return self.value[1]


TAKES_KEYS: Final = frozenset(
    (Kind.KEY_DELETED, Kind.LEASE_REVOKED, Kind.KEY_TAKEN, Kind.KEY_GARBLED, Kind.LEASE_SHORT)
)
"""Peers drop the node's route while its key is away, as upstream's do; so packets may be lost."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and whom it is done to where its kind leaves that open."""

    kind: Kind
    node: int
    """From 1 on."""
    member: int
    """From 0 on."""

    def __str__(self) -> str:
        return f"{self.kind.says} [node {self.node}, member {self.member}]"

    @property
    def may_lose_packets_of(self) -> frozenset[int]:
        """Nodes whose pods need not be reached while this lasts."""
        if self.kind is Kind.EMPTIED:
            return frozenset(range(1, NODES + 1))
        return frozenset((self.node,)) if self.kind in TAKES_KEYS else frozenset()


@dataclass(frozen=True, slots=True)
class Round:
    """Faults that overlap, and how long they last."""

    faults: tuple[Fault, ...]
    hold_s: float

    @property
    def may_lose_packets_of(self) -> frozenset[int]:
        """As of a fault."""
        return frozenset[int]().union(*(fault.may_lose_packets_of for fault in self.faults))

    @property
    def is_overcome(self) -> bool:
        """Whether all nodes are well again while it lasts: etcd answers, and has other subnets."""
        return all(fault.kind.area is Area.KEYS for fault in self.faults)

    def __str__(self) -> str:
        return f"{' + '.join(map(str, self.faults))}, {self.hold_s:.1f} s"


APART: Final = frozenset((Kind.NOSPACE, Kind.RESTORED))
"""A restore is nothing without writes after the backup, which the alarm does not allow."""
TWO_AT_A_TIME: Final = 0.4
LONGEST_HOLD_S: Final = 8.0
"""Longer than a watch's silence (5 s) and a probe that fails (1.5 s), so that it is noticed."""


LONG_S: Final = 95.0
"""After one check and a little (75 s) a claim that nothing confirms has ended; and some seconds."""


def plan(seed: int, faults: int) -> list[Round]:
    """The rounds of a campaign; every kind comes before any comes again.

    The first is a long one, the same for all seeds but for the node: cut off *and* robbed.
    """
    chance = random.Random(seed)
    kinds = _decks(chance)
    node = chance.randrange(NODES) + 1
    robbed = (Fault(Kind.CUT_FROM_ALL, node, 0), Fault(Kind.KEY_TAKEN, node, 0))
    rounds = [Round(robbed, LONG_S)]
    drawn = len(robbed)
    held_back: list[Kind] = []
    while drawn < faults:
        first = held_back.pop() if held_back else next(kinds)
        chosen = [first]
        if chance.random() < TWO_AT_A_TIME and drawn + 1 < faults:
            second = next(kinds)
            if second.area is first.area or {first, second} == APART:
                held_back.append(second)
            else:
                chosen.append(second)
        drawn += len(chosen)
        node, member = chance.randrange(NODES) + 1, chance.randrange(MEMBERS)
        # Half of the time both hit the same node: cut off *and* robbed.
        other = node if chance.random() < 0.5 else chance.randrange(NODES) + 1
        made = [
            Fault(kind, whom, member) for kind, whom in zip(chosen, (node, other), strict=False)
        ]
        made.sort(key=lambda fault: fault.kind.area)
        rounds.append(Round(tuple(made), chance.uniform(0.5, LONGEST_HOLD_S)))
    return rounds


def _decks(chance: random.Random) -> Iterator[Kind]:
    while True:
        deck = list(Kind)
        chance.shuffle(deck)
        yield from deck
