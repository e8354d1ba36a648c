"""`pyflannel config check --node`: what a network config would meet on this machine.

Gathers what `core.nodecheck` judges: the machine's links, addresses and routes, and the leases in
etcd if it answers. Changes nothing, and works beside a running daemon.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import precheck, unit
from pyflannel.core import nodecheck
from pyflannel.core.commandline import RunDaemon, parse_daemon
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import FlannelError, StoreError
from pyflannel.core.fields import Problem
from pyflannel.core.ip import IPAddress
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.core.options import DaemonOptions, EtcdOptions
from pyflannel.core.overlap import Judge
from pyflannel.core.sysconfig import translate
from pyflannel.core.trust import ConfigOrigin
from pyflannel.kernel.lookup import find_interface
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.kernel.surroundings import look_around, look_for_obstacles
from pyflannel.node.envfiles import read_former
from pyflannel.store.record import LeaseRecord


def check(config: NetworkConfig, words: Sequence[str], etcd: EtcdOptions) -> list[Problem]:
    """Everything that this machine has to say to a config.

    Args:
        config: a valid one.
        words: the daemon's flags about this node that were given here.
        etcd: where the leases are.
    """
    try:
        options = _options(words)
    except FlannelError as error:
        return [Problem.error("", f"the daemon's options: {error}")]
    return asyncio.run(_check(config, options, etcd))


def _options(words: Sequence[str]) -> DaemonOptions:
    """The daemon's options as its unit has them, and as they are said here."""
    variables, _ = unit.environment()
    env = {**variables, **os.environ}
    parsed = parse_daemon(["pyflanneld", *translate([], env).argv, *words], env)
    return parsed.options if isinstance(parsed, RunDaemon) else DaemonOptions()


async def _check(config: NetworkConfig, options: DaemonOptions, etcd: EtcdOptions) -> list[Problem]:
    netlink = KernelNetlink()
    try:
        failed = await precheck.of_config(config, options, netlink, ConfigOrigin.ETCD)
        found = [Problem.error("", str(error)) for error in failed]
        leases, addresses, problems = await _leases(etcd)
        found += problems
        try:
            attrs = await _attrs(config, options, netlink)
            found += await _overlaps(config, options, etcd, netlink, leases, addresses, attrs)
        except FlannelError as error:
            if not failed:
                found.append(Problem.error("", str(error)))
        return found
    finally:
        await netlink.close()


async def _attrs(
    config: NetworkConfig, options: DaemonOptions, netlink: KernelNetlink
) -> LeaseAttrs:
    selection = await find_interface(netlink, options, config.families, ours=KINDS.is_device)
    interface = selection.interface
    return LeaseAttrs(public_ip=interface.public_ip, public_ipv6=interface.public_ipv6)


async def _overlaps(
    config: NetworkConfig,
    options: DaemonOptions,
    etcd: EtcdOptions,
    netlink: KernelNetlink,
    leases: Sequence[Lease],
    addresses: frozenset[IPAddress],
    attrs: LeaseAttrs,
) -> list[Problem]:
    public = [ip for ip in (attrs.public_ip, attrs.public_ipv6) if ip is not None]
    ours = KINDS.is_device
    obstacles = await look_for_obstacles(netlink, config.networks, addresses, public, ours=ours)
    remembered = LeaseRecord(options.state_dir, etcd.prefix).load()
    own = nodecheck.own(
        config,
        leases,
        attrs,
        obstacles,
        previous=read_former(options.subnet_file).previous_subnet,
        former=remembered.former if remembered is not None else None,
    )
    around = await look_around(netlink, config.networks, addresses, own.key, ours=ours)
    kind = KINDS.get(config.backend_type)
    mine = {lease.key for lease, _ in (own.plan.overlapping if own.plan is not None else ())}
    peers = [lease for lease in leases if lease.key != own.key and lease.key not in mine]
    return [
        *own.problems,
        *nodecheck.overlaps(
            config,
            Judge(around),
            peers,
            route_per_peer=kind is not None and kind.moves_packets and kind.route_per_peer,
        ),
    ]


async def _leases(
    options: EtcdOptions,
) -> tuple[list[Lease], frozenset[IPAddress], list[Problem]]:
    """The leases and where etcd is; a warning if it does not answer."""
    from pyflannel.store.etcd.feed import list_leases
    from pyflannel.store.etcd.store import EtcdStore

    try:
        store = EtcdStore(options)
    except StoreError as error:
        return [], frozenset(), [Problem.error("", f"the way to etcd: {error}")]
    try:
        listed = await list_leases(store, options.prefix)
    except StoreError as error:
        return (
            [],
            frozenset(store.addresses()),
            [
                Problem.warning(
                    "",
                    f"leases were not compared, etcd does not tell them: {error}",
                    "name etcd's endpoints with --etcd-endpoints or FLANNELD_ETCD_ENDPOINTS",
                )
            ],
        )
    else:
        return list(await listed.taken(options.prefix)), frozenset(store.addresses()), []
    finally:
        await store.close()
