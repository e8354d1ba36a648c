"""The command line of `pyflannel` as data: a parser for each command, and for each of its actions.

Parsing and help come from here, and so do completion, man pages and `docs/reference/commands.md`
(`pyflannel.cli.tree` has all of them). What completes a value is told by its metavar; see
`pyflannel.cli.completion`.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Final, NoReturn

from pyflannel.cli.order import HELP, command_first
from pyflannel.core.errors import UsageError
from pyflannel.core.options import ETCD_FLAGS
from pyflannel.foreign import shown
from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import Flag, Kind
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

ETCD: Final[Mapping[str, Sequence[Flag]]] = {
    "etcd options, as pyflanneld's (or FLANNELD_ETCD_… variables)": ETCD_FLAGS
}
"""What a command takes that talks to etcd."""


class _Formatter(argparse.HelpFormatter):
    """As argparse's; keeps paragraphs and lists, and says each option's default."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        del indent
        return "\n\n".join(
            part if "\n  " in part else textwrap.fill(part, width, break_on_hyphens=False)
            for part in text.split("\n\n")
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        if default := default_of(action):
            return f"{text} (default: {default})".lstrip().replace("%", "%%")
        return text


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, whose errors are our `UsageError`.

    Args:
        prog: the command, as `pyflannel config check`.
        summary: what it does, in a line: without a capital and a full stop.
        about: more of it.
        examples: whole command lines.
        flags: by a heading, the flags in Go's syntax that are taken off before.
        more: made only if help is asked for; comes before the examples.
    """

    def __init__(
        self,
        prog: str,
        summary: str,
        about: str = "",
        *,
        examples: Sequence[str] = (),
        flags: Mapping[str, Sequence[Flag]] | None = None,
        more: Callable[[], str] | None = None,
    ) -> None:
        self.summary = summary
        self.about = about.strip()
        self.examples = tuple(examples)
        self.flags = flags or {}
        self.more = more
        super().__init__(
            prog=prog,
            description=f"{sentence(summary)}\n\n{self.about}".strip(),
            allow_abbrev=False,
            formatter_class=_Formatter,
        )
        self._positionals.title = "arguments"

    @property
    def options(self) -> tuple[argparse.Action, ...]:
        """The options, without those in Go's syntax."""
        return tuple(each for each in self._actions if each.option_strings)

    @property
    def arguments(self) -> tuple[argparse.Action, ...]:
        """The arguments, in their order."""
        return tuple(
            each
            for each in self._actions
            if not each.option_strings and each.help != argparse.SUPPRESS
        )

    @property
    def go_flags(self) -> tuple[Flag, ...]:
        """The flags in Go's syntax."""
        return tuple(flag for table in self.flags.values() for flag in table)

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
        self.check_options(ours)
        return self.parse_intermixed_args(args)

    def check_options(self, words: Iterable[str], more: Iterable[str] = ()) -> None:
        """Looks for options that are not there.

        Args:
            words: of the command line.
            more: options that are known besides.

        Raises:
            UsageError: naming one, without its value.
        """
        known = {*self._option_string_actions, *more}
        for word in words:
            name = word.partition("=")[0]
            short = len(name) > 2 and name[1] != "-" and name[:2] in known  # `-n5`
            if len(name) > 1 and name.startswith("-") and name not in known and not short:
                near = did_you_mean(name, [*known, *(f"--{flag.name}" for flag in self.go_flags)])
                hint = f", did you mean {near}?" if near else ""
                self.error(f"unknown option {shown(name)}{hint}")

    def format_help(self) -> str:
        """Called by argparse."""
        parts = [super().format_help().rstrip()]
        parts += [_flags_help(title, table) for title, table in self.flags.items()]
        if self.more is not None:
            parts.append(self.more())
        if self.examples:
            parts.append("\n  ".join(["examples:", *self.examples]))
        return "\n\n".join(parts) + "\n"

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UsageError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True, slots=True)
class Branch:
    """A command: what it takes itself, or its actions."""

    parser: Parser
    actions: Mapping[str, Parser] = field(default_factory=dict)
    """By name, in the order in which help has them; empty for a command without any."""
    default: str = ""
    """The action without a name; empty if one has to be named."""

    def choose(self, words: Sequence[str]) -> tuple[str, list[str]]:
        """The action that is meant, and what is left for its parser.

        Ends the process after printing the command's help, if that is asked for.

        Raises:
            UsageError: there is no such action.
        """
        words = command_first(words, {*self.actions, "help"}, with_value(self.actions.values()))
        if words[:1] == ["help"]:
            words = [*(word for word in words[1:] if word not in HELP), "--help"]
        if words and words[0] in self.actions:
            return words[0], words[1:]
        if {"-h", "--help"} & set(words):
            self.parser.print_help()
            self.parser.exit()
        known = (name for each in self.actions.values() for name in names(each))
        self.parser.check_options(words, known)
        given = words[0] if words and not words[0].startswith("-") else ""
        if self.default and not given:
            return self.default, words
        wanted = f"expected one of {', '.join(self.actions)}"
        near = did_you_mean(given, self.actions) if given else None
        hint = f"did you mean {near}?" if near else wanted
        text = f"no action {shown(given)}, {hint}" if given else wanted
        raise UsageError(f"{text} (see {self.parser.prog} --help)")


