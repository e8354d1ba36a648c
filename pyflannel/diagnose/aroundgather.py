"""Gathers `diagnose.around`. Reads only, and this network namespace alone."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.ip import IPAddress
from pyflannel.core.kind import Kinds
from pyflannel.diagnose.around import Around, LinkSeen, PeerRoutes
from pyflannel.diagnose.facts import NodeFacts
from pyflannel.diagnose.waygather import lookup
from pyflannel.kernel import process
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.limits import linux_version
from pyflannel.kernel.sysctl import read_sysctl
from pyflannel.report.model import PeerReport

CHILD_S: Final = 5.0
_ALL_NEIGHBOURS: Final = ("neigh", "show", "nud", "all")
MOST_PEERS: Final = 8
"""Peers whose routes are looked up; each costs three processes of some milliseconds."""
NETWORK_MANAGER: Final = Path("/run/NetworkManager/devices")
RESOLV_CONF: Final = Path("/etc/resolv.conf")
SYSTEMD: Final = Path("/run/systemd/system")
STATISTICS: Final = {4: Path("/proc/net/stat/arp_cache"), 6: Path("/proc/net/stat/ndisc_cache")}
FREE_SINCE: Final = (5, 0)
"""Before, every entry counted against the limit (commit 58956317c8de)."""
_STA_UNSYNC: Final = 0x40
"""linux/timex.h."""
_TIMEX_SIZE: Final = 208
_STATUS_OFFSET: Final = 40
"""Of `status` in `struct timex` on 64 bits: modes and padding, offset, freq, maxerror, esterror."""


async def gather_around(netlink: Netlink, kinds: Kinds, node: NodeFacts, state_dir: str) -> Around:
    """The machine around a node.

    Args:
        netlink: of this network namespace.
        kinds: of backends.
        node: the facts about the node.
        state_dir: where its daemon keeps its state.
    """
    links = await _links(netlink, kinds)
    names = {*links, "all", "default"}
    unit, enabled = await _unit()
    return Around(
        links=links,
        sysctls=_sysctls(names),
        routes=await _routes(node),
        rules=await _rules(),
        ra_defaults=await _ra_defaults(),
        conntrack=_pair("net.netfilter.nf_conntrack_count", "net.netfilter.nf_conntrack_max"),
        arp=await _neighbours(4),
        ndisc=await _neighbours(6),
        managed=_managed(links),
        nameservers=_nameservers(),
        unit=unit,
        enabled=enabled,
        synchronised=_synchronised(),
        free=_free(state_dir),
    )


async def _links(netlink: Netlink, kinds: Kinds) -> dict[str, LinkSeen]:
    try:
        links, addresses = await netlink.links(), await netlink.addresses()
    except FlannelError:
        return {}
    return {
        link.name: LinkSeen(
            kind=link.kind,
            index=link.index,
            mtu=link.mtu,
            up=link.up,
            carrier=link.running,
            addresses=tuple(a.interface for a in addresses if a.index == link.index),
            ours=kinds.is_device(link.name, link.kind),
        )
        for link in links
    }


def _sysctls(devices: set[str]) -> dict[str, str]:
    names = ["net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"]
    for device in devices:
        names += [f"net/ipv4/conf/{device}/{each}" for each in ("forwarding", "rp_filter")]
        names += [
            f"net/ipv6/conf/{device}/{each}" for each in ("forwarding", "disable_ipv6", "accept_ra")
        ]
    found = {}
    for name in names:
        value = _sysctl(name)
        if value is not None:
            found[name] = value
    return found


def _sysctl(name: str) -> str | None:
    try:
        return read_sysctl(name)
    except (FlannelError, ValueError):
        return None


async def _routes(node: NodeFacts) -> tuple[PeerRoutes, ...]:
    report = node.report
    if report is None:
        return ()
    peers = [peer for peer in report.peers if peer.state not in {"ignored", "failing"}]
    asked = [_of_peer(node, peer, version) for peer in peers[:MOST_PEERS] for version in (4, 6)]
    return tuple(found for found in await asyncio.gather(*asked) if found is not None)


async def _of_peer(node: NodeFacts, peer: PeerReport, version: int) -> PeerRoutes | None:
    own, bridge, tunnel = (
        node.subnet_of(version),
        node.bridge_of(version),
        node.tunnel_of(version),
    )
    named = peer.subnet if version == 4 else peer.ipv6_subnet
    public = peer.public_ip if version == 4 else peer.public_ipv6
    if own is None or not named or not public or not tunnel:
        return None
    theirs = ip_network(named)
    here, there = (each[min(2, each.num_addresses - 1)] for each in (own, theirs))
    return PeerRoutes(
        subnet=named,
        version=version,
        public=public,
        to_pods=await lookup(there, here if bridge else None, bridge or ""),
        from_pods=await lookup(here, there, tunnel),
        to_node=await lookup(ip_address(public)),
    )


async def _json(words: Sequence[str]) -> list[Mapping[str, object]]:
    try:
        done = await process.run(list(words), timeout_s=CHILD_S)
        found = json.loads(done.stdout or b"[]")
    except (CommandError, ValueError):
        return []
    return found if isinstance(found, list) else []


async def _rules() -> tuple[tuple[int, str], ...]:
    found = await _json(["ip", "-j", "rule"])
    return tuple((int(str(each.get("priority", 0))), str(each.get("table", ""))) for each in found)


async def _ra_defaults() -> tuple[str, ...]:
    found = await _json(["ip", "-j", "-6", "route", "show", "default"])
    return tuple(str(each.get("dev", "")) for each in found if each.get("protocol") == "ra")


def _pair(count: str, limit: str) -> tuple[int, int] | None:
    here, most = _sysctl(count), _sysctl(limit)
    return (int(here), int(most)) if here and most and int(most) > 0 else None


async def _neighbours(version: int) -> tuple[int, int] | None:
    """All namespaces share one table. Only the first can read its limit.

    What is there for good does not count against it (net/core/neighbour.c, neigh_update_gc_list),
    and the overlay has such an entry for each peer. Those of other namespaces are not seen.
    """
    limit = _sysctl(f"net.ipv{version}.neigh.default.gc_thresh3")
    try:
        entries = int(STATISTICS[version].read_text().splitlines()[1].split()[0], 16)
    except (OSError, IndexError, ValueError):
        return None
    if not limit:
        return None
    if linux_version() >= FREE_SINCE:
        entries -= sum(map(is_free, await _json(["ip", "-j", f"-{version}", *_ALL_NEIGHBOURS])))
    return max(0, entries), int(limit)


def is_free(entry: Mapping[str, object]) -> bool:
    """Whether an entry, as `ip -j neigh` tells it, does not count against the table's limit."""
    state = entry.get("state")
    return "extern_learn" in entry or (isinstance(state, list) and "PERMANENT" in state)


