"""What several commands share: etcd flags in Go's syntax, one event loop, tables."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from pyflannel.cli import unit
from pyflannel.core.commandline import parse_etcd_flags
from pyflannel.core.errors import StoreUnavailable, UsageError
from pyflannel.core.options import ETCD_FLAGS, FLAGS, EtcdOptions
from pyflannel.core.sysconfig import translate
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Kind
from pyflannel.store.etcd.base import Store

T = TypeVar("T")

NODE_FLAGS: Final = tuple(
    flag
    for flag in FLAGS
    if flag.name
    in {
        "iface",
        "iface-regex",
        "iface-can-reach",
        "public-ip",
        "public-ipv6",
        "subnet-file",
        "state-dir",
        "datapath",
    }
)
"""The daemon's flags that say what this node is; the unit's files have them as a rule."""


def split_etcd(argv: Sequence[str]) -> tuple[EtcdOptions, list[str]]:
    """Takes the etcd flags off a command line; warnings go to stderr.

    Where neither it nor the environment names endpoints, etcd is where the daemon's unit has it.
    (With endpoints of its own a command gets nothing from there: a password is for one etcd.)

    Raises:
        UsageError: an etcd flag is wrong.
    """
    found = parse_etcd_flags(argv, os.environ)
    for warning in found.warnings:
        print(f"pyflannel: {warning}", file=sys.stderr)
    rest = list(found.rest)
    if found.endpoints_given:
        return found.options, rest
    try:
        variables, _ = unit.environment()
        flags = translate([], variables).argv
        of_unit = parse_etcd_flags(flags, variables)
        merged = parse_etcd_flags([*etcd_words(flags), *argv], {**variables, **os.environ})
    except UsageError:  # the daemon's own start says what is wrong there
        return found.options, rest
    return (merged.options if of_unit.endpoints_given else found.options), rest


def etcd_words(flags: Sequence[str]) -> list[str]:
    """Those of the daemon's flags that every command understands."""
    return words_of(flags, {flag.name: flag.kind is not Kind.BOOL for flag in ETCD_FLAGS})


def words_of(argv: Sequence[str], names: Mapping[str, bool]) -> list[str]:
    """The words of some flags, wherever they stand.

    Args:
        argv: all words.
        names: of the flags, and whether each takes a value.
    """
    found: list[str] = []
    takes_value = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if takes_value or (name.startswith("-") and name.lstrip("-") in names):
            found.append(word)
            takes_value = not takes_value and not equals and names[name.lstrip("-")]
    return found


def without_flags(table: Sequence[Flag], argv: Sequence[str]) -> list[str]:
    """The words without some flags.

    Raises:
        UsageError: one of them is wrong.
    """
    try:
        return list(goflag.extract(table, argv).rest)
    except goflag.FlagError as error:
        raise UsageError(str(error)) from None


def with_store(options: EtcdOptions, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs one piece of work with a store that is closed afterwards.

    Raises:
        StoreUnavailable: no etcd answers; with the way to name another one.
    """
    try:
        return _with_store(options, work)
    except StoreUnavailable as error:
        _, about = unit.environment()
        way_out = "name etcd's endpoints with --etcd-endpoints or FLANNELD_ETCD_ENDPOINTS"
        raise StoreUnavailable("; ".join(filter(None, (str(error), about, way_out)))) from error


def _with_store(options: EtcdOptions, work: Callable[[Store], Awaitable[T]]) -> T:
    from pyflannel.store.etcd.store import EtcdStore

    async def go() -> T:
        store = EtcdStore(options)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(go())


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, two blanks apart, no trailing blanks."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headers, *rows)
    ]
    return "\n".join(lines) + "\n"
