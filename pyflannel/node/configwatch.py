"""The network config while a node runs: a change is reported, and takes effect at a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyflannel.aio.clock import Clock
from pyflannel.core.config import NetworkConfig, effective
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.ip import Family
from pyflannel.core.kind import Kinds
from pyflannel.logs import get_logger
from pyflannel.node.trouble import Trouble
from pyflannel.report.model import ConfigReport
from pyflannel.store.base import LeaseStore
from pyflannel.store.configlog import log_problems

log = get_logger(__name__)

BRIDGE_SYSCTL: Final = {
    Family.V4: Path("/proc/sys/net/bridge/bridge-nf-call-iptables"),
    Family.V6: Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
}


class ConfigWatch:
    """Compares what the store says with the config in force.

    Args:
        store: that has it.
        kinds: of backends, to read it.
        config: in force.
        clock: the time.
    """

    def __init__(
        self, store: LeaseStore, kinds: Kinds, config: NetworkConfig, clock: Clock
    ) -> None:
        self._store = store
        self._kinds = kinds
        self._config = config
        self._pending = Trouble(clock)

    async def run(self) -> None:
        """Watches for as long as the store does."""
        async for raw in self._store.watch_config():
            self._judge(raw)

    def report(self) -> ConfigReport:
        """The config in force, and why the store's is another one."""
        return ConfigReport(
            effective=effective(self._config),
            pending=self._pending.text,
            pending_since=self._pending.since,
        )

    def _judge(self, raw: bytes | None) -> None:
        where = self._store.describe()
        if raw is None:
            log.error("network config was deleted; going on with the old one", where=where)
            self._pending.set("it was deleted")
            return
        parsed = parse_network_config(raw, self._kinds, allots=self._store.allots)
        if parsed.config is None:
            log.error("network config is wrong now; going on with the old one", where=where)
            log_problems(parsed.problems, where)
            self._pending.set(f"it is wrong now: {parsed.errors[0].message}")
        elif parsed.config != self._config:
            log.warning("network config changed; it takes effect at a restart", where=where)
            self._pending.set("it has changed; a restart uses the new one")
        else:
            self._pending.set("")


def warn_about_bridges(config: NetworkConfig) -> None:
    """Upstream refuses to start without br_netfilter; most set-ups never needed it."""
    if config.enable_nftables:
        return
    for family in config.families:
        if not BRIDGE_SYSCTL[family].exists():
            log.warning(
                "br_netfilter is not loaded: rules do not see traffic between containers of "
                "one bridge",
                missing=BRIDGE_SYSCTL[family],
                remedy="modprobe br_netfilter, if such traffic must pass the firewall",
            )
