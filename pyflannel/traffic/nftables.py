"""The rules in nf_tables: upstream's two tables and chains, filled in one transaction.

```
table ip flannel-ipv4 {
  chain postrtg { type nat hook postrouting priority srcnat; policy accept; … }
  chain forward { type filter hook forward priority filter; policy accept; … }
  chain guard { type filter hook prerouting priority raw; policy accept; … }
}
table ip6 flannel-ipv6 { … }
```

The last chain is not upstream's.

The rules are `core.rules`, the same that iptables gets, so both managers do the same to a packet
(upstream's list for nftables differs, and its last rule is never reached). The forward chain never
has a drop policy: it shares the hook with other programs' chains.

A table that holds nothing but ours is written anew as a whole. Where there are rules that are not
ours (see `traffic.base`) ours are taken out by their handles and added again, in one transaction.
The rule about the mark names no network; it is the same for every daemon, and there once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from pyflannel.core.errors import CommandError, FlannelError
from pyflannel.core.ip import Family, IPNetwork
from pyflannel.core.rules import KUBE_PROXY_MARK, Action, FamilyRules, Rule, RuleSet, is_about
from pyflannel.kernel.nft import Json, Nft
from pyflannel.logs import get_logger
from pyflannel.traffic.base import RulesApplied
from pyflannel.traffic.monitor import ChangeMonitor

log = get_logger(__name__)

NFT_FAMILY: Final = {Family.V4: "ip", Family.V6: "ip6"}
TABLE: Final = {Family.V4: "flannel-ipv4", Family.V6: "flannel-ipv6"}
POSTROUTING: Final = "postrtg"
FORWARD: Final = "forward"
GUARD: Final = "guard"
COMMENT: Final = {
    POSTROUTING: "chain to manage traffic masquerading by flannel",
    FORWARD: "chain to accept flannel traffic",
    GUARD: "chain to keep pods from the nodes' tunnel ports",
}


MARK_RULE: Final = Rule(mark=KUBE_PROXY_MARK, action=Action.RETURN)
"""The one rule that names no network."""
UPSTREAMS_MARK: Final[list[Json]] = [
    {"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": KUBE_PROXY_MARK}},
    {"return": None},
]
"""The same as upstream's flanneld writes it."""


def expressions(rule: Rule, family: Family, *, fully_random: bool) -> list[Json]:
    """One rule in the form in which `nft -j list` shows it."""
    parts: list[Json] = []
    if rule.mark is not None:
        masked = {"&": [{"meta": {"key": "mark"}}, rule.mark]}
        parts.append({"match": {"op": "==", "left": masked, "right": rule.mark}})
    for field, network, is_not in (
        ("saddr", rule.source, rule.source_is_not),
        ("daddr", rule.destination, rule.destination_is_not),
    ):
        if network is not None:
            parts.append(_address_match(family, field, network, is_not=is_not))
    if rule.udp_port is not None:
        port = {"payload": {"protocol": "udp", "field": "dport"}}
        parts.append({"match": {"op": "==", "left": port, "right": rule.udp_port}})
    if rule.action is Action.MASQUERADE and fully_random:
        parts.append({"masquerade": {"flags": "fully-random"}})
    else:
        parts.append({rule.action.value.lower(): None})
    return parts


def _address_match(family: Family, field: str, network: IPNetwork, *, is_not: bool) -> Json:
    return {
        "match": {
            "op": "!=" if is_not else "==",
            "left": {"payload": {"protocol": NFT_FAMILY[family], "field": field}},
            "right": _address(network),
        }
    }


def _address(network: IPNetwork) -> object:
    """A prefix as nft prints it in JSON."""
    address = str(network.network_address)
    if network.prefixlen == network.max_prefixlen:
        return address
    return {"prefix": {"addr": address, "len": network.prefixlen}}


