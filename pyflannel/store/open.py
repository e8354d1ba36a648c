"""Which store keeps the leases, made from the daemon's options."""

from __future__ import annotations

from collections.abc import Callable

from pyflannel.aio.clock import Clock
from pyflannel.core.ip import SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.options import DaemonOptions
from pyflannel.logs import get_logger
from pyflannel.store.base import FindObstacles, LeaseStore
from pyflannel.store.record import LeaseRecord

log = get_logger(__name__)


def open_store(
    options: DaemonOptions,
    kinds: Kinds,
    previous: SubnetKey | None,
    clock: Clock,
    tell: Callable[[str], None],
    obstacles: FindObstacles,
) -> LeaseStore:
    """The store that the options name. Nothing is asked of it yet.

    Args:
        options: the daemon's.
        kinds: the backends that a network config may ask for.
        previous: the subnet that `subnet.env` names.
        clock: the time.
        tell: told in words what is being waited for, and `""` when that is over.
        obstacles: looks what a subnet must not take away from this node.

    Raises:
        StoreConfigError: the way to the store is configured wrongly.
    """
    if options.static_network:
        from pyflannel.store.static import StaticLeaseStore

        log.info("leases are those of a static network file", path=options.static_network)
        return StaticLeaseStore(
            options.static_network,
            node_name=options.node_name,
            kinds=kinds,
            clock=clock,
            obstacles=obstacles,
            tell=tell,
        )
    from pyflannel.store.etcd.manager import EtcdLeaseStore
    from pyflannel.store.etcd.store import EtcdStore

    etcd = EtcdStore(options.etcd)
    log.info(
        "Created subnet manager: Etcd Local Manager with Previous Subnet: "
        f"{previous.describe() if previous is not None else 'None'}",
        endpoints=etcd.describe(),
        prefix=options.etcd.prefix,
    )
    return EtcdLeaseStore(
        etcd,
        options.etcd.prefix,
        kinds=kinds,
        clock=clock,
        record=LeaseRecord(options.state_dir, options.etcd.prefix),
        previous=previous,
        renew_margin_s=options.subnet_lease_renew_margin * 60.0,
        lease_ttl_s=options.lease_ttl,
        obstacles=obstacles,
        tell=tell,
    )
