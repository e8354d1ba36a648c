"""Finds out what each data path can do on this machine, by starting it.

It does so in a new network namespace with a TUN and a socket, without a packet. So the result is
what the kernel grants or refuses now, and the node is not touched. Abilities that depend on the
external interface are missing, such as whether its driver cuts super packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from dataclasses import field
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from pyflannel.core.errors import DatapathError, FlannelError
from pyflannel.datapath import select
from pyflannel.datapath.base import Capabilities, DatapathConfig
from pyflannel.datapath.ebpf import attachment, cardgro, pins
from pyflannel.kernel import netns
from pyflannel.kernel.tun import open_tun
from pyflannel.kernel.udp import open_udp
from pyflannel.records import dataclass

MTU: Final = 1472
_DEVICE: Final = "flannel0"
_EBPF: Final = "ebpf"


@dataclass(frozen=True, slots=True, kw_only=True)
class PathFacts:
    """One data path."""

    name: str
    obstacle: str = ""
    """Why it cannot be used; empty if it can."""
    can: Mapping[str, str] = field(default_factory=dict)
    """Each of its possible abilities, with `on`, or `off` and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatapathFacts:
    """All data paths, the fastest first."""

    chosen: str
    """What `--datapath auto` takes; empty if it finds none."""
    why: str
    paths: tuple[PathFacts, ...]


def look() -> DatapathFacts:
    """Tries all of them.

    Raises:
        NotPermitted: a network namespace cannot be made.
    """
    try:
        choice = select.create(select.AUTO)
        chosen, why = choice.factory.capabilities.name, choice.reason
    except DatapathError as error:
        chosen, why = "", str(error)
    found: list[PathFacts] = []
    failed: list[FlannelError] = []

    def inside() -> None:
        try:
            netns.enter_new()
            found.extend(asyncio.run(_try_all()))
        except FlannelError as error:
            failed.append(error)

    # The namespace belongs to a thread, and ends with it.
    thread = threading.Thread(target=inside, name="data paths")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return DatapathFacts(chosen=chosen, why=why, paths=tuple(found))


async def _try_all() -> list[PathFacts]:
    found = []
    for name, probed in select.probe_all().items():
        ways = _ways() if name == _EBPF else {}
        if isinstance(probed, str):
            found.append(PathFacts(name=name, obstacle=probed, can=ways))
            continue
        try:
            granted = _start(name, probed)
        except (FlannelError, OSError) as error:
            found.append(PathFacts(name=name, obstacle=f"it does not start: {error}", can=ways))
        else:
            found.append(PathFacts(name=name, can=ways | granted))
    return found


def _start(name: str, probed: Capabilities) -> dict[str, str]:
    """What the kernel grants it at the start."""
    with contextlib.ExitStack() as undo:
        tun = open_tun(_DEVICE, vnet_hdr=probed.wants_vnet_hdr)
        undo.callback(tun.close)
        sock = undo.enter_context(open_udp(IPv4Address(0), 0))
        path = select.IMPLEMENTATIONS[name].make(
            DatapathConfig(
                tun_fd=tun.fd,
                udp_fd=sock.fileno(),
                tun_name=_DEVICE,
                tun_address=IPv4Address("192.0.2.0"),
                network=IPv4Network("192.0.2.0/24"),
                mtu=MTU,
                port=sock.getsockname()[1],
                underlay_name="lo",
                vnet_hdr=tun.vnet_hdr,
            )
        )
        undo.callback(path.stop)
        path.start()
        path.complete()
        granted = dict(path.capabilities.offloads)
    if name == _EBPF:
        # Here nothing is pinned, and the ways of attaching are listed separately.
        for way in attachment.probe_all():
            granted.pop(way, None)
        granted["card_gro"] = cardgro.ability()
        lasting = pins.is_bpffs(pins.BPFFS)
        granted["pinned"] = "on" if lasting else f"off (no BPF file system at {pins.BPFFS})"
    return granted


def _ways() -> dict[str, str]:
    return {
        way: f"off ({reason})" if reason else "on" for way, reason in attachment.probe_all().items()
    }