def wanted_chains(rules: RuleSet, family: Family, *, fully_random: bool) -> dict[str, list[Any]]:
    """Chain name → its rules as expressions; a part without rules has no chain."""
    return {
        name: [expressions(rule, family, fully_random=fully_random) for rule in chain]
        for name, chain in _chains(rules.of(family)).items()
        if chain
    }


def _chains(part: FamilyRules) -> dict[str, tuple[Rule, ...]]:
    return {POSTROUTING: part.masquerade, FORWARD: part.forward, GUARD: part.guard}


def render(rule: Rule, family: Family, *, fully_random: bool) -> str:
    """One rule in nft's language."""
    parts = []
    if rule.mark is not None:
        parts.append(f"meta mark & {rule.mark:#x} == {rule.mark:#x}")
    for field, network, is_not in (
        ("saddr", rule.source, rule.source_is_not),
        ("daddr", rule.destination, rule.destination_is_not),
    ):
        if network is not None:
            parts.append(f"{NFT_FAMILY[family]} {field} {'!= ' if is_not else ''}{network}")
    if rule.udp_port is not None:
        parts.append(f"udp dport {rule.udp_port}")
    parts.append(rule.action.value.lower())
    if rule.action is Action.MASQUERADE and fully_random:
        parts.append("fully-random")
    return " ".join(parts)


def transaction(rules: RuleSet, family: Family, *, fully_random: bool) -> str:
    """What makes the table hold exactly these rules, whatever it held before, in one step.

    In nft's language and not in JSON, which has no comments on tables and chains before nft 1.1.
    """
    table = f"{NFT_FAMILY[family]} {TABLE[family]}"
    lines = [f"add table {table}", f"delete table {table}"]
    chains = _chains(rules.of(family))
    if any(chains.values()):
        lines += [f"table {table} {{", f'  comment "rules for {TABLE[family]}"']
        for name, chain in chains.items():
            if chain:
                lines += [f"  chain {name} {{", f'    comment "{COMMENT[name]}"']
                lines.append(f"    {BASE[name]}")
                lines += [f"    {render(r, family, fully_random=fully_random)}" for r in chain]
                lines.append("  }")
        lines.append("}")
    return "\n".join([*lines, ""])


BASE: Final = {
    POSTROUTING: "type nat hook postrouting priority srcnat; policy accept;",
    FORWARD: "type filter hook forward priority filter; policy accept;",
    GUARD: "type filter hook prerouting priority raw; policy accept;",
}
"""What hooks a chain of ours into the kernel."""
_HOOKS: Final = {name: tuple(base.split()[1:4:2]) for name, base in BASE.items()}
"""Type and hook of each."""


class Present(NamedTuple):
    """One rule in the kernel."""

    handle: int
    expr: list[Any]


class Listed(NamedTuple):
    """What stands in our table."""

    exists: bool
    chains: dict[str, list[Present]]
    """Ours."""
    broken: frozenset[str]
    """Chains that have our name, and are hooked in otherwise."""
    foreign: bool
    """Whether something else stands there: other chains, sets, counters. It is an operator's."""


def names(expr: list[Any], networks: Collection[IPNetwork]) -> bool:
    """Whether a rule compares an address with one of some networks."""
    addresses = [_address(network) for network in networks]
    return any(part["match"]["right"] in addresses for part in expr if "match" in part)


