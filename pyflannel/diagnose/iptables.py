"""The output of `iptables-save` as chains of `diagnose.filter`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Final

from pyflannel.core.ip import IPAddress
from pyflannel.diagnose.filter import UNKNOWN, Chain, Hook, Match, Rule, Table, Value, Verb
from pyflannel.diagnose.protocols import icmp_type, protocol

_PRIORITIES: Final = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
"""NF_IP_PRI_… of linux/netfilter_ipv4.h. Postrouting has nat later, where nothing is dropped."""
_FIELDS: Final = {
    "-s": "source",
    "-d": "destination",
    "-i": "iif",
    "-o": "oif",
    "-p": "protocol",
    "--sport": "sport",
    "--dport": "dport",
    "--sports": "sport",
    "--dports": "dport",
    "--ctstate": "state",
    "--state": "state",
    "--mark": "mark",
    "--ctstatus": "status",
    "--ctdir": "direction",
    "--dst-type": "dtype",
    "--src-type": "stype",
    "--src-range": "source",
    "--dst-range": "destination",
    "--icmp-type": "icmptype",
    "--icmpv6-type": "icmptype",
    "--pkt-type": "pkttype",
}
_PLAIN_MODULES: Final = frozenset(
    {"tcp", "udp", "icmp", "icmp6", "ipv6-icmp", "comment", "conntrack", "state", "multiport"}
    | {"mark", "addrtype", "iprange", "pkttype", "rpfilter"}
)
"""Extensions that only look at their options."""
_VERDICTS: Final = {
    "ACCEPT": Verb.ACCEPT,
    "DROP": Verb.DROP,
    "REJECT": Verb.DROP,
    "RETURN": Verb.RETURN,
    "QUEUE": Verb.FOREIGN,
    "NFQUEUE": Verb.FOREIGN,
    # Each ends its table, as an accept does.
    "MASQUERADE": Verb.ACCEPT,
    "SNAT": Verb.ACCEPT,
    "DNAT": Verb.ACCEPT,
    "REDIRECT": Verb.ACCEPT,
}


def read(saved: str, tool: str = "iptables", version: int = 4) -> list[Table]:
    """The tables of `iptables-save`. A rule that cannot be read has unknown matches.

    Args:
        saved: its output.
        tool: for the names of the tables: `iptables`, `iptables-legacy`, `ip6tables`.
        version: of the packets that meet them.
    """
    tables: list[Table] = []
    chains: dict[str, Chain] = {}
    rules: dict[str, list[Rule]] = {}
    name = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            name, chains, rules = line[1:].strip(), {}, {}
            tables.append(Table(name=f"{tool} {name}", chains=chains, version=version))
        elif line.startswith(":"):
            chain, policy, *_ = line[1:].split()
            hook = next((hook for hook in Hook if hook.value.upper() == chain), None)
            chains[chain] = Chain(
                name=chain,
                rules=rules.setdefault(chain, []),
                hook=hook,
                priority=_PRIORITIES.get(name, 0),
                drops=policy == "DROP",
            )
        elif line.startswith("-A "):
            try:
                _, chain, *words = shlex.split(line)
            except ValueError:  # a quote that does not end
                continue
            rule = _rule(words, chains, f"{tool} -t {name} {line}")
            if rule is not None:
                rules.setdefault(chain, []).append(rule)
    return tables


def _rule(words: list[str], chains: dict[str, Chain], text: str) -> Rule | None:
    cut = next((place for place, word in enumerate(words) if word in {"-j", "-g"}), None)
    if cut is None or cut + 1 >= len(words):
        return None  # counts only
    target = words[cut + 1]
    matches = tuple(_matches(words[:cut]))
    if target in _VERDICTS:
        to, port = _translation(words[cut:])
        return Rule(
            matches=matches,
            verb=_VERDICTS[target],
            to=to,
            to_port=port,
            masks=target in {"MASQUERADE", "SNAT"},
            text=text,
        )
    if target in chains:
        verb = Verb.GOTO if words[cut] == "-g" else Verb.JUMP
        return Rule(matches=matches, verb=verb, target=target, text=text)
    return None  # marks, logs and the like: the packet goes on


def _translation(words: list[str]) -> tuple[IPAddress | None, int | None]:
    """The new destination and port of a DNAT; `None` if they are not a single one."""
    if "--to-destination" not in words[:-1]:
        return None, None
    text = words[words.index("--to-destination") + 1]
    address, _, port = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
    try:
        return ip_address(address), int(port) if port else None
    except ValueError:
        return None, None  # a range, or several


def _matches(words: list[str]) -> Iterator[Match]:
    place = 0
    negated = False
    while place < len(words):
        option = words[place]
        place += 1
        if option == "!":
            negated = True
            continue
        values = []
        while place < len(words) and not words[place].startswith("-") and words[place] != "!":
            values.append(words[place])
            place += 1
        if option == "-m":
            if set(values) - _PLAIN_MODULES:
                yield UNKNOWN
        elif option in {"--invert", "--loose", "--validmark"}:  # of rpfilter
            if option == "--invert":
                yield Match("returns", ("no",))
        elif option != "--comment":
            yield _match(option, values[0] if values else "", negated=negated)
        negated = False


def _match(option: str, text: str, *, negated: bool) -> Match:
    name = _FIELDS.get(option)
    if name is None or not text:
        return UNKNOWN
    try:
        values = tuple(_values(name, text))
    except ValueError:
        return UNKNOWN
    return Match(name, values, negated)


def _values(name: str, text: str) -> Iterator[Value]:
    if name in {"source", "destination"}:
        low, dash, high = text.partition("-")
        if dash:
            yield from summarize_address_range(ip_address(low), ip_address(high))
        else:
            yield ip_network(text, strict=False)
    elif name in {"sport", "dport"}:
        for port in text.split(","):
            low, _, high = port.partition(":")
            yield int(low or 0), int(high or low) if high or ":" not in port else 65535
    elif name == "mark":
        # A packet without a mark is 0 under any mask.
        wanted = int(text.partition("/")[0], 0)
        yield wanted, wanted
    elif name in {"state", "status", "direction", "dtype", "stype"}:
        yield from text.lower().split(",")
    elif name == "protocol":
        yield protocol(text)
    elif name == "icmptype":
        yield icmp_type(text)
    elif name == "pkttype":
        yield "host" if text == "unicast" else text
    elif text.endswith("+"):
        yield text[:-1] + "*"
    else:
        yield text
