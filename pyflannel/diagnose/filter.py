"""Would the firewall let this packet pass? A pure function over chains, no matter who wrote them.

A match is true, false or unknown; if unknown, both branches are followed. So there are three
outcomes: every branch ends in a drop, none does, or some do, which is "may". As in the kernel
(nft(8), "VERDICT STATEMENTS"), a drop ends everything, an accept only its base chain, and the
policy decides what reaches the end of a base chain.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from pyflannel.core.ip import IPAddress, IPNetwork
from pyflannel.records import dataclass

DEEPEST: Final = 16
"""Jumps inside each other: NFT_JUMP_STACK_SIZE of linux/netfilter/nf_tables.h."""


class Hook(enum.StrEnum):
    """Where a packet meets a base chain."""

    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """The first packet of a connection, with mark 0. `None` is: not known, or any."""

    source: IPAddress | None = None
    destination: IPAddress | None = None
    iif: str | None = None
    """Name of the device it came in by; empty where there is none."""
    oif: str | None = None
    protocol: str | None = None
    """`icmp`, `ipv6-icmp`, `tcp`, `udp`, `ipip`."""
    sport: int | None = None
    dport: int | None = None
    to_us: bool | None = None
    """Whether the destination is an address of this node."""
    from_us: bool | None = None
    returns: bool | None = None
    """Whether the route back to its source uses the device where it came in."""

    @property
    def version(self) -> int:
        """4 or 6."""
        known = self.source or self.destination
        return known.version if known is not None else 4

    def seen(self, name: str) -> object:
        """The value of a field as a rule sees it; `None` if unknown."""
        fixed = _FIXED.get(name)
        if fixed is not None:
            return fixed
        if name == "nfproto":
            return f"ipv{self.version}"
        if name == "icmptype":
            return "echo-request" if self.protocol in {"icmp", "ipv6-icmp"} else "none"
        if name in _TYPES:
            local = self.to_us if name == "dtype" else self.from_us
            return None if local is None else "local" if local else "unicast"
        if name == "returns":
            return None if self.returns is None else "yes" if self.returns else "no"
        return getattr(self, name) if name in _OWN else None


_FIXED: Final[Mapping[str, object]] = {
    "state": "new",
    "status": "none",
    "direction": "original",
    "mark": 0,
    "pkttype": "host",
}
"""Of the first packet of a connection, with mark 0, that was sent to one host."""
_TYPES: Final = frozenset({"dtype", "stype"})
_OWN: Final = frozenset({"source", "destination", "iif", "oif", "protocol", "sport", "dport"})
Value = str | IPNetwork | tuple[int, int]
"""An interface or word, of which a trailing `*` stands for anything; a prefix; a range."""


@dataclass(frozen=True, slots=True)
class Match:
    """One condition of a rule: a field of the packet is one of some values, or is none of them."""

    field: str
    """`iif`, `oif`, `source`, `destination`, `protocol`, `sport`, `dport`, `nfproto`, `icmptype`;
    of the connection `state`, `status`, `direction`, `mark`; by the routes `dtype`, `stype` (type
    of destination and source) and `returns`; `pkttype`. The result for any other field is
    unknown."""
    values: tuple[Value, ...] = ()
    negated: bool = False

    def holds(self, packet: Packet) -> bool | None:
        """Whether it matches; `None` if unknown."""
        found = packet.seen(self.field)
        if found is None:
            return None
        return any(_is(found, value) for value in self.values) != self.negated


UNKNOWN: Final = Match("?")
"""A condition that is not understood."""


def _is(found: object, value: Value) -> bool:
    if isinstance(value, IPv4Network | IPv6Network):
        return (
            isinstance(found, IPv4Address | IPv6Address)
            and found.version == value.version
            and found in value
        )
    if isinstance(value, tuple):
        return isinstance(found, int) and value[0] <= found <= value[1]
    if value.endswith("*"):
        return str(found).startswith(value[:-1])
    return found == value


class Verb(enum.Enum):
    """The verdict of a rule."""

    ACCEPT = enum.auto()
    DROP = enum.auto()
    RETURN = enum.auto()
    JUMP = enum.auto()
    GOTO = enum.auto()
    FOREIGN = enum.auto()
    """Hands the packet to a program, which may do anything with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule with a verdict; those without one change nothing here and are left out."""

    matches: tuple[Match, ...] = ()
    verb: Verb
    target: str = ""
    """The chain of a jump."""
    to: IPAddress | None = None
    """Of a rule that translates the destination (DNAT): the new one."""
    to_port: int | None = None
    masks: bool = False
    """Of a rule that gives the packet another source (SNAT, masquerade)."""
    text: str = ""
    """The rule as its tool shows it, with table and chain, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A chain; a base chain if it has a hook."""

    name: str
    rules: Sequence[Rule] = ()
    hook: Hook | None = None
    priority: int = 0
    drops: bool = False
    """Whether its policy is to drop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Chains that can jump to each other, by name."""

    name: str
    """As its tool calls it: `inet firewalld`, `iptables filter`."""
    chains: Mapping[str, Chain]
    version: int | None = None
    """Of the packets that meet it: 4, 6, or `None` for both."""


@dataclass(frozen=True, slots=True)
class Drop:
    """A place where a packet ends."""

    certain: bool
    """Whether every branch ends here; else the packet *may* end here."""
    rule: str
    """The rule's text, or the chain whose policy it is."""
    is_policy: bool = False


