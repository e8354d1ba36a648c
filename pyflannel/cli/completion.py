"""`pyflannel completion bash|zsh|fish`: the script with which a shell completes our commands.

A script has all commands, options and choices in it, from the parsers, so that a key press starts
no Python. Where a value has to be looked up (a lease, a lab's nodes), bash's asks
`pyflannel completion values METAVAR`, with the line so far on stdin.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Final

from pyflannel.cli import values
from pyflannel.cli.parsers import Branch, Parser, group
from pyflannel.core.errors import EXIT_OK
from pyflannel.core.options import FLAGS
from pyflannel.gocompat.flags import Flag, Kind
from pyflannel.records import dataclass

PROG: Final = "pyflannel completion"
ABOUT: Final = """\
The Debian package has them in the places where the shells look. Elsewhere one line in the shell's
start-up file does it; each action's help has that line."""
INTO: Final = {
    "bash": "source <(pyflannel completion bash)",
    "zsh": "source <(pyflannel completion zsh)",
    "fish": "pyflannel completion fish | source",
}
START_UP: Final = {
    "bash": "~/.bashrc",
    "zsh": "~/.zshrc, behind compinit",
    "fish": "~/.config/fish/config.fish",
}


@dataclass(frozen=True, slots=True)
class Option:
    """An option as a shell knows it."""

    name: str
    summary: str
    value: str = ""
    """What completes its value: a metavar, or choices with `|` between; empty if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What may come behind some words of a command line."""

    actions: Mapping[str, str] = field(default_factory=dict)
    """By name, what each does."""
    options: Sequence[Option] = ()
    arguments: Sequence[str] = ()
    """What completes each, as `Option.value`; the last one with `...` if it may come again."""


def branch() -> Branch:
    """The command line."""
    actions = [
        Parser(
            f"{PROG} {shell}",
            f"print the completion for {shell}",
            f"For {START_UP[shell]}: the line below.",
            examples=(line,),
        )
        for shell, line in INTO.items()
    ]
    return group(PROG, "what a shell needs to complete these commands", ABOUT, actions)


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if argv[:1] == ["values"] and len(argv) == 2:
        print(*values.values(argv[1], sys.stdin.read().splitlines()), sep="\n")
        return EXIT_OK
    here = branch()
    shell, words = here.choose(argv)
    here.actions[shell].parse_args(words)
    print(script(shell), end="")
    return EXIT_OK


