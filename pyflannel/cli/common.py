"""What several commands share: etcd flags in Go's syntax, argparse for the rest, one event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import NoReturn, TypeVar

from pyflannel.core.errors import UsageError
from pyflannel.core.options import ETCD_FLAGS, EtcdOptions, parse_etcd_flags
from pyflannel.core.suggest import did_you_mean
from pyflannel.foreign import shown
from pyflannel.store.etcd.base import Store

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are our `UsageError`.

    Args:
        prog: the command.
        description: what it does.
        etcd: whether it takes the etcd options.
        more: made only if help is asked for; comes last in it.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        etcd: bool = False,
        more: Callable[[], str] | None = None,
    ) -> None:
        epilog = _etcd_help() if etcd else None
        self._more = more
        self._etcd_options = [f"--{flag.name}" for flag in ETCD_FLAGS] if etcd else []
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def parse_args(  # type: ignore[override]  # one signature of three
        self, args: Sequence[str]
    ) -> argparse.Namespace:
        """As argparse's, but an unknown option is named without its value, and with a guess.

        argparse goes on after one, takes its value for something else, and prints it; it may be a
        password.
        """
        ours = list(args)
        if "--" in ours:
            ours = ours[: ours.index("--")]
        for word in ours:
            name = word.partition("=")[0]
            if len(name) > 1 and name.startswith("-") and name not in self._option_string_actions:
                near = did_you_mean(name, [*self._option_string_actions, *self._etcd_options])
                hint = f", did you mean {near}?" if near else ""
                self.error(f"unknown option {shown(name)}{hint}")
        return super().parse_args(args)

    def format_help(self) -> str:
        """Called by argparse."""
        text = super().format_help()
        return f"{text}\n{self._more()}\n" if self._more is not None else text

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def _etcd_help() -> str:
    lines = ["etcd options, as pyflanneld's (or FLANNELD_ETCD_… variables):"]
    lines += [f"  --{flag.name:<16} {flag.help}" for flag in ETCD_FLAGS]
    return "\n".join(lines)


def split_etcd(argv: Sequence[str]) -> tuple[EtcdOptions, list[str]]:
    """Takes the etcd flags off a command line; warnings go to stderr.

    Raises:
        UsageError: an etcd flag is wrong.
    """
    found = parse_etcd_flags(argv, os.environ)
    for warning in found.warnings:
        print(f"pyflannel: {warning}", file=sys.stderr)
    return found.options, list(found.rest)


def with_store(options: EtcdOptions, work: Callable[[Store], Awaitable[T]]) -> T:
    """Runs one piece of work with a store that is closed afterwards."""
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
