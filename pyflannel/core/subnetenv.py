"""`subnet.env`: what docker, CNI and our own next start learn about this node's subnet.

Written, it is upstream's to the byte: fixed lines in a fixed order, no quotes, because the CNI
plugin splits at `=` and trims nothing. Read, it may have been through other hands (an editor, a
configuration management, a crash): the dotenv dialect is understood, whatever cannot be used is
passed over with a reason for the log, and no content whatsoever makes the reader fail.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final, TypeVar

from pyflannel.core.config import NetworkConfig
from pyflannel.core.ip import (
    IPNetwork,
    SubnetKey,
    format_ip,
    format_network,
    parse_ipv4_network,
    parse_ipv6_network,
)
from pyflannel.records import dataclass

MOST_REASONS: Final = 8
"""So many passed-over things are told one by one: twice as many as a sound file could have."""

_Net = TypeVar("_Net", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetEnv:
    """What a `subnet.env` says; `None` for each thing that it does not say in a usable way."""

    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    """The node's subnet, masked: `FLANNEL_SUBNET=10.5.72.1/24` is `10.5.72.0/24`."""
    ipv6_network: IPv6Network | None = None
    ipv6_subnet: IPv6Network | None = None
    mtu: int | None = None
    ip_masq: bool | None = None
    skipped: tuple[str, ...] = ()
    """What was passed over, each with its line or key and the reason, as a sentence."""

    @property
    def previous_subnet(self) -> SubnetKey | None:
        """The subnet that the writer of the file had, as a lease key; `None` if it names none."""
        if self.subnet is None and self.ipv6_subnet is None:
            return None
        return SubnetKey(self.subnet, self.ipv6_subnet)


def render(config: NetworkConfig, key: SubnetKey, *, mtu: int, ip_masq: bool) -> bytes:
    """The bytes of `subnet.env` for a lease.

    Args:
        config: says which families are enabled; each gets its two lines.
        key: the lease's subnets. Written is the first address inside, which the bridge takes as
            its own, with the subnet's length.
        mtu: what a container may send, encapsulation already taken off.
        ip_masq: the `--ip-masq` flag.

    Raises:
        ValueError: if an enabled family has no network or no subnet.
    """
    return text(variables(config, key, mtu=mtu, ip_masq=ip_masq))


def text(pairs: Mapping[str, str]) -> bytes:
    """The bytes of `subnet.env` for these variables."""
    return "".join(f"{name}={value}\n" for name, value in pairs.items()).encode("ascii")


def variables(config: NetworkConfig, key: SubnetKey, *, mtu: int, ip_masq: bool) -> dict[str, str]:
    """The variables in the order of the file; arguments and errors are those of `render`."""
    pairs: dict[str, str] = {}
    if config.enable_ipv4:
        pairs |= _pair("FLANNEL_", config.network, key.v4)
    if config.enable_ipv6:
        pairs |= _pair("FLANNEL_IPV6_", config.ipv6_network, key.v6)
    return pairs | {"FLANNEL_MTU": str(mtu), "FLANNEL_IPMASQ": "true" if ip_masq else "false"}


def _pair(prefix: str, network: IPNetwork | None, subnet: IPNetwork | None) -> dict[str, str]:
    if network is None or subnet is None:
        raise ValueError(f"{prefix}SUBNET: an enabled family has no network or no subnet")
    gateway = format_ip(subnet.network_address + 1)
    return {
        f"{prefix}NETWORK": format_network(network),
        f"{prefix}SUBNET": f"{gateway}/{subnet.prefixlen}",
    }


_LINE: Final = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.]*)[ \t]*=[ \t]*(.*)", re.ASCII)
_BARE: Final = re.compile(r"(.*?)(?:[ \t]+#.*)?", re.ASCII)
_QUOTED: Final = re.compile(r"""(["'])(.*?)\1[ \t]*(?:\#.*)?""", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,10}", re.ASCII)