def group(
    prog: str,
    summary: str,
    about: str,
    actions: Sequence[Parser],
    *,
    default: str = "",
    more: Callable[[], str] | None = None,
) -> Branch:
    """A command with actions, whose own help is about all of them.

    Args:
        prog: as `pyflannel config`.
        summary: as `Parser`'s.
        about: as `Parser`'s.
        actions: whose `prog` ends with their name.
        default: the one that needs no name.
        more: as `Parser`'s.
    """
    named = {each.prog.rpartition(" ")[2]: each for each in actions}
    width = max(map(len, named))
    lines = [f"  {name:<{width}}  {each.summary}" for name, each in named.items()]
    rest = f"{about.strip()}\n\n" if about else ""
    text = f"{rest}actions:\n" + "\n".join(lines) + f"\n\nEach has its own help: {prog} ACTION -h"
    parser = Parser(prog, summary, text, more=more)
    action = f"[{default}]" if default else "ACTION"
    parser.usage = f"{prog} {action} [OPTION]... [ARGUMENT]..."
    return Branch(parser, named, default)


def sentence(summary: str) -> str:
    """A summary as a sentence of its own."""
    return f"{summary[:1].upper()}{summary[1:]}."


def term(action: argparse.Action) -> str:
    """An option or argument as a list names it: `-n N, --lines N`."""
    metavar = str(action.metavar or "|".join(map(str, action.choices or ())))
    if not action.option_strings:
        return {"*": f"[{metavar}]...", "?": f"[{metavar}]"}.get(str(action.nargs), metavar)
    if action.nargs == 0:
        return ", ".join(action.option_strings)
    value = f"[{metavar}]" if action.nargs == "?" else metavar
    return ", ".join(f"{name} {value}" for name in action.option_strings)


def default_of(action: argparse.Action) -> str:
    """What an option's value is without it, for people; empty if there is nothing to say."""
    value = action.default
    if not action.option_strings or action.nargs == 0 or value is None or value is False:
        return ""
    if value == [] or value == argparse.SUPPRESS:
        return ""
    return str(value)


def names(parser: Parser) -> tuple[str, ...]:
    """Every spelling of every option."""
    own = (name for each in parser.options for name in each.option_strings)
    return (*own, *(f"--{flag.name}" for flag in parser.go_flags))


def with_value(parsers: Iterable[Parser]) -> frozenset[str]:
    """The options whose value is a word of its own, unless there is an `=`."""
    found: set[str] = set()
    for each in parsers:
        for action in each.options:
            if action.nargs is None:
                found.update(action.option_strings)
        found.update(f"--{flag.name}" for flag in each.go_flags if flag.kind is not Kind.BOOL)
    return frozenset(found)


def _flags_help(title: str, table: Sequence[Flag]) -> str:
    width = max(16, *(len(flag.name) for flag in table))
    lines = [f"{title}:"]
    for flag in table:
        default = "" if flag.default in ("", (), False, 0) else goflag.show(flag, flag.default)
        lines += _wrapped(
            f"--{flag.name:<{width}} ", flag.help, f" (default: {default})" if default else ""
        )
    return "\n".join(lines)


def _wrapped(head: str, text: str, tail: str) -> list[str]:
    first = f"  {head}"
    return textwrap.wrap(
        text + tail,
        78,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_on_hyphens=False,
        break_long_words=False,
    )
