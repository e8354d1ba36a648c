"""The way to a lease while this node has none: attempts, and what may end the wait between them.

A node that waits listens to the network config and to the other leases (`listening.py`), and looks
in between as well. A single attempt is `acquire.py`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.aio.pace import paced
from pyflannel.core import freesubnets, ownleases
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import LeaseError, NetworkConfigChanged, StoreError, SubnetsExhausted
from pyflannel.core.holding import Holding
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.overlap import Obstacles
from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S, margin_for
from pyflannel.logs import get_logger
from pyflannel.store.base import FindObstacles
from pyflannel.store.etcd.acquire import Acquisition, aside, discard_store_lease
from pyflannel.store.etcd.base import Store
from pyflannel.store.etcd.feed import Listing, list_leases
from pyflannel.store.etcd.listening import Listeners
from pyflannel.store.etcd.netconfig import ConfigInForce
from pyflannel.store.etcd.own import OwnLease
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)

LISTEN_AFTER_S: Final = 0.5
"""A wait for a lease that is longer than this is worth two watches."""


class Seeking:
    """Attempts at a lease, for `own`.

    Args:
        config: what is in force.
        holding: told of a lease that was won.
        renew_margin_s: as in `EtcdLeaseStore`.
        obstacles: as in `EtcdLeaseStore`.
        won: told what was listed when the first lease was won.
        news: told that an attempt is worth making now.
    """

    def __init__(
        self,
        store: Store,
        prefix: str,
        clock: Clock,
        record: LeaseRecord,
        holding: Holding,
        own: OwnLease,
        config: ConfigInForce,
        *,
        renew_margin_s: float,
        obstacles: FindObstacles,
        rng: random.Random,
        won: Callable[[Listing], None],
        news: Callable[[], None],
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._record = record
        self._holding = holding
        self._own = own
        self._config = config
        self._margin_s = renew_margin_s
        self._find_obstacles = obstacles
        self._random = rng
        self._won = won
        self._news = news
        self._acquisition: Acquisition | None = None
        self._listeners = Listeners(
            store, prefix, clock, config=self._look_at_config, room=self._make_use_of_room
        )
        self._listed: Listing | None = None
        self._waits_for_room = False
        self.taken = False
        """Whether the subnet that we had is another node's, now that we have got none."""

    async def previous(self, attrs: LeaseAttrs) -> LeaseAttrs | None:
        """What the store holds under our public IP: the attributes of our former run.

        A lease of ours under another address does not count: the machine that was copied onto this
        one may hold it, and two nodes must not publish one VTEP MAC.

        Args:
            attrs: our addresses; the rest of it does not matter.
        """
        self._listed = listed = await list_leases(self._store, self._prefix)
        config, remembered = self._config.settled, self._record.load()
        work = functools.partial(
            ownleases.own_leases,
            listed.leases,
            attrs,
            config,
            previous=self._own.previous,
            former=remembered.former if remembered is not None else None,
            intended=remembered.intended if remembered is not None else None,
        )
        own = await aside(len(listed.leases), work)
        if not own or not ownleases.is_under_our_address(own[0], attrs, config):
            return None
        return own[0].attrs

    async def attempt(self) -> None:
        """One attempt; afterwards the lease is held.

        Raises:
            NetworkConfigChanged: there is another config now.
            StoreError, LeaseError: why it is not.
        """
        acquisition = self._acquisition
        if acquisition is None:
            acquisition = self._acquisition = self._new_acquisition()
        elif not self._listeners.listening:
            await self._look_at_config()
        if self._config.ahead is not None:
            raise NetworkConfigChanged(
                "the network config changed before a subnet was free; "
                "starting over with the new one"
            )
        lease = await acquisition.attempt(self._own.wanted)
        self._holding.won(*acquisition.term)
        self._own.adopt(lease)
        if acquisition.listed is not None and self._own.loss is None:
            self._won(acquisition.listed)
        await self.stop()
        loss, self._own.loss, self.taken = self._own.loss, None, False
        if loss is not None:
            former = loss.lease
            if lease.store_lease != former.store_lease:
                await discard_store_lease(self._store, former.store_lease)
            log.warning(
                "subnet lease is back" if lease.key == former.key else "subnet changed",
                subnet=lease.key.describe(),
                former=former.key.describe(),
            )

    def divide_anew(self) -> bool:
        """Goes by the config that is ahead if only the division of the network differs.

        Returns:
            `False` if it is another network, to which a running node cannot follow.
        """
        config = self._config.ahead
        if config is None or not config.allots_differently(self._config.settled):
            return False
        self._config.take(config)
        if self._acquisition is not None:
            self._acquisition.config = config
        return True

    async def missed(self, error: StoreError | LeaseError) -> None:
        """Sees to what may end the wait, after an attempt that failed."""
        self._waits_for_room = isinstance(error, SubnetsExhausted)
        if isinstance(error, LeaseError):  # etcd was read, and what it says still holds
            self.taken = await self._is_taken()
        if self._holding.step().at - self._clock.monotonic() >= LISTEN_AFTER_S:
            self._listeners.start()

    async def stop(self) -> None:
        """Ends what an attempt leaves behind while it waits for the next one."""
        acquisition, self._acquisition = self._acquisition, None
        await self._listeners.stop()
        if acquisition is not None:
            await acquisition.close()

    async def _is_taken(self) -> bool:
        """Whether the subnet that we had is another node's, now that we have got none."""
        if self._own.loss is not None:
            # In a full network it is among those that the others have: it is taken back first.
            return self._own.loss.to_another or self._waits_for_room
        listed = self._acquisition.listed if self._acquisition is not None else None
        if self._own.previous is None or listed is None:
            return False
        # None of these is ours, for then we would have it.
        holders = [
            lease.key
            async for lease in paced(await listed.taken(self._prefix))
            if freesubnets.overlap(lease.key, self._own.previous)
        ]
        return bool(holders)

    def _new_acquisition(self) -> Acquisition:
        ttl_s = self._config.ttl_s
        self._holding.renew_before_end(
            margin_for(ttl_s, self._margin_s, usual_ttl_s=DEFAULT_LEASE_TTL_S)
        )
        remembered = self._record.load()
        listed, self._listed = self._listed, None
        return Acquisition(
            self._store,
            self._prefix,
            self._config.settled,
            self._clock,
            self._random,
            ttl_s=ttl_s,
            previous=self._own.previous,
            former=remembered.former if remembered is not None else None,
            intended=remembered.intended if remembered is not None else None,
            intend=self._intend,
            obstacles=self._obstacles,
            listed=listed,
        )

    def _intend(self, lease: Lease) -> None:
        self._own.coming = lease.store_lease
        self._record.intend(lease)

    async def _obstacles(self, config: NetworkConfig, attrs: LeaseAttrs) -> Obstacles | None:
        published = (attrs.public_ip, attrs.public_ipv6)
        return await self._find_obstacles(
            config.networks, self._store.addresses(), [ip for ip in published if ip is not None]
        )

    async def _make_use_of_room(self) -> None:
        # Who waits for a public IP is told nothing by that: it asks the other node now and then.
        if self._waits_for_room:
            await self._wake()

    async def _wake(self) -> None:
        self._holding.wake(self._clock.monotonic())
        self._news()

    async def _look_at_config(self) -> None:
        if await self._config.look():
            await self._wake()