def _managed(links: Mapping[str, LinkSeen]) -> tuple[str, ...]:
    found = []
    for name, link in links.items():
        try:
            text = (NETWORK_MANAGER / str(link.index)).read_text(errors="replace")
        except OSError:
            continue
        if "managed=true" in text.split():
            found.append(name)
    return tuple(found)


def _nameservers() -> tuple[IPAddress, ...]:
    found = []
    try:
        lines = RESOLV_CONF.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        words = line.split()
        if words[:1] == ["nameserver"] and len(words) > 1:
            try:
                found.append(ip_address(words[1].partition("%")[0]))
            except ValueError:
                continue
    return tuple(found)


async def _unit() -> tuple[str, str]:
    if not SYSTEMD.is_dir():
        return "", ""
    try:
        words = ["systemctl", "show", "pyflannel.service"]
        done = await process.run([*words, "-p", "ActiveState,LoadState,UnitFileState"], timeout_s=2)
    except CommandError:
        return "", ""
    state = dict(
        line.split("=", 1)
        for line in done.stdout.decode(errors="replace").splitlines()
        if "=" in line
    )
    if state.get("LoadState") != "loaded":
        return "", ""
    active = state.get("ActiveState", "")
    return "" if active == "active" else active, state.get("UnitFileState", "")


def _synchronised() -> bool | None:
    """Whether the clock is synchronised (adjtimex(2))."""
    buffer = ctypes.create_string_buffer(_TIMEX_SIZE)
    try:
        if ctypes.CDLL(None).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status = int.from_bytes(buffer.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little", signed=True)
    return not status & _STA_UNSYNC


def _free(path: str) -> int | None:
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