def repair_beside_others(
    rules: RuleSet,
    family: Family,
    present: Mapping[str, list[Present]],
    networks: Collection[IPNetwork],
    *,
    broken: Iterable[str] = (),
    fully_random: bool,
) -> str:
    """What makes our rules so in a table that holds others' as well; empty if all is right."""
    table = f"{NFT_FAMILY[family]} {TABLE[family]}"
    lines = _without(family, broken).splitlines()
    for chain, wanted in _chains(rules.of(family)).items():
        there = present.get(chain, [])
        exprs = [rule.expr for rule in there]
        own = [rule for rule in wanted if is_about(rule, networks)]
        common = [rule for rule in wanted if not is_about(rule, networks)]
        mine = [rule for rule in there if names(rule.expr, networks)]

        def as_listed(rule: Rule) -> list[Any]:
            return expressions(rule, family, fully_random=fully_random)

        theirs = [rule for rule in there if rule not in mine]
        if not wanted and not any("masquerade" in part for rule in theirs for part in rule.expr):
            # Nothing is masqueraded any more, so nothing needs an exception.
            mine += [rule for rule in theirs if rule.expr == as_listed(MARK_RULE)]
        if not wanted and chain in present and len(mine) == len(there):
            lines += [f"flush chain {table} {chain}", f"delete chain {table} {chain}"]
            continue
        before = exprs[: exprs.index(mine[0].expr)] if mine else exprs
        leads = all(as_listed(rule) in before for rule in common)
        if leads and [rule.expr for rule in mine] == [as_listed(rule) for rule in own]:
            continue
        lines += [f"delete rule {table} {chain} handle {rule.handle}" for rule in mine]
        if wanted and chain not in present:
            lines.append(f"add chain {table} {chain} {{ {BASE[chain]} }}")
        added = [rule for rule in common if as_listed(rule) not in exprs] + own
        lines += [
            f"add rule {table} {chain} {render(rule, family, fully_random=fully_random)}"
            for rule in added
        ]
    return "\n".join([*lines, ""]) if lines else ""


def _without(family: Family, chains: Iterable[str]) -> str:
    """What takes whole chains away; empty if there are none."""
    table = f"{NFT_FAMILY[family]} {TABLE[family]}"
    return "".join(f"flush chain {table} {c}\ndelete chain {table} {c}\n" for c in sorted(chains))


def read_table(listing: Json) -> Listed:
    """What `list table` shows."""
    chains: dict[str, list[Present]] = {}
    broken: set[str] = set()
    foreign = False
    for item in listing.get("nftables", ()):
        (kind,) = item
        name = item["chain"]["name"] if kind == "chain" else item.get("rule", {}).get("chain")
        if name not in _HOOKS:
            foreign |= kind not in ("metainfo", "table")
        elif kind == "chain":
            chain = item["chain"]
            base = (chain.get("type"), chain.get("hook"), chain.get("policy"))
            if base == (*_HOOKS[name], "accept"):
                chains[name] = []
            else:
                broken.add(name)
        elif name in chains:
            rule = item["rule"]
            chains[name].append(Present(rule["handle"], rule["expr"]))
    return Listed(exists=True, chains=chains, broken=frozenset(broken), foreign=foreign)


def has_others(present: Listed, networks: Collection[IPNetwork]) -> bool:
    """Whether a table holds something that is not ours, nor the rule about the mark."""
    marks = (expressions(MARK_RULE, Family.V4, fully_random=False), UPSTREAMS_MARK)
    return present.foreign or any(
        rule.expr not in marks and not names(rule.expr, networks)
        for chain in present.chains.values()
        for rule in chain
    )


def _exprs(present: Mapping[str, list[Present]]) -> dict[str, list[Any]]:
    """Comparable with `wanted_chains`."""
    return {chain: [rule.expr for rule in rules] for chain, rules in present.items()}


