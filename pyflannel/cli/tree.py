"""Every command of `pyflannel` with its parsers: for completion, man pages and the reference.

Imports all commands, which takes longer than any one of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from pyflannel.cli.parsers import Branch, Parser
from pyflannel.cli.pyflannel import COMMANDS

WITHOUT_PARSER: Final = frozenset({"mk-docker-opts"})
"""Commands that read their command line as the script does whose place they take."""


def tree() -> Mapping[str, Branch]:
    """Each command, in the order of `pyflannel --help`."""
    return {name: _branch(name) for name in COMMANDS if name not in WITHOUT_PARSER}


def leaves(branches: Mapping[str, Branch]) -> Iterator[tuple[tuple[str, ...], Parser]]:
    """Whatever can be run: the words that name it, and its parser."""
    for name, branch in branches.items():
        if not branch.actions:
            yield (name,), branch.parser
        for action, parser in branch.actions.items():
            yield (name, action), parser


def _branch(name: str) -> Branch:
    made: Callable[[], Branch] = importlib.import_module(COMMANDS[name].module).branch
    return made()