def script(shell: str) -> str:
    """The whole script for a shell."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](places())


def places() -> dict[str, Place]:
    """Every place of every command of ours, by the words that lead there."""
    from pyflannel.cli.pyflannel import COMMANDS
    from pyflannel.cli.tree import tree

    found = {
        "pyflannel": Place(
            actions={name: command.summary for name, command in COMMANDS.items()}
            | {"help": "help for a command"},
            options=(
                Option("--help", "help for all commands"),
                Option("--version", "print the version"),
            ),
        )
    }
    for name, each in tree().items():
        found[f"pyflannel {name}"] = _place(each.parser, each.actions)
        for action, parser in each.actions.items():
            found[f"pyflannel {name} {action}"] = _place(parser, {})
    flags = [_of_flag(flag) for flag in FLAGS]
    found["pyflanneld"] = Place(options=flags)
    checking = Option("--check-only", "start nothing, say what is wrong")
    found["pyflanneld-start"] = Place(options=[*flags, checking])
    for words in ("pyflannel mk-docker-opts", "pyflannel-mk-docker-opts"):
        found[words] = Place(options=_DOCKER_OPTIONS)
    return found


_DOCKER_OPTIONS: Final = (
    Option("-f", "file that flannel wrote", "FILE"),
    Option("-d", "file to write", "FILE"),
    Option("-i", "a variable for each option"),
    Option("-c", "one variable with all options"),
    Option("-m", "no --ip-masq"),
    Option("-k", "name of that variable", "-"),
)
"""Of the script whose place it takes; `docker.options.usage` explains them."""


def _place(parser: Parser, actions: Mapping[str, Parser]) -> Place:
    options = [
        Option(name, each.help or "", _value(each))
        for each in parser.options
        for name in each.option_strings
    ]
    return Place(
        actions={name: each.summary for name, each in actions.items()},
        options=[*options, *map(_of_flag, parser.go_flags)],
        arguments=[
            _value(each) + ("..." if each.nargs == "*" else "") for each in parser.arguments
        ],
    )


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices:
        return "|".join(map(str, action.choices))
    return str(action.metavar)


_FLAG_VALUES: Final = {"iface": "INTERFACE", "state-dir": "DIR"}


def _of_flag(flag: Flag) -> Option:
    value = "|".join(flag.choices) or _FLAG_VALUES.get(flag.name, "-")
    if flag.name.rpartition("-")[2] in {"file", "keyfile", "certfile", "cafile", "socket", "path"}:
        value = "FILE"
    name = f"--{flag.name}" if len(flag.name) > 1 else f"-{flag.name}"
    return Option(name, flag.help, "" if flag.kind is Kind.BOOL else value)


# bash


def _bash(found: Mapping[str, Place]) -> str:
    rows: list[str] = []
    for words, place in found.items():
        taking = [f"{each.name}={each.value}" for each in place.options if each.value]
        parts = {
            "actions": " ".join(place.actions),
            "options": " ".join(each.name for each in place.options),
            "taking": " ".join(taking),
            "arguments": " ".join(place.arguments),
        }
        rows.append(f"    {shlex.quote(words)})")
        rows += [f"        {name}={shlex.quote(text)}" for name, text in parts.items() if text]
        rows.append("        ;;")
    known = "|".join(sorted(values.KNOWN - {"INTERFACE"}))
    files, directories = "|".join(sorted(values.FILES)), "|".join(sorted(values.DIRECTORIES))
    fill = {"@ROWS@": "\n".join(rows), "@KNOWN@": known, "@FILES@": files, "@DIRS@": directories}
    return _filled(_BASH, fill) + f"complete -F _pyflannel {' '.join(_programs(found))}\n"


def _programs(found: Mapping[str, Place]) -> list[str]:
    return [words for words in found if " " not in words]


def _brief(text: str) -> str:
    """The first clause of an explanation."""
    return text.partition(";")[0]


def _filled(text: str, fill: Mapping[str, str]) -> str:
    for mark, content in fill.items():
        text = text.replace(mark, content)
    return text


_BASH: Final = r"""# Completion for bash, made by: pyflannel completion bash
_pyflannel_place() {
    # What may come behind the words in $1.
    actions='' options='' taking='' arguments=''
    case $1 in
@ROWS@
    esac
}

