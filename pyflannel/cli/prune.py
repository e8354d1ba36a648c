"""`pyflannel leases prune`: leases whose nodes have been silent, as this node's daemon saw it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

from pyflannel.aio.clock import SystemClock
from pyflannel.cli import status
from pyflannel.cli.common import with_store
from pyflannel.cli.shapes import PruneJson
from pyflannel.core.errors import EXIT_OK, EXIT_UNAVAILABLE, FlannelError, LeaseError, UsageError
from pyflannel.core.ip import SubnetKey, parse_subnet_key
from pyflannel.core.options import EtcdOptions
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.report.codec import decode
from pyflannel.report.model import PeerReport
from pyflannel.report.silence import Silence, silence
from pyflannel.report.words import duration
from pyflannel.store.etcd import operator
from pyflannel.store.etcd.base import Store

LEAST_S: Final = 600.0
"""A node that is rebooted, with its file systems checked, is away for as long."""
_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> float:
    """A length of time: `90m`, `2h`, `1d`, `7200`.

    Raises:
        UsageError: it is none, or too short.
    """
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text)
    if found is None:
        raise UsageError(f"--silent-for {shown(text)}: expected a time such as 90m, 2h or 1d")
    value = float(found[1]) * _UNITS[found[2]]
    if value < LEAST_S:
        raise UsageError(f"--silent-for {text}: expected at least 10m: a reboot takes minutes")
    return value


def prune(options: EtcdOptions, silent_for: str, socket: str, *, yes: bool, as_json: bool) -> int:
    """Lists, and with `yes` deletes; returns the exit code.

    Raises:
        UsageError: the time is none.
        LeaseError: this node cannot tell who was silent for that long.
        FlannelError: no daemon answers, or it may not be asked.
    """
    report = decode(status.ask(socket, status.subnet_file()))
    found = silence(report, seconds(silent_for))
    if found.refused:
        raise LeaseError(f"refused: {found.refused}")
    released: list[str] = []
    kept: dict[str, str] = {}
    if yes and found.silent:
        peers = [peer for peer, _ in found.silent]
        with_store(options, lambda store: _release(store, options.prefix, peers, released, kept))
    if as_json:
        print(json.dumps(_json(found, released, kept), indent=2))
    else:
        print(render(found, released, kept, deleted=yes))
    return EXIT_UNAVAILABLE if kept else EXIT_OK


async def _release(
    store: Store,
    prefix: str,
    peers: Sequence[PeerReport],
    released: list[str],
    kept: dict[str, str],
) -> None:
    """One at a time; each owner is asked once more for a sign of life."""
    for peer in peers:
        name = _name(peer)
        try:
            await operator.release(
                store, prefix, _key(peer), SystemClock(), force=False, dry_run=False, timed=True
            )
        except FlannelError as error:
            kept[name] = str(error)
        else:
            released.append(name)


def _key(peer: PeerReport) -> SubnetKey:
    spelt = "&".join(filter(None, (peer.subnet, peer.ipv6_subnet))).replace("/", "-")
    key = parse_subnet_key(spelt)
    if key is None:
        raise LeaseError(f"{shown(spelt)} is no subnet")
    return key


def _name(peer: PeerReport) -> str:
    return ",".join(filter(None, (peer.subnet, peer.ipv6_subnet)))


def _json(found: Silence, released: Sequence[str], kept: dict[str, str]) -> PruneJson:
    return {
        "silent": [
            {"subnet": _name(peer), "public_ip": peer.public_ip, "silent_s": round(quiet)}
            for peer, quiet in found.silent
        ],
        "unclear": [{"subnet": _name(peer), "reason": why} for peer, why in found.unclear],
        "released": list(released),
        "kept": kept,
    }


def render(found: Silence, released: Sequence[str], kept: dict[str, str], *, deleted: bool) -> str:
    """For people."""
    lines = []
    for peer, quiet in found.silent:
        name = _name(peer)
        what = "released" if name in released else f"kept: {kept[name]}" if name in kept else ""
        where = peer.public_ip or peer.public_ipv6 or ""
        lines.append(f"{name} of {where}: silent for {duration(quiet)}" + (what and f"; {what}"))
    if not found.silent:
        lines.append("no lease's node has been silent for that long")
    elif not deleted:
        lines.append("nothing was deleted; --yes releases these leases")
    lines += [f"left alone: {_name(peer)}: {why}" for peer, why in found.unclear]
    return "\n".join(shown(line, MOST_IN_LOG) for line in lines)
