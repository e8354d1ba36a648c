"""The words of a command line in the order that a parser wants, whatever order they came in.

argparse knows a subcommand only where it stands first, and gives up on arguments that options stand
between. People who type have no such order in mind. What takes a value is told by the caller:
without that, `--name lab` and `--json lab` look the same.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

HELP: Final = ("-h", "--help", "-help", "help")
"""Words that ask for help, wherever they stand."""


def command_first(
    words: Sequence[str],
    commands: Container[str],
    with_value: Container[str],
    maybe_value: Container[str] = (),
) -> list[str]:
    """The words with the command brought to the front, if only options stand before it.

    A word that is no command stays where it is: it may be the value of an option that is not known,
    a password even, and is not to be named in an error.

    Args:
        words: of the command line, without the program's name.
        commands: their names.
        with_value: options, as `--name`, whose value is the next word unless there is an `=`.
        maybe_value: options that have one in some commands: the next word, unless that is a
            command.
    """
    position = 0
    while position < len(words) and _is_option(words[position]):
        step = 2 if _takes_next(words[position], with_value) else 1
        if words[position] in maybe_value and words[position + 1 : position + 2]:
            step = 1 if words[position + 1] in commands else 2
        position += step
    if position >= len(words) or words[position] not in commands:
        return list(words)
    return [words[position], *words[:position], *words[position + 1 :]]


def options_first(
    words: Sequence[str], with_value: Container[str], *, arguments: int | None = None
) -> tuple[list[str], list[str]]:
    """Options with their values, then arguments, each in the order they came; and what is left.

    Args:
        words: what stands behind the command.
        with_value: as for `command_first`.
        arguments: how many arguments there are; what comes after so many belongs to another program
            and is left as it is. `None`: all of them.
    """
    options: list[str] = []
    others: list[str] = []
    position = 0
    while position < len(words) and words[position] != "--":
        word = words[position]
        if _is_option(word):
            step = 2 if _takes_next(word, with_value) else 1
            options += words[position : position + step]
            position += step
        elif len(others) == arguments:
            break
        else:
            others.append(word)
            position += 1
    return [*options, *others], list(words[position:])


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and word != "--"


def _takes_next(word: str, with_value: Container[str]) -> bool:
    return word in with_value or f"--{word.lstrip('-')}" in with_value
