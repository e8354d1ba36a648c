"""The network config in etcd: waited for, followed, looked at."""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Callable
from typing import Final

from pyflannel.aio.backoff import Backoff
from pyflannel.aio.clock import Clock
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.errors import LeaseError, StoreConfigError, StoreDenied, StoreError
from pyflannel.core.kind import Kinds
from pyflannel.core.trouble import TroubleLog
from pyflannel.foreign import escape, shown
from pyflannel.logs import get_logger
from pyflannel.store.configlog import log_problems
from pyflannel.store.etcd import codec
from pyflannel.store.etcd.base import DeleteEvent, PutEvent, Store

log = get_logger(__name__)

CONFIG_RETRY_S: Final = 1.0
"""Between two looks for the network config (upstream's interval)."""


class ConfigKey:
    """The key `config` below a prefix.

    Args:
        store: the etcd cluster.
        prefix: what all keys begin with.
        kinds: the backends that a config may ask for.
        clock: the time.
        tell: told in words what is being waited for, and `""` when it is over.
    """

    def __init__(
        self, store: Store, prefix: str, kinds: Kinds, clock: Clock, tell: Callable[[str], None]
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._kinds = kinds
        self._clock = clock
        self._tell = tell
        self.revision = 0
        """Of the config that was given last; 0 before the first one."""

    async def wait(self) -> NetworkConfig:
        """The config as soon as there is one that is right.

        Raises:
            StoreDenied: etcd refuses us; waiting would not help.
            StoreConfigError: the way to etcd is configured wrongly.
        """
        key = codec.config_key(self._prefix)
        backoff = Backoff()
        trouble = TroubleLog()

        def news(kind: str, reason: str, waiting_for: str) -> bool:
            self._tell(waiting_for)
            return trouble.failed(self._clock.monotonic(), kind, reason) is not None

        while True:
            try:
                found = await self._store.get(key)
            except (StoreDenied, StoreConfigError):
                raise
            except StoreError as error:
                waiting = f"waiting for etcd at {self._store.describe()}: {error.kind}"
                if news(error.kind, str(error), waiting):
                    log.warning(
                        "Couldn't fetch network config: etcd does not answer, waiting",
                        endpoints=self._store.describe(),
                        key=shown(key),
                        error=error,
                    )
                await self._clock.sleep(backoff.next())
                continue
            backoff.reset()
            if not found.kvs:
                waiting = f"waiting for the network config {shown(key)} in etcd"
                if news("missing", "missing", waiting):
                    in_v2 = await self._store.holds_v2(key)
                    log.warning(
                        "Couldn't fetch network config: flannel config not found in etcd store. "
                        "Did you create your config using etcdv3 API?",
                        endpoints=self._store.describe(),
                        prefix=self._prefix,
                        key=shown(key),
                        v2="the key is in etcd's v2 store, which is not read" if in_v2 else None,
                        remedy=self._set_command(from_v2=bool(in_v2)),
                    )
            else:
                parsed = parse_network_config(found.kvs[0].value, self._kinds)
                revision = found.kvs[0].mod_revision
                if parsed.config is not None:
                    self.revision = revision
                    log_problems(parsed.problems, shown(key))
                    lasted = trouble.over(self._clock.monotonic())
                    if lasted is not None:
                        log.info("the network config is there", after_s=round(lasted, 1))
                    self._tell("")
                    return parsed.config
                waiting = f"waiting for a valid network config in {shown(key)} (r{revision})"
                if news(f"r{revision}", parsed.errors[0].message, waiting):
                    log_problems(parsed.problems, shown(key))
            await self._clock.sleep(CONFIG_RETRY_S)

    def _set_command(self, *, from_v2: bool) -> str:
        """The command that writes the config where this node reads it."""
        endpoints = self._store.describe().replace(", ", ",")
        words = [f"--etcd-endpoints={endpoints}", f"--etcd-prefix={escape(self._prefix)}"]
        command = ["pyflannel", "config", "set", "-" if from_v2 else "FILE", *words]
        if not from_v2:
            return shlex.join(command)
        get = [
            "etcdctl",
            f"--endpoints={endpoints}",
            "get",
            codec.config_key(self._prefix).decode(),
        ]
        return f"ETCDCTL_API=2 {shlex.join(get)} | {shlex.join(command)}"

    async def changes(self) -> AsyncIterator[bytes | None]:
        """The raw config whenever it is written or deleted (`None`), without end."""
        key = codec.config_key(self._prefix)
        backoff = Backoff()
        known = self.revision
        while True:
            try:
                found = await self._store.get(key)
                revision = found.kvs[0].mod_revision if found.kvs else 0
                if known != revision:
                    known = revision
                    yield found.kvs[0].value if found.kvs else None
                async for response in self._store.watch_prefix(key, found.header.revision + 1):
                    backoff.reset()
                    for event in response.events:
                        if isinstance(event, PutEvent) and event.kv.key == key:
                            known = event.mod_revision
                            yield event.kv.value
                        elif isinstance(event, DeleteEvent) and event.key == key:
                            known = 0
                            yield None
            except StoreError as error:
                # The feed of the leases meets the same failure, and tells.
                log.debug("watch of the config broke", error=error)
                await self._clock.sleep(max(backoff.next(), CONFIG_RETRY_S))

    async def newer(self, than: NetworkConfig) -> NetworkConfig | None:
        """Another valid config than the one in force, if etcd has one now."""
        try:
            found = await self._store.get(codec.config_key(self._prefix))
        except StoreError as error:
            # The attempt that follows meets the same failure, and tells.
            log.debug("network config not read", error=error)
            return None
        if not found.kvs or found.kvs[0].mod_revision == self.revision:
            return None
        parsed = parse_network_config(found.kvs[0].value, self._kinds)
        if parsed.config is None or parsed.config == than:
            return None
        self.revision = found.kvs[0].mod_revision
        return parsed.config


class ConfigInForce:
    """The network config that this node goes by, and one that is ahead of it.

    Args:
        source: where configs come from.
        lease_ttl_s: how long a lease lasts, 0 for what the config says.
    """

    def __init__(self, source: ConfigKey, lease_ttl_s: int) -> None:
        self._source = source
        self._lease_ttl_s = lease_ttl_s
        self._settled: NetworkConfig | None = None
        self.ahead: NetworkConfig | None = None
        """Another valid one that the store has by now."""

    @property
    def settled(self) -> NetworkConfig:
        """The one in force.

        Raises:
            LeaseError: none has been read yet.
        """
        if self._settled is None:
            raise LeaseError("the network config has not been read yet")
        return self._settled

    @property
    def ttl_s(self) -> int:
        """For how many seconds a lease is asked."""
        return self._lease_ttl_s or self.settled.lease_ttl

    async def wait(self) -> NetworkConfig:
        """As `ConfigKey.wait`; what it gives is in force."""
        config = await self._source.wait()
        self.take(config)
        return config

    async def look(self) -> bool:
        """Notes another valid config than the one in force; whether the store has one now."""
        newer = await self._source.newer(self.settled)
        if newer is None:
            return False
        self.ahead = newer
        return True

    def take(self, config: NetworkConfig) -> None:
        """Puts a config in force."""
        self._settled, self.ahead = config, None
