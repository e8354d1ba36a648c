"""Docker's options out of flannel's: what `mk-docker-opts.sh` computes, without a shell.

Upstream's tool is a shell script that *sources* `subnet.env`, so the file is a program that runs as
root. Here it is data: `parse_shell` reads assignments as a shell would (quotes, escapes, `export`,
comments) and refuses, with the line, whatever would have to be run or expanded to know its value.
`compose` then gives the same bytes as the script.

Kept from the script, because consumers know it: the masquerade flag is inverted (exactly one of the
two, flannel or docker, masquerades); the combined value starts with a space; a value that the
combined variable had before stays in front; every variable in whose listing `DOCKER_OPT_` occurs is
taken along, so that options can be added through the environment. Not kept: a value with spaces is
one value here, while the script takes each of its words for the name of another variable.

This module is on the way of a command that units run before docker starts, so it imports little.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pyflannel.core.errors import ConfigError, UsageError

FLANNEL_ENV: Final = "/run/flannel/subnet.env"
DOCKER_ENV: Final = "/run/docker_opts.env"
UNIT_FILE: Final = "/run/flannel/docker_opts.env"
"""Where the unit's daemon writes it: of /run only our own directory is writable there."""
UNIT_LINK: Final = "flannel/docker_opts.env"
"""What `DOCKER_ENV` is a link to then."""
DOCKER_OPTS: Final = "DOCKER_OPTS"
MARK: Final = "DOCKER_OPT_"
"""What the script searches the listing of all shell variables for."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


class Request(NamedTuple):
    """What to write."""

    individual: bool = True
    """One variable per option (`-i`)."""
    combined: bool = True
    """One variable with all of them (`-c`). Neither asked for means both."""
    ip_masq: bool = True
    """Take the ip-masq option along; `-m` leaves it out for a docker that does not know it."""
    key: str = DOCKER_OPTS
    """Name of the combined variable (`-k`)."""


class Options(NamedTuple):
    """The command line."""

    flannel_env: str
    docker_env: str
    request: Request


def parse_options(arguments: Sequence[str]) -> Options:
    """Reads the command line as POSIX `getopts` does.

    Flags may be joined (`-icm`), an argument may stick to its flag (`-fFILE`), parsing ends at `--`
    or at the first word that is no option; what follows is ignored.

    Raises:
        UsageError: help was asked for (empty message), or with what is wrong.
    """
    values = {"f": FLANNEL_ENV, "d": DOCKER_ENV, "k": DOCKER_OPTS}
    flags: set[str] = set()
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] not in {"-", "--"}:
        letters = rest.pop(0)[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in "icm":
                flags.add(letter)
            elif letter in "?h":
                raise UsageError
            elif letter not in values:
                raise UsageError(f"Illegal option -{letter}")
            elif letters or rest:
                values[letter], letters = letters or rest.pop(0), ""
            else:
                raise UsageError(f"No arg for -{letter} option")
    if not _NAME.fullmatch(values["k"]):
        # The script hands the name to eval: `-k 'X;reboot'` reboots.
        raise UsageError(f"-k {values['k']}: not the name of a variable")
    both = not flags & {"i", "c"}
    request = Request(
        individual=both or "i" in flags,
        combined=both or "c" in flags,
        ip_masq="m" not in flags,
        key=values["k"],
    )
    return Options(values["f"], values["d"], request)


def usage(program: str) -> str:
    """The help text."""
    return f"""\
{program} [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Writes docker's options for the subnet that flannel leased.

  -f FILE  file that flannel wrote ({FLANNEL_ENV}); if there is none, the
           variables are taken from the environment
  -d FILE  file to write ({DOCKER_ENV})
  -i       write a variable per option: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c       write one variable with all options; neither -i nor -c means both
  -m       leave the ip-masq option out
  -k NAME  name of the variable with all options ({DOCKER_OPTS})

Exit codes: 0 done, also if the file could not be written; 1 bad option or value, a file that would
have to be run to be understood, or a route that already leads to the subnet; 2 file not readable.
"""


class RefusedLine(ConfigError):
    """A line of the env file that cannot be taken as plain data.

    Args:
        line: its number, from 1.
        reason: what is the matter with it.
    """

    def __init__(self, line: int, reason: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {reason}")


class UnfinishedQuote(RefusedLine):
    """The file ends within quotes, so it is torn; a shell stops there, too."""


def parse_shell(text: str) -> dict[str, str]:
    """The variables that a shell would have after sourcing a file of plain assignments.

    Raises:
        RefusedLine: something would have to be run or expanded; nothing of the file counts then.
    """
    return _Reader(text).variables()


class _Word(NamedTuple):
    line: int
    text: str
    """As the shell would see it, quotes removed."""
    name: str
    """The variable's name if this is an assignment as the shell defines it, else empty."""
    globs: bool
    """Whether it has an unquoted `*`, `?` or `[`."""


class _Reader:
    """One pass over the text, a character at a time, by the quoting rules of POSIX 2.2."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def variables(self) -> dict[str, str]:
        found: dict[str, str] = {}
        while self._at < len(self._text):
            words = self._command()
            while words and words[0].name:
                word = words.pop(0)
                found[word.name] = word.text[len(word.name) + 1 :]
            if not words:
                continue
            # `export` alone lists all variables, with an option it does other things.
            if words[0].text != "export" or len(words) == 1 or words[1].text.startswith("-"):
                raise RefusedLine(words[0].line, f"would run the command {words[0].text!r}")
            for word in words[1:]:
                found |= self._exported(word)
        return found

    @staticmethod
    def _exported(word: _Word) -> dict[str, str]:
        name, equals, value = word.text.partition("=")
        if not _NAME.fullmatch(name):
            raise RefusedLine(word.line, f"export of {name!r}, which is not a variable's name")
        if word.globs:
            raise RefusedLine(word.line, f"export {name}: needs the expansion of file names")
        return {name: value} if equals else {}

    def _command(self) -> list[_Word]:
        """The words up to the end of the line."""
        words: list[_Word] = []
        while self._at < len(self._text):
            here = self._text[self._at]
            if here == "\n":
                self._take()
                break
            if here in " \t":
                self._take()
            elif self._text.startswith("\\\n", self._at):
                self._take()
                self._take()
            elif here == "#":
                end = self._text.find("\n", self._at)
                self._at = len(self._text) if end < 0 else end
            else:
                words.append(self._word())
        return words

    def _take(self) -> str:
        character = self._text[self._at]
        if character == "\0":
            raise RefusedLine(self._line, "not a text file (it has a NUL byte)")
        self._at += 1
        self._line += character == "\n"
        return character

    def _word(self) -> _Word:
        start = self._line
        out: list[str] = []
        name = ""
        plain = True  # nothing was quoted so far
        globs = False
        while self._at < len(self._text) and self._text[self._at] not in " \t\n":
            character = self._take()
            if character == "\\":
                if self._at == len(self._text):
                    out.append(character)
                elif self._take_escaped(out):
                    plain = False
            elif character in "'\"":
                plain = False
                self._quoted(character, out)
            elif character in "$`":
                raise RefusedLine(self._line, self._expansion(character))
            elif character in ";&|<>()":
                raise RefusedLine(self._line, f"{character!r} outside quotes would run something")
            elif character == "~" and (not out or out[-1] in "=:"):
                raise RefusedLine(self._line, "'~' needs the expansion of a home directory")
            else:
                globs = globs or character in "*?["
                out.append(character)
                if character == "=" and plain and not name and _NAME.fullmatch("".join(out[:-1])):
                    name = "".join(out[:-1])
        return _Word(start, "".join(out), name, globs)

    def _take_escaped(self, out: list[str]) -> bool:
        """What a backslash outside quotes gives; `False` for a continued line, which is nothing."""
        character = self._take()
        if character == "\n":
            return False
        out.append(character)
        return True

    def _quoted(self, quote: str, out: list[str]) -> None:
        """The rest of a quoted part, up to and including its end."""
        start = self._line
        while self._at < len(self._text):
            character = self._take()
            if character == quote:
                return
            if quote == '"' and character in "$`":
                raise RefusedLine(self._line, self._expansion(character))
            if quote == '"' and character == "\\" and self._at < len(self._text):
                escaped = self._take()
                if escaped != "\n":
                    out.append(escaped if escaped in '$`"\\' else character + escaped)
                continue
            out.append(character)
        raise UnfinishedQuote(start, f"the quote {quote} that begins here does not end")

    def _expansion(self, character: str) -> str:
        if character == "`" or self._text.startswith("(", self._at):
            return "a command substitution would run a command"
        return "'$' needs an expansion (write '...' around a literal one)"


def render(variables: Mapping[str, str], combined: Sequence[str] = (DOCKER_OPTS,)) -> bytes:
    """The bytes of `docker_opts.env`: what mk-docker-opts, run without options, makes of them.

    Only of them: variables of our own environment do not get in.

    Args:
        variables: those of `subnet.env` (`core.subnetenv.variables`).
        combined: names of the variables that get all options; units of different distributions
            refer to different ones.
    """
    first, *others = combined
    text = compose(variables, Request(key=first))
    for name in others:
        text += compose(variables, Request(individual=False, key=name))
    return text.encode("ascii")


def compose(variables: Mapping[str, str], request: Request) -> str:
    """The content of the output file.

    Args:
        variables: the environment and, before it, what the env file says.
        request: what to write.

    Raises:
        ConfigError: `FLANNEL_IPMASQ` is neither `true` nor `false`; in the script's words.
    """
    known = dict(variables)
    if known.get("FLANNEL_SUBNET"):
        known["DOCKER_OPT_BIP"] = f"--bip={known['FLANNEL_SUBNET']}"
    if known.get("FLANNEL_MTU"):
        known["DOCKER_OPT_MTU"] = f"--mtu={known['FLANNEL_MTU']}"
    masquerade = known.get("FLANNEL_IPMASQ", "")
    if masquerade and request.ip_masq:
        inverted = {"true": "false", "false": "true"}.get(masquerade)
        if inverted is None:
            raise ConfigError(f"Invalid value of FLANNEL_IPMASQ: {masquerade}")
        known["DOCKER_OPT_IPMASQ"] = f"--ip-masq={inverted}"
    combined = known.get(request.key, "")
    if combined:
        combined += " "
    lines: list[str] = []
    for name in sorted(known):
        if _is_listed(name, known[name]):
            value = _one_line(known[name])
            combined += f" {value}"
            if request.individual:
                lines.append(f'{name}="{value}"\n')
    if request.combined:
        lines.append(f'{request.key}="{combined}"\n')
    return "".join(lines)


_WRITTEN: Final = re.compile(r'[A-Za-z_][A-Za-z0-9_]*="(?: ?--(?:bip|mtu|ip-masq)=[^ "$`\\]+)+"')


def is_written_here(content: str) -> bool:
    """Whether a file is a `docker_opts.env` that `render` or mk-docker-opts made of a `subnet.env`.

    One with options from elsewhere (`DOCKER_OPT_…` in the environment of mk-docker-opts) is not.
    """
    lines = content.split("\n")
    return "--mtu=" in content and all(_WRITTEN.fullmatch(line) for line in lines if line)


def refuse_active(from_file: Mapping[str, str], request: Request) -> None:
    """Makes sure that nothing from the env file comes alive in the output.

    The output puts values between double quotes as they are, so a `"`, a backslash, `$` or backtick
    that was harmless between single quotes there would mean something to the shell that reads ours.
    (What the environment brings is the caller's own and passes unchanged, as in the script.)

    Raises:
        ConfigError: naming the variable.
    """
    for name, value in from_file.items():
        written = name in {"FLANNEL_SUBNET", "FLANNEL_MTU", request.key} or _is_listed(name, value)
        active = [character for character in '"$`\\' if character in value]
        if written and active:
            raise ConfigError(f"{name}: {active[0]} in the value would mean something to a shell")


def _is_listed(name: str, value: str) -> bool:
    """Whether the script's search in the listing `NAME='VALUE'` finds this variable."""
    return MARK in f"{name}={value}".partition("\n")[0]


def _one_line(value: str) -> str:
    """The words of a value with one space between: a shell's field splitting, then `echo`."""
    return " ".join(word for word in re.split(r"[ \t\n]+", value) if word)


_BRIDGE: Final = re.compile(r"(\d+\.\d+\.\d+)\.(\d+)/(\d+)", re.ASCII)


def routed_already(variables: Mapping[str, str], routes: str) -> str:
    """The lines of `ip route show` that lead to our subnet through a gateway; empty if none does.

    The subnet is what the script makes of `FLANNEL_SUBNET`: the last octet less one. Compared are
    whole words (to the script a route to 110.1.74.0/24 is one to 10.1.74.0/24 as well).
    """
    match = _BRIDGE.fullmatch(variables.get("FLANNEL_SUBNET", ""))
    if match is None or int(match[2]) == 0:
        return ""
    subnet = f"{match[1]}.{int(match[2]) - 1}/{match[3]}"
    return "\n".join(
        line for line in routes.split("\n") if subnet in line.split() and "via" in line.split()
    )