def parse(content: str | bytes) -> SubnetEnv:
    """Reads a `subnet.env`, no matter who wrote it.

    The dialect is dotenv's: `KEY=VALUE` a line, an `export` in front, comments, quotes around the
    value. The last line of a key counts. The four prefixes may be lists with commas (a file shared
    by several clusters): bad members are passed over. Of more than one good member it cannot be
    told which was ours, so there is none.
    """
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    skipped: list[str] = []
    pairs = _read_pairs(text, skipped)
    mtu = pairs.get("FLANNEL_MTU", "")
    if mtu and not _NUMBER.fullmatch(mtu):
        skipped.append(f"FLANNEL_MTU: {_shown(mtu)} is not a number")
        mtu = ""
    masq = pairs.get("FLANNEL_IPMASQ", "")
    if masq not in {"", "true", "false"}:
        skipped.append(f"FLANNEL_IPMASQ: {_shown(masq)} is neither true nor false")
        masq = ""
    return SubnetEnv(
        network=_one(pairs, "FLANNEL_NETWORK", parse_ipv4_network, skipped),
        subnet=_one(pairs, "FLANNEL_SUBNET", parse_ipv4_network, skipped),
        ipv6_network=_one(pairs, "FLANNEL_IPV6_NETWORK", parse_ipv6_network, skipped),
        ipv6_subnet=_one(pairs, "FLANNEL_IPV6_SUBNET", parse_ipv6_network, skipped),
        mtu=int(mtu) if mtu else None,
        ip_masq=masq == "true" if masq else None,
        skipped=_first(skipped),
    )


def assignments(content: str) -> dict[str, str]:
    """The variables of a file of `KEY=VALUE` lines, such as systemd's `EnvironmentFile=`.

    Lines that are none are passed over, as systemd does.
    """
    return _read_pairs(content, [])


def is_flannels(content: str) -> bool:
    """Whether a file is a `subnet.env` that flannel or we wrote, also if its end is missing.

    It has a network or subnet of flannel's, and nothing besides flannel's variables and comments.
    """
    garbage: list[str] = []
    names = _read_pairs(content, garbage)
    found = parse(content)
    prefixes = (found.network, found.subnet, found.ipv6_network, found.ipv6_subnet)
    only_ours = all(name.startswith("FLANNEL_") for name in names)
    return only_ours and not garbage and any(prefix is not None for prefix in prefixes)


def why_damaged(found: str, written: str) -> str:
    """What a `subnet.env` says otherwise than the one that was written; empty if nothing.

    Whatever else is in the file (comments, further variables, another order) does no harm.
    """
    return _missing(found, _read_pairs(written, []))


def docker_why_damaged(found: str, written: str) -> str:
    """The same of `docker_opts.env`, where it is enough that docker gets our subnet.

    Others may write this file as well, with mk-docker-opts and other options than ours: that is
    what they want docker to have. Only a file that keeps docker out of the subnet is damaged.
    """
    for option in _BIP.findall(written):
        if option not in _BIP.findall(found):
            return f"{option} is missing"
    return ""


_BIP: Final = re.compile(r"--bip=[0-9./]+", re.ASCII)


def _missing(found: str, wanted: Mapping[str, str]) -> str:
    there = _read_pairs(found, [])
    for name, value in wanted.items():
        if there.get(name) != value:
            shown = _shown(there[name]) if name in there else "missing"
            return f"{name} is {shown} instead of {value}"
    return ""


def _read_pairs(text: str, skipped: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    # Not splitlines(): that also splits at form feeds and Unicode separators.
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            skipped.append(f"line {number}: {_shown(line)} is not KEY=VALUE")
            continue
        name, value = match[1], match[2]
        if value[:1] in {'"', "'"}:
            quoted = _QUOTED.fullmatch(value)
            if quoted is None:
                skipped.append(f"line {number}: {name} has a quote that does not end")
                continue
            pairs[name] = quoted[2]
        else:
            bare = _BARE.fullmatch("" if value.startswith("#") else value)
            pairs[name] = bare[1] if bare is not None else value
    return pairs


def _one(
    pairs: Mapping[str, str], name: str, read: Callable[[str], _Net], skipped: list[str]
) -> _Net | None:
    value = pairs.get(name, "")
    good: list[_Net] = []
    for member in value.split(",") if value else ():
        try:
            good.append(read(member))
        except ValueError:
            skipped.append(f"{name}: {_shown(member)} is not a prefix (ADDRESS/LENGTH)")
    if len(good) > 1:
        skipped.append(f"{name}: {len(good)} prefixes, and nothing says which of them is ours")
    return good[0] if len(good) == 1 else None


def _first(skipped: list[str]) -> tuple[str, ...]:
    """The reasons, but not a thousand of them for a file that is garbage throughout."""
    more = len(skipped) - MOST_REASONS
    rest = (f"and {more} more",) if more > 0 else ()
    return (*skipped[:MOST_REASONS], *rest)


def _shown(value: str) -> str:
    """A value quoted for a log line, cut off where it stops being of use there."""
    return repr(value if len(value) <= 60 else value[:57] + "...")
