"""The output of `nft -j list ruleset` as chains of `diagnose.filter` (libnftables-json(5))."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any, Final

from pyflannel.diagnose.filter import UNKNOWN, Chain, Hook, Match, Rule, Table, Value, Verb
from pyflannel.diagnose.protocols import icmp_type, protocol

FAMILIES: Final = {"ip": 4, "ip6": 6, "inet": None}
"""Families whose tables see packets in the IP stack, with the IP version that they see."""
_META: Final = {
    "iif": "iif",
    "iifname": "iif",
    "oif": "oif",
    "oifname": "oif",
    "l4proto": "protocol",
    "mark": "mark",
    "nfproto": "nfproto",
    "pkttype": "pkttype",
}
_CT: Final = {"state": "state", "status": "status", "direction": "direction", "mark": "mark"}
_PAYLOAD: Final = {
    ("ip", "saddr"): "source",
    ("ip", "daddr"): "destination",
    ("ip", "protocol"): "protocol",
    ("ip6", "saddr"): "source",
    ("ip6", "daddr"): "destination",
    ("ip6", "nexthdr"): "protocol",
    ("icmp", "type"): "icmptype",
    ("icmpv6", "type"): "icmptype",
    ("udp", "dport"): "dport",
    ("udp", "sport"): "sport",
    ("tcp", "dport"): "dport",
    ("tcp", "sport"): "sport",
    ("th", "dport"): "dport",
    ("th", "sport"): "sport",
}
_IMPLIED: Final = {
    "ip": ("nfproto", "ipv4"),
    "ip6": ("nfproto", "ipv6"),
    "icmpv6": ("protocol", "ipv6-icmp"),
    **{name: ("protocol", name) for name in ("icmp", "tcp", "udp", "sctp", "dccp", "esp", "ah")},
}
"""What a match on a header implies about the packet (nft(8), "PAYLOAD EXPRESSIONS")."""
_VERDICTS: Final = {
    "accept": Verb.ACCEPT,
    "drop": Verb.DROP,
    "reject": Verb.DROP,
    "return": Verb.RETURN,
    "jump": Verb.JUMP,
    "goto": Verb.GOTO,
    "queue": Verb.FOREIGN,
    "masquerade": Verb.ACCEPT,
    "snat": Verb.ACCEPT,
    "dnat": Verb.ACCEPT,
    "redirect": Verb.ACCEPT,
}
_NEUTRAL: Final = frozenset({"counter", "log", "mangle", "notrack", "ct helper", "ct timeout"})
"""Statements after which a rule goes on in any case."""
_NUMBERED: Final = frozenset({"sport", "dport", "mark"})
Json = Mapping[str, Any]


def read(listing: Json) -> list[Table]:
    """The tables that IP packets meet. A match that is not understood is unknown."""
    entries = [next(iter(entry.items())) for entry in listing.get("nftables", ()) if entry]
    sets: dict[tuple[str, str, str], Sequence[Any]] = {}
    chains: dict[tuple[str, str], dict[str, Chain]] = {}
    rules: dict[tuple[str, str, str], list[Rule]] = {}
    for kind, value in entries:
        if kind in {"set", "map"}:
            sets[value["family"], value["table"], value["name"]] = value.get("elem", ())
    for kind, value in entries:
        if value.get("family") not in FAMILIES:
            continue
        if kind == "chain":
            of_chain = rules.setdefault((value["family"], value["table"], value["name"]), [])
            table = chains.setdefault((value["family"], value["table"]), {})
            table[value["name"]] = _chain(value, of_chain)
        elif kind == "rule":
            place = (value["family"], value["table"], value["chain"])
            rules.setdefault(place, []).extend(_Reader(place, sets).rules(value["expr"]))
    return [
        Table(name=" ".join(key), chains=found, version=FAMILIES[key[0]])
        for key, found in chains.items()
    ]


def _chain(value: Json, rules: Sequence[Rule]) -> Chain:
    hook = value.get("hook")
    return Chain(
        name=value["name"],
        rules=rules,
        hook=Hook(hook) if hook in set(Hook) else None,
        priority=value.get("prio", 0),
        drops=value.get("policy") == "drop",
    )


class _Reader:
    """Reads the rules of one chain."""

    def __init__(
        self, place: tuple[str, str, str], sets: Mapping[tuple[str, str, str], Sequence[Any]]
    ) -> None:
        self._family, self._table, self._chain = place
        self._sets = sets

    def rules(self, expressions: Sequence[Json]) -> Iterator[Rule]:
        """One rule as rules with one verdict each; a verdict map gives several."""
        matches: list[Match] = []
        for expression in expressions:
            kind, value = next(iter(expression.items()))
            if kind in _VERDICTS:
                yield self._rule(matches, kind, value, expressions)
                return
            if kind == "vmap":
                yield from self._vmap(matches, value, expressions)
            elif kind == "match":
                matches += self._matches(value)
            elif kind not in _NEUTRAL:
                matches.append(UNKNOWN)

    def _rule(
        self,
        matches: Sequence[Match],
        verdict: str,
        value: Any,  # noqa: ANN401 - JSON
        expressions: Sequence[Json],
    ) -> Rule:
        inner = value if isinstance(value, dict) else {}
        to, port = _translation(inner) if verdict in {"dnat", "redirect"} else (None, None)
        where = f"nft {self._family} {self._table} {self._chain}"
        return Rule(
            matches=tuple(matches),
            verb=_VERDICTS[verdict],
            target=str(inner.get("target", "")),
            to=to,
            to_port=port,
            masks=verdict in {"masquerade", "snat"},
            text=f"{where}: {words(expressions)}",
        )

    def _vmap(
        self, matches: Sequence[Match], value: Json, expressions: Sequence[Json]
    ) -> Iterator[Rule]:
        for element in self._elements(value.get("data")) or ():
            key, verdict = element
            kind, inner = next(iter(verdict.items()))
            if kind in _VERDICTS:
                wanted = self._matches({"op": "==", "left": value["key"], "right": key})
                yield self._rule([*matches, *wanted], kind, inner, expressions)

    def _matches(self, value: Json) -> Iterator[Match]:
        """A condition, with what its match on a header implies."""
        implied = _IMPLIED.get(_header(value["left"]))
        if implied is not None:
            yield Match(implied[0], (implied[1],))
        yield self._match(value)

    def _match(self, value: Json) -> Match:
        name = _field(value["left"])
        elements = self._elements(value["right"])
        if name is None or elements is None or value["op"] not in {"==", "!=", "in"}:
            return UNKNOWN
        try:
            values = tuple(each for element in elements for each in _values(name, element))
        except (ValueError, TypeError, KeyError):
            return UNKNOWN
        return Match(name, values, value["op"] == "!=")

    def _elements(self, right: Any) -> Sequence[Any] | None:  # noqa: ANN401 - JSON
        """The values that a right-hand side stands for; `None` if they are not listed."""
        if isinstance(right, str) and right.startswith("@"):
            return self._sets.get((self._family, self._table, right[1:]))
        if isinstance(right, dict) and "set" in right:
            inner = right["set"]
            return inner if isinstance(inner, list) else self._elements(inner)
        return right if isinstance(right, list) else [right]


def _field(left: Any) -> str | None:  # noqa: ANN401 - JSON
    if not isinstance(left, dict):
        return None
    if "&" in left:
        inner = _field(left["&"][0])
        return inner if inner == "mark" else None  # 0 under any mask is 0
    if "meta" in left:
        return _META.get(left["meta"].get("key"))
    if "payload" in left:
        return _PAYLOAD.get((left["payload"].get("protocol"), left["payload"].get("field")))
    if "ct" in left:
        return _CT.get(left["ct"].get("key"))
    if "fib" in left:
        return _FIB.get((left["fib"].get("result"), frozenset(left["fib"].get("flags", ()))))
    return None


_FIB: Final = {
    ("type", frozenset({"daddr"})): "dtype",
    ("type", frozenset({"saddr"})): "stype",
    ("oif", frozenset({"saddr", "iif"})): "returns",
    ("oif", frozenset({"saddr", "iif", "mark"})): "returns",
    ("check", frozenset({"saddr", "iif"})): "returns",
    ("check", frozenset({"saddr", "iif", "mark"})): "returns",
}
"""`fib daddr type`, `fib saddr . iif oif` and `… check` (a reverse path filter), as of nft(8)."""


def _header(left: Any) -> str:  # noqa: ANN401 - JSON
    """The header that a condition looks into; empty for none."""
    if not isinstance(left, dict):
        return ""
    if "&" in left:
        return _header(left["&"][0])
    if "tcp option" in left:
        return "tcp"
    payload = left.get("payload")
    return str(payload.get("protocol", "")) if isinstance(payload, dict) else ""


def _translation(value: Json) -> tuple[Any, int | None]:
    """The new destination and port of a DNAT; `None` if they are not a single one."""
    address, port = value.get("addr"), value.get("port")
    try:
        to = ip_address(address) if isinstance(address, str) else None
    except ValueError:
        to = None
    return to, port if isinstance(port, int) else None


def _values(name: str, element: Any) -> Iterator[Value]:  # noqa: ANN401 - JSON
    if isinstance(element, dict) and "elem" in element:
        element = element["elem"]["val"]
    if name in {"source", "destination"}:
        if not isinstance(element, dict):
            yield ip_network(element)
        elif "range" in element:
            low, high = map(ip_address, element["range"])
            yield from summarize_address_range(low, high)
        else:
            prefix = element["prefix"]
            yield ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
    elif name in _NUMBERED:
        low, high = element["range"] if isinstance(element, dict) else (element, element)
        yield int(low), int(high)
    elif name == "returns":
        # `missing` is false in JSON, `exists` true.
        yield {False: "no", True: "yes"}[element]
    elif name == "protocol":
        yield protocol(str(element))
    elif not isinstance(element, str):
        raise TypeError(f"{element!r} is not a word")
    elif name == "icmptype":
        yield icmp_type(element)
    else:
        yield "host" if (name, element) == ("pkttype", "unicast") else element


def words(expressions: Sequence[Json]) -> str:
    """A rule's JSON in roughly nft's own syntax, for people."""
    return " ".join(filter(None, map(_words, expressions)))


def _words(expression: Any) -> str:  # noqa: ANN401 - JSON
    if not isinstance(expression, dict):
        return str(expression)
    kind, value = next(iter(expression.items()))
    if kind == "counter":
        return ""
    if kind == "match":
        operator = "" if value["op"] in {"==", "in"} else f"{value['op']} "
        return f"{_words(value['left'])} {operator}{_words_of(value['right'])}"
    if kind == "vmap":
        return f"{_words(value['key'])} vmap {_words_of(value['data'])}"
    if kind in {"meta", "ct"}:
        return f"{'ct ' if kind == 'ct' else ''}{value.get('key')}"
    if kind == "payload":
        return f"{value.get('protocol')} {value.get('field')}"
    if kind == "fib":
        return f"fib {' . '.join(value.get('flags', ()))} {value.get('result')}"
    if kind in {"jump", "goto"}:
        return f"{kind} {value['target']}"
    if kind == "limit":
        return f"limit rate {value.get('rate')}/{value.get('per')}"
    return kind if value is None or kind == "reject" else json.dumps(expression)


def _words_of(value: Any) -> str:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(map(str, value["range"]))
        if "set" in value:
            return _words_of(value["set"])
        return _words(value)
    if isinstance(value, list):
        return "{ " + ", ".join(map(_words_of, value)) + " }"
    return str(value)
