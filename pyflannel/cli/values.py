"""What may stand in a place of the command line: for completion.

A place is known by its metavar. Values that are looked up come quickly or not at all: nothing that
fails here is worth a word on a half-typed line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pyflannel.core.errors import FlannelError
from pyflannel.core.options import FLAGS

FILES: Final = frozenset({"FILE", "PATH"})
"""Metavars of files; shells complete them themselves."""
DIRECTORIES: Final = frozenset({"DIR"})
DEADLINE_S: Final = 2.0
"""For an answer of etcd; one who waits longer types it."""


def _interfaces() -> Iterable[str]:
    return sorted(each.name for each in Path("/sys/class/net").iterdir() if each.is_dir())


def _backends() -> Iterable[str]:
    from pyflannel.backend.kinds import KINDS

    return KINDS.names()


def _datapaths() -> Iterable[str]:
    return next(flag.choices for flag in FLAGS if flag.name == "datapath")


def _faults() -> Iterable[str]:
    from pyflannel.lab import trouble

    return trouble.slugs()


def _labs() -> Iterable[str]:
    from pyflannel.lab.state import all_labs

    return all_labs()


def _nodes(words: Sequence[str]) -> Iterable[str]:
    from pyflannel.lab.state import StateDirectory

    processes = StateDirectory(_of(words, "--name") or "default").load().processes
    numbers = (name.removeprefix("node") for name in processes if name.startswith("node"))
    return sorted((each for each in numbers if each.isdigit()), key=int)


def _places(words: Sequence[str]) -> Iterable[str]:
    numbers = list(_nodes(words))
    return [*numbers, *(f"node{k}" for k in numbers), *(f"pod{k}" for k in numbers), "switch"]


def _subnets(words: Sequence[str]) -> Iterable[str]:
    import asyncio

    from pyflannel.cli.common import split_etcd
    from pyflannel.core.lease import Lease
    from pyflannel.store.etcd import codec
    from pyflannel.store.etcd.store import EtcdStore

    options, _ = split_etcd(words)

    async def read() -> list[str]:
        store = EtcdStore(options)
        try:
            async with asyncio.timeout(DEADLINE_S):
                listed = await store.range_prefix(codec.subnets_prefix(options.prefix))
        finally:
            await store.close()
        found = (codec.decode_lease(options.prefix, kv) for kv in listed.kvs)
        keys = sorted(each.key for each in found if isinstance(each, Lease))
        return [",".join(map(str, filter(None, (key.v4, key.v6)))) for key in keys]

    return asyncio.run(read())


def _peers(words: Sequence[str]) -> Iterable[str]:
    from pyflannel.cli import status

    socket = _of(words, "--status-socket") or status.socket_path()
    answer = status.ask(socket)
    found = (peer.get("subnet") or peer.get("ipv6_subnet") for peer in answer.get("peers", ()))
    return [str(each) for each in found if each]


_FIXED: Final[Mapping[str, Callable[[], Iterable[str]]]] = {
    "INTERFACE": _interfaces,
    "TYPE": _backends,
    "DATAPATH": _datapaths,
    "FAULT": _faults,
    "LAB": _labs,
}
_LOOKED_UP: Final[Mapping[str, Callable[[Sequence[str]], Iterable[str]]]] = {
    "NODE": _nodes,
    "PLACE": _places,
    "SUBNET": _subnets,
    "TARGET": _peers,
    "PEER": _peers,
}
KNOWN: Final = frozenset({*_FIXED, *_LOOKED_UP})
"""Metavars whose values are known here."""


def values(metavar: str, words: Sequence[str]) -> list[str]:
    """What may stand there; nothing if it is not known, or is not available now. Never raises.

    Args:
        metavar: of the place.
        words: the command line so far: it may name an etcd, a lab, a socket.
    """
    with contextlib.suppress(FlannelError, OSError, TimeoutError, ValueError, KeyError):
        if metavar in _FIXED:
            return list(_FIXED[metavar]())
        if metavar in _LOOKED_UP:
            return list(_LOOKED_UP[metavar](words))
    return []


def _of(words: Sequence[str], option: str) -> str:
    """An option's value, wherever it stands; empty if it is not given."""
    found = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else following
    return found
