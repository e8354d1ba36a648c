"""Gathers what `diagnose.checks` judges. Reads only, and this network namespace alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.core import subnetenv
from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.kind import Kinds
from pyflannel.diagnose import iptables, nftables
from pyflannel.diagnose.facts import LinkFact, NodeFacts, backend_of
from pyflannel.diagnose.filter import Table
from pyflannel.kernel import process
from pyflannel.kernel.base import Netlink
from pyflannel.kernel.lock import our_daemons, upstream_daemons
from pyflannel.kernel.nft import Nft
from pyflannel.kernel.sysctl import read_sysctl
from pyflannel.report.model import NodeReport

CHILD_S: Final = 10.0
"""For the rules of a node with 10,000 services on a busy machine."""
TOOLS: Final = (("iptables", 4), ("ip6tables", 6))
LEGACY_TABLES: Final = {
    4: Path("/proc/net/ip_tables_names"),
    6: Path("/proc/net/ip6_tables_names"),
}
"""They name the tables of legacy iptables. If they are empty the tool is not run, because running
it makes tables."""


async def gather(
    netlink: Netlink, kinds: Kinds, report: NodeReport | None, silence: str, subnet_file: str
) -> NodeFacts:
    """All facts about this node.

    Args:
        netlink: of this network namespace.
        kinds: of backends.
        report: what the daemon says of itself; `None` if none answers.
        silence: why none does.
        subnet_file: of the daemon.
    """
    unseen: dict[str, str] = {}
    links = await _links(netlink, unseen)
    return NodeFacts(
        report=report,
        silence=silence,
        subnet_file=subnet_file,
        env=_env(subnet_file),
        ip_forward=_forwards(unseen),
        links=links,
        tables=await _tables(unseen),
        modules=_modules(kinds, report, links, unseen),
        flanneld=tuple(upstream_daemons()),
        daemons=tuple(our_daemons()),
        unseen=unseen,
    )


def _env(path: str) -> subnetenv.SubnetEnv | None:
    try:
        return subnetenv.parse(Path(path).read_text(errors="replace"))
    except OSError:
        return None


def _forwards(unseen: dict[str, str]) -> bool | None:
    try:
        return read_sysctl("net.ipv4.ip_forward") != "0"
    except FlannelError as error:
        unseen["ip_forward"] = str(error)
        return None


async def _links(netlink: Netlink, unseen: dict[str, str]) -> dict[str, LinkFact] | None:
    try:
        links, addresses = await netlink.links(), await netlink.addresses()
    except FlannelError as error:
        unseen["devices"] = str(error)
        return None
    return {
        link.name: LinkFact(
            up=link.up,
            addresses=tuple(each.interface for each in addresses if each.index == link.index),
        )
        for link in links
    }


def _modules(
    kinds: Kinds,
    report: NodeReport | None,
    links: Mapping[str, LinkFact] | None,
    unseen: dict[str, str],
) -> dict[str, bool]:
    """The module that the backend needs, unless a device shows that it is loaded."""
    try:
        kind = kinds.get(backend_of(report))
    except FlannelError as error:
        unseen["backend"] = str(error)
        return {}
    if kind is None or not kind.module:
        return {}
    devices = report.network.devices if report is not None and report.network is not None else {}
    if links is not None and links.keys() & devices:
        return {}
    there = has_module(kind.module)
    return {} if there is None else {kind.module: there}


def has_module(name: str, root: Path = Path("/")) -> bool | None:
    """Whether the running kernel has a module; `None` if there is no list of its modules."""
    if (root / "sys/module" / name).is_dir():
        return True
    directory = root / "lib/modules" / os.uname().release
    listed = []
    for index in ("modules.builtin", "modules.dep"):
        try:
            listed.append((directory / index).read_text())
        except OSError:
            return None
    files = (line.partition(":")[0] for text in listed for line in text.splitlines())
    return any(Path(file).name.partition(".")[0].replace("-", "_") == name for file in files)


async def _tables(unseen: dict[str, str]) -> list[Table]:
    """The firewall's tables.

    Tables that iptables made in nf_tables are read by its own tool, which knows its extensions.
    """
    found: list[Table] = []
    named: set[str] = set()
    for tool, version in TOOLS:
        names = await _saved([f"{tool}-nft-save"], tool, found, version)
        family = "ip" if version == 4 else "ip6"
        named |= {f"{family} {name.removeprefix(tool + ' ')}" for name in names}
    try:
        listing = await Nft().ask({"list": {"ruleset": None}})
    except CommandError as error:
        unseen["nftables"] = str(error)
    else:
        found += [table for table in nftables.read(listing) if table.name not in named]
    for tool, version in TOOLS:
        try:
            legacy = LEGACY_TABLES[version].read_text().split()
        except OSError:
            legacy = []
        command = f"{tool}-legacy"
        if legacy and not await _saved([f"{command}-save"], command, found, version):
            unseen[command] = f"{command}-save does not tell its rules"
    return found


async def _saved(command: list[str], tool: str, found: list[Table], version: int) -> set[str]:
    """Adds the tables that a tool lists; their names. None if it is not there or fails."""
    try:
        done = await process.run(command, timeout_s=CHILD_S)
    except CommandError:
        return set()
    tables = iptables.read(done.stdout.decode(errors="replace"), tool, version)
    found += tables
    return {table.name for table in tables}
