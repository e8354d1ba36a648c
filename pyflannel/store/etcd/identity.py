"""Which cluster is ours: a member that was set up anew as a cluster of its own is a stranger.

Every answer of etcd names its cluster. A restore from a snapshot makes a new cluster under the old
endpoints, and has to be followed; a single member that lost its data and was started as a cluster
of its own answers just as politely, has none of the leases, and must not be believed while the
others are out of reach. From one answer the two cannot be told apart; from all of them they can:

* more than half of the endpoints name the same new cluster, and none of them ours: it took our
  cluster's place, and is ours from now on;
* fewer do, and none of ours has answered for `ADOPT_AFTER_S`: the new one is followed as a
  *stranger*. What is known of the peers stays, and we are back as soon as one of ours answers.

With no memory (a first start) the first answers decide, if they agree.

Pure: takes the time, on the caller's monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from typing import Final

ADOPT_AFTER_S: Final = 600.0
"""Ten minutes without any member of ours. Traffic flows on without etcd, so waiting costs only what
changes meanwhile; and one member of three that was restored on purpose is used after that time."""
RECENT_S: Final = 15.0
"""An answer older than this says nothing about now; a round through three dead endpoints takes
nine."""


class Cluster(enum.Enum):
    """What an endpoint's answer means."""

    OURS = "ours"
    FOREIGN = "another cluster, not to be used"
    REPLACED = "the one that took the place of ours"
    STRANGER = "another cluster, used while ours does not answer"
    BACK = "ours, after a stranger was used"


class Identity:
    """Which cluster is ours.

    Args:
        endpoints: all that are configured.
        home: the cluster that a former run knew, 0 if there is no memory.
    """

    def __init__(self, endpoints: Collection[str], home: int, now: float) -> None:
        self._endpoints = endpoints
        self._heard = now
        self._seen: dict[str, tuple[int, float]] = {}
        self.home = home
        """The id of our cluster; 0 until one is known."""
        self.used = home
        """The id of the cluster that is used; another one than `home` if it is a stranger."""

    @property
    def is_stranger(self) -> bool:
        """Whether a stranger is used, because ours does not answer."""
        return self.used != self.home

    def follow(self, endpoints: Collection[str]) -> None:
        """There are other endpoints now; what is known of the clusters stays."""
        self._endpoints = endpoints

    def judge(self, endpoint: str, cluster: int, now: float) -> Cluster:
        """What it means that an endpoint names this cluster now."""
        self._seen[endpoint] = (cluster, now)
        if self.home == 0:
            self.home = self.used = cluster
        if cluster == self.home:
            was_stranger, self.used, self._heard = self.is_stranger, cluster, now
            return Cluster.BACK if was_stranger else Cluster.OURS
        if cluster == self.used:
            return Cluster.STRANGER
        recent = [named for named, at in self._seen.values() if now - at <= RECENT_S]
        if self.home not in recent and 2 * recent.count(cluster) > len(self._endpoints):
            self.home = self.used = cluster
            self._heard = now
            return Cluster.REPLACED
        if now - self._heard >= ADOPT_AFTER_S:
            self.used = cluster
            return Cluster.STRANGER
        return Cluster.FOREIGN

    def heard(self, now: float) -> None:
        """The cluster that is used has answered."""
        if not self.is_stranger:
            self._heard = now

    def agree(self, answers: Collection[int]) -> bool:
        """Whether first answers, of a start without memory, name one cluster or mostly one.

        Args:
            answers: the clusters named so far.
        """
        most = max((list(answers).count(named) for named in answers), default=0)
        return len(set(answers)) <= 1 or 2 * most > len(self._endpoints)