def bases(tables: Iterable[Table], hook: Hook, version: int) -> list[tuple[Chain, Table]]:
    """The base chains that a packet of an IP version meets at a hook, in order."""
    found = [
        (chain, table)
        for table in tables
        if table.version in {None, version}
        for chain in table.chains.values()
        if chain.hook is hook
    ]
    return sorted(found, key=lambda pair: pair[0].priority)


def translated(tables: Iterable[Table], hook: Hook, packet: Packet) -> Packet:
    """The packet behind a hook, whose rules may have given it another destination.

    If they only may have, it is unchanged: a pod's address is no service.
    """
    for chain, table in bases(tables, hook, packet.version):
        ends = _Walk(table, packet).chain(chain, 0)
        certain = not (ends.accepted or ends.foreign or ends.falls_through or ends.drops)
        if len(ends.translations) == 1 and certain:
            (rule,) = ends.translations
            return replace(
                packet,
                destination=rule.to or packet.destination,
                dport=rule.to_port or packet.dport,
                to_us=None,
            )
    return packet


def masked(tables: Iterable[Table], packet: Packet) -> str:
    """The rule that certainly changes a packet's source on its way out; empty if none does."""
    for chain, table in bases(tables, Hook.POSTROUTING, packet.version):
        ends = _Walk(table, packet).chain(chain, 0)
        if ends.masks and not (ends.accepted or ends.foreign or ends.falls_through):
            return ends.masks[0]
    return ""


def drops(tables: Iterable[Table], hook: Hook, packet: Packet) -> list[Drop]:
    """Where a packet ends, or may end, at one hook. Empty: it passes.

    After a certain drop nothing more is evaluated: the packet is gone.
    """
    found: list[Drop] = []
    for chain, table in bases(tables, hook, packet.version):
        walk = _Walk(table, packet)
        ends = walk.chain(chain, 0)
        bad = list(dict.fromkeys(end for end in ends.drops))
        if ends.falls_through and chain.drops:
            bad.append((f"policy drop of chain {chain.name} in {table.name}", True))
        passes = (
            ends.translations
            or ends.masks
            or ends.accepted
            or ends.foreign
            or (ends.falls_through and not chain.drops)
        )
        found += [Drop(not passes, text, is_policy) for text, is_policy in bad]
        if bad and not passes:
            break
    return found


@dataclass(slots=True)
class _Ends:
    """How a packet can leave a chain."""

    drops: list[tuple[str, bool]] = field(default_factory=list)
    accepted: bool = False
    foreign: bool = False
    translations: list[Rule] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    falls_through: bool = False


class _Walk:
    """One packet through one table. Each chain is evaluated once."""

    def __init__(self, table: Table, packet: Packet) -> None:
        self._table = table
        self._packet = packet
        self._known: dict[str, _Ends] = {}

    def chain(self, chain: Chain, depth: int) -> _Ends:
        known = self._known.get(chain.name)
        if known is not None:
            return known
        ends = _Ends()
        if not self._rules(chain, ends, depth):
            ends.falls_through = True
        self._known[chain.name] = ends
        return ends

    def _rules(self, chain: Chain, ends: _Ends, depth: int) -> bool:
        """Adds the results of the rules; whether the packet never passes the last one."""
        for rule in chain.rules:
            holds = [match.holds(self._packet) for match in rule.matches]
            if False in holds:
                continue
            certain = None not in holds
            if self._rule(rule, ends, depth) and certain:
                return True
        return False

    def _rule(self, rule: Rule, ends: _Ends, depth: int) -> bool:
        """Adds the result of a matching rule; whether it ends the chain."""
        if rule.masks:
            ends.masks.append(rule.text)
        elif rule.to is not None or rule.to_port is not None:
            ends.translations.append(rule)
        elif rule.verb is Verb.ACCEPT:
            ends.accepted = True
        elif rule.verb is Verb.DROP:
            ends.drops.append((rule.text, False))
        elif rule.verb is Verb.FOREIGN:
            ends.foreign = True
            ends.drops.append((rule.text, False))
        elif rule.verb is Verb.RETURN:
            ends.falls_through = True
        else:
            return self._jump(rule, ends, depth)
        return True

    def _jump(self, rule: Rule, ends: _Ends, depth: int) -> bool:
        there = self._table.chains.get(rule.target)
        if there is None or depth >= DEEPEST:
            return False
        inner = self.chain(there, depth + 1)
        ends.drops += inner.drops
        ends.accepted |= inner.accepted
        ends.foreign |= inner.foreign
        ends.translations += inner.translations
        ends.masks += inner.masks
        if rule.verb is Verb.GOTO:
            ends.falls_through |= inner.falls_through
            return True
        return not inner.falls_through
