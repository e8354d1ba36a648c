"""The variables of distributions' flannel packages, turned into what the daemon understands.

CentOS's and Fedora's package had a file `/etc/sysconfig/flanneld` and a shell script that made
flags of it. Nodes still have such files, how-tos still teach the names:

| variable | older name | becomes |
|---|---|---|
| `FLANNEL_ETCD_ENDPOINTS` | `FLANNEL_ETCD` | `-etcd-endpoints=` |
| `FLANNEL_ETCD_PREFIX` | `FLANNEL_ETCD_KEY` | `-etcd-prefix=` |
| `FLANNEL_OPTIONS` | | flags, behind the others, so that they win |

As in the script, they are flags and so win over `FLANNELD_*`. Unlike it, nothing becomes of a
variable that is empty: the script then passed an empty flag, which hid `FLANNELD_*` and the
default. Where two of them say different things, both are named, with the one that counts.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from pyflannel.core.errors import UsageError
from pyflannel.core.options import FLAGS
from pyflannel.gocompat import flags as goflag
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

OPTIONS: Final = "FLANNEL_OPTIONS"


@dataclass(frozen=True, slots=True)
class _Name:
    """A variable of the package, its older name, and the flag that it becomes."""

    variable: str
    older: str
    flag: str


NAMES: Final = (
    _Name("FLANNEL_ETCD_ENDPOINTS", "FLANNEL_ETCD", "etcd-endpoints"),
    _Name("FLANNEL_ETCD_PREFIX", "FLANNEL_ETCD_KEY", "etcd-prefix"),
)

_KNOWN: Final = (*(name.variable for name in NAMES), *(name.older for name in NAMES), OPTIONS)
_OF_SUBNET_ENV: Final = (
    "FLANNEL_NETWORK",
    "FLANNEL_SUBNET",
    "FLANNEL_IPV6_NETWORK",
    "FLANNEL_IPV6_SUBNET",
    "FLANNEL_MTU",
    "FLANNEL_IPMASQ",
)
"""What `subnet.env` defines; a unit that reads it as an environment file passes them on."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How the daemon is to be started."""

    argv: tuple[str, ...]
    """Its arguments, without the program's name."""
    warnings: tuple[str, ...] = ()


def translate(argv: Sequence[str], env: Mapping[str, str]) -> Launch:
    """The daemon's arguments, for this environment and these arguments of the unit.

    The order is the script's: flags made of variables, then the unit's own, then `FLANNEL_OPTIONS`.

    Raises:
        UsageError: a quote in `FLANNEL_OPTIONS` does not end.
    """
    try:
        options = shlex.split(env.get(OPTIONS, ""))
    except ValueError as error:
        # Not the value: there may be a password in it.
        raise UsageError(f"{OPTIONS} cannot be split into words: {error}") from None
    later = [*argv, *options]
    flags: list[str] = []
    warnings: list[str] = []
    for name in NAMES:
        said = [(each, env[each]) for each in (name.variable, name.older) if env.get(each)]
        if said:
            flags.append(f"-{name.flag}={said[0][1]}")
        by_flag = _flag_value(later, name.flag)
        if by_flag is not None:
            said.insert(0, (f"-{name.flag}", by_flag))
        direct = "FLANNELD_" + name.flag.upper().replace("-", "_")
        if env.get(direct):
            said.append((direct, env[direct]))
        warnings += _contradictions(said)
    warnings += _overruled(later, env)
    warnings += _unknown(env)
    return Launch((*flags, *later), tuple(warnings))


def _flag_value(arguments: Sequence[str], flag: str) -> str | None:
    """What the arguments give the flag, if anything; wrong ones are the daemon's to tell."""
    try:
        flags = goflag.parse(FLAGS, arguments)
    except goflag.FlagError:
        return None
    return flags.text(flag) if flag in flags.given else None


def _contradictions(said: Sequence[tuple[str, str]]) -> list[str]:
    """A sentence about each source that says something else than the first, which counts."""
    if not said:
        return []
    first, value = said[0]
    return [
        f"{first}={goflag.hide_user_info(value)} and {other}={goflag.hide_user_info(ignored)}"
        f" contradict each other; {first} counts"
        for other, ignored in said[1:]
        if ignored != value
    ]


def _overruled(arguments: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """A sentence about each `FLANNELD_*` that says something else than a flag in the arguments."""
    try:
        flags = goflag.parse(FLAGS, arguments)
    except goflag.FlagError:
        return []
    own = {name.flag for name in NAMES}
    warnings = []
    for flag in FLAGS:
        value = env.get(flag.variable(), "") if flag.env else ""
        if flag.name not in flags.given or flag.name in own or not value:
            continue
        try:
            other = goflag.parse(FLAGS, [f"-{flag.name}={value}"]).values[flag.name]
        except goflag.FlagError:
            continue  # the daemon's to tell
        mine = flags.values[flag.name]
        if mine != other:
            warnings.append(
                f"-{flag.name}={goflag.show(flag, mine)} and {flag.variable()}="
                f"{goflag.show(flag, other)} contradict each other; -{flag.name} counts"
            )
    return warnings


def _unknown(env: Mapping[str, str]) -> list[str]:
    warnings = []
    for name in sorted(env):
        if not name.startswith("FLANNEL_") or name in _KNOWN or name in _OF_SUBNET_ENV:
            continue
        near = did_you_mean(name, _KNOWN)
        hint = f"; did you mean {near}?" if near else "; pyflanneld's own begin with FLANNELD_"
        warnings.append(f"{name} is not used{hint}")
    return warnings
