"""Which store keeps the leases, made from the daemon's options."""

from __future__ import annotations

import os
from collections.abc import Callable

from pyflannel.aio.clock import Clock
from pyflannel.core.ip import SubnetKey
from pyflannel.core.kind import Kinds
from pyflannel.core.kube.options import KubernetesOptions
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
    if options.kube_subnet_mgr:
        return _open_kubernetes(options.kube, kinds, clock, tell)
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


def _open_kubernetes(
    options: KubernetesOptions, kinds: Kinds, clock: Clock, tell: Callable[[str], None]
) -> LeaseStore:
    from pyflannel.store.kubernetes.access import find_access
    from pyflannel.store.kubernetes.manager import KubernetesLeaseStore
    from pyflannel.store.kubernetes.transport import HttpTransport

    access = find_access(options.kubeconfig_file, options.api_url, os.environ)
    log.info("leases are those of Kubernetes' nodes", server=access.server)
    return KubernetesLeaseStore(
        HttpTransport(access),
        prefix=options.key_prefix,
        node_name=options.node_name,
        pod=(options.pod_namespace, options.pod_name),
        net_config=options.net_config_path,
        kinds=kinds,
        clock=clock,
        set_condition=options.set_node_network_unavailable,
        tell=tell,
    )
