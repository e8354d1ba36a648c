"""What several commands share: etcd flags in Go's syntax, argparse for the rest, one event loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NoReturn, TypeVar

from pyflannel.cli import unit
from pyflannel.core.errors import StoreUnavailable, UsageError
from pyflannel.core.options import ETCD_FLAGS, EtcdOptions, parse_etcd_flags
from pyflannel.core.sysconfig import translate
from pyflannel.foreign import shown
from pyflannel.gocompat.flags import Kind
from pyflannel.store.etcd.base import Store
from pyflannel.suggest import did_you_mean

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
        """As argparse's, but options may stand anywhere between the arguments.

        And an unknown option is named without its value, and with a guess: argparse goes on after
        one, takes its value for something else, and prints it; it may be a password.
        """
        ours = list(args)
        if "--" in ours:
            ours = ours[: ours.index("--")]
        if {"-h", "--help"} & set(ours):
            self.print_help()
            self.exit()
        for word in ours:
            name = word.partition("=")[0]
            if len(name) > 1 and name.startswith("-") and name not in self._option_string_actions:
                near = did_you_mean(name, [*self._option_string_actions, *self._etcd_options])
                hint = f", did you mean {near}?" if near else ""
                self.error(f"unknown option {shown(name)}{hint}")
        return self.parse_intermixed_args(args)

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