_pyflannel_what() {
    # What completes the value of the option in $1; nothing if it has none. One dash or two.
    local each
    what=
    for each in $taking; do
        [[ $each == "$1="* || $each == "-$1="* ]] && what=${each#*=}
    done
}

_pyflannel() {
    local IFS=$' \t\n' line=${COMP_LINE:0:COMP_POINT} current word option='' count=0 place what=''
    local actions options taking arguments candidates lead=''
    local -a words
    read -ra words <<<"$line"
    [[ $line == *[[:blank:]] ]] && words+=('')
    current=${words[-1]}
    unset 'words[-1]'
    place=${words[0]##*/}
    _pyflannel_place "$place"
    for word in "${words[@]:1}"; do
        if [[ $option ]]; then
            option=
        elif [[ $word == -* ]]; then
            _pyflannel_what "$word"
            [[ $what ]] && option=$word
        elif [[ " $actions " == *" $word "* ]]; then
            count=0
            [[ $word == help ]] && continue
            place+=" $word"
            _pyflannel_place "$place"
        else
            ((count += 1))
        fi
    done
    if [[ -z $option && $current == -*=* ]]; then
        option=${current%%=*}
        current=${current#*=}
    fi
    COMPREPLY=()
    if [[ $option ]]; then
        _pyflannel_what "$option"
    elif [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$current"))
        # The daemon's flags, and those of etcd, may have one dash.
        [[ ${COMPREPLY[0]-} ]] || COMPREPLY=($(compgen -W "$options" -- "-$current"))
        return
    elif [[ $actions ]]; then
        COMPREPLY=($(compgen -W "$actions" -- "$current"))
        return
    else
        local -a wanted=($arguments)
        ((count >= ${#wanted[@]} && ${#wanted[@]})) && [[ ${wanted[-1]} == *... ]] &&
            count=$((${#wanted[@]} - 1))
        what=${wanted[count]-}
        what=${what%...}
    fi
    case $what in
    @FILES@)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -f -- "$current"))
        return
        ;;
    @DIRS@)
        compopt -o filenames 2>/dev/null
        COMPREPLY=($(compgen -d -- "$current"))
        return
        ;;
    INTERFACE) candidates=$(ls /sys/class/net 2>/dev/null) ;;
    @KNOWN@)
        word=${words[0]}
        command -v -- "$word" >/dev/null || word=pyflannel
        candidates=$(printf '%s\n' "${words[@]:1}" | "$word" completion values "$what" 2>/dev/null)
        ;;
    *'|'*) candidates=${what//|/ } ;;
    *) return ;;
    esac
    COMPREPLY=($(compgen -W "$candidates" -- "$current"))
    # What bash takes for a word ends at a colon.
    [[ $current == *:* ]] && lead=${current%:*}:
    COMPREPLY=("${COMPREPLY[@]#"$lead"}")
}
"""


# zsh


def _zsh(found: Mapping[str, Place]) -> str:
    rows: list[str] = []
    for words, place in found.items():
        rows.append(f"    {shlex.quote(words)})")
        for array, pairs in (
            ("actions", place.actions.items()),
            ("options", ((each.name, each.summary) for each in place.options)),
        ):
            described = [shlex.quote(f"{name}:{_plain(text)}") for name, text in pairs]
            if described:
                rows += [f"        {array}=(", *(f"            {each}" for each in described)]
                rows.append("        )")
        rows.append("        ;;")
    programs = " ".join(_programs(found))
    return _filled(_ZSH, {"@ROWS@": "\n".join(rows), "@PROGRAMS@": programs})


def _plain(text: str) -> str:
    return _brief(text).replace(":", ",")


_ZSH: Final = r"""#compdef @PROGRAMS@
# Completion for zsh, made by: pyflannel completion zsh
_pyflannel_place() {
    actions=() options=()
    case $1 in
@ROWS@
    esac
}

_pyflannel() {
    local place=${words[1]:t} word
    local -a actions options
    _pyflannel_place $place
    for word in ${words[2,CURRENT-1]}; do
        [[ $word == help ]] && continue
        if (( ${actions[(I)$word:*]} )); then
            place+=" $word"
            _pyflannel_place $place
        fi
    done
    if [[ $words[CURRENT] == -* ]]; then
        _describe -o option options
    elif (( $#actions )); then
        _describe command actions
    else
        _files
    fi
}

if [[ $funcstack[1] == _pyflannel ]]; then
    _pyflannel "$@"
else
    compdef _pyflannel @PROGRAMS@
fi
"""


# fish


def _fish(found: Mapping[str, Place]) -> str:
    known = " ".join(_fish_quoted(words) for words in found)
    return _filled(_FISH, {"@KNOWN@": known}) + "".join(
        f"{line}\n" for words, place in found.items() for line in _fish_lines(words, place)
    )


def _fish_lines(words: str, place: Place) -> Iterator[str]:
    program = words.partition(" ")[0]
    start = f"complete -c {program} -n {_fish_quoted('__pyflannel_at ' + _fish_quoted(words))}"
    for name, summary in place.actions.items():
        yield f"{start} -f -a {name} -d {_fish_quoted(summary)}"
    for each in place.options:
        name = f"-l {each.name[2:]}" if each.name.startswith("--") else f"-s {each.name[1:]}"
        if not each.value:
            value = ""
        elif each.value in values.FILES | values.DIRECTORIES:
            value = " -r -F"
        else:
            value = f" -x -a {_fish_quoted(' '.join(_choices(each.value)))}"
        yield f"{start} {name}{value} -d {_fish_quoted(_brief(each.summary))}"


def _choices(value: str) -> list[str]:
    return value.split("|") if "|" in value else []


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_FISH: Final = r"""# Completion for fish, made by: pyflannel completion fish
set -g __pyflannel_places @KNOWN@

function __pyflannel_at
    # Whether the words so far lead to the place in $argv[1].
    set -l words (commandline -opc)
    set -l at (string replace -r '.*/' '' -- $words[1])
    for word in $words[2..-1]
        contains -- "$at $word" $__pyflannel_places; and set at "$at $word"
    end
    test "$at" = "$argv[1]"
end

"""