class NftablesManager:
    """The `TrafficManager` over nf_tables.

    Args:
        fully_random: `False` with `--ip-masq-fully-random-disable`.
        resync_s: `--iptables-resync`.
    """

    def __init__(
        self, *, fully_random: bool = True, resync_s: float = 5.0, nft: Nft | None = None
    ) -> None:
        self._nft = nft or Nft()
        self._want_fully_random = fully_random
        self._fully_random: bool | None = None
        self._applied: dict[Family, dict[str, list[Any]]] = {}
        self._networks: frozenset[IPNetwork] = frozenset()
        self._monitor = ChangeMonitor(resync_s, tables=tuple(TABLE.values()))

    async def ensure(self, rules: RuleSet, *, previous: RuleSet | None = None) -> RulesApplied:
        """As in `TrafficManager`."""
        self._networks |= rules.networks | (previous.networks if previous is not None else set())
        changed = repaired = False
        masquerades = any(part.masquerade for part in rules.families)
        fully_random = masquerades and await self._knows_fully_random()
        for family in Family:
            wanted = wanted_chains(rules, family, fully_random=fully_random)
            present = await self._present(family)
            if has_others(present, self._networks):
                text = repair_beside_others(
                    rules,
                    family,
                    present.chains,
                    self._networks,
                    broken=present.broken,
                    fully_random=fully_random,
                )
            elif (
                present.exists == bool(wanted)
                and not present.broken
                and _exprs(present.chains) == wanted
            ):
                text = ""
            else:
                text = transaction(rules, family, fully_random=fully_random)
            if not text:
                self._note(family, wanted)
                continue
            await self._nft.run(text)
            changed = True
            repaired = repaired or (bool(wanted) and self._applied.get(family) == wanted)
            self._note(family, wanted)
        # Two questions for each family, by children only where the library is missing.
        self._monitor.arm(processes=0 if self._nft.in_process else 2 * len(Family))
        return RulesApplied(changed=changed, repaired=repaired)

    async def changed(self) -> bool:
        """As in `TrafficManager`."""
        return await self._monitor.wait()

    def close(self) -> None:
        """As in `TrafficManager`."""
        self._monitor.close()

    async def leftovers(self, ours: Collection[IPNetwork] | None = None) -> list[str]:
        """As in `TrafficManager`."""
        found = []
        for family in Family:
            try:
                if await self._removal(family, ours):
                    found.append(f"nft table {NFT_FAMILY[family]} {TABLE[family]}")
            except FlannelError as error:
                log.debug("nft cannot be asked", family=family, error=error)
        return found

    async def remove(
        self, *, but: RuleSet | None = None, ours: Collection[IPNetwork] | None = None
    ) -> None:
        """As in `TrafficManager`."""
        if but is not None:
            return  # `ensure` looks after all that is ours
        for family in Family:
            try:
                if text := await self._removal(family, ours):
                    await self._nft.run(text)
            except FlannelError as error:
                log.debug("table not removed", table=TABLE[family], error=error)

    async def _removal(self, family: Family, ours: Collection[IPNetwork] | None) -> str:
        """What takes our rules away, and the table with the last rule; empty if none is there."""
        nothing = RuleSet()
        present = await self._present(family)
        if not present.exists:
            return ""
        if ours is not None and has_others(present, ours):
            return repair_beside_others(
                nothing, family, present.chains, ours, broken=present.broken, fully_random=False
            )
        if present.foreign:
            return _without(family, {*present.chains, *present.broken})
        return transaction(nothing, family, fully_random=False)

    def _note(self, family: Family, wanted: dict[str, list[Any]]) -> None:
        if wanted:
            self._applied[family] = wanted
        else:
            self._applied.pop(family, None)

    async def _present(self, family: Family) -> Listed:
        """What stands in our table; nothing if there is none."""
        tables = await self._nft.ask({"list": {"tables": {"family": NFT_FAMILY[family]}}})
        names = {item["table"]["name"] for item in tables.get("nftables", ()) if "table" in item}
        if TABLE[family] not in names:
            return Listed(exists=False, chains={}, broken=frozenset(), foreign=False)
        which = {"family": NFT_FAMILY[family], "name": TABLE[family]}
        return read_table(await self._nft.ask({"list": {"table": which}}))

    async def _knows_fully_random(self) -> bool:
        """Whether kernel and nft take `fully-random`, by a dry run in a table of its own."""
        if not self._want_fully_random:
            return False
        if self._fully_random is None:
            probe = (
                "table ip flannel-probe { chain probe {\n"
                "type nat hook postrouting priority srcnat; policy accept;\n"
                "masquerade fully-random\n}\n}\n"
            )
            try:
                await self._nft.run(probe, check_only=True)
            except CommandError as error:
                log.info("masquerading without fully-random", reason=error)
                self._fully_random = False
            else:
                self._fully_random = True
        return self._fully_random
