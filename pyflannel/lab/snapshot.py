"""All that the overlay keeps on a node, in a form that is equal again once a node has healed.

Interface indexes, counters and what the kernel adds by itself are left out. Objects of others are
included, because a repair must not remove them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pyflannel.lab.nodes import Node

STATE_COMMANDS: Final = (
    ("links", "ip -j -d link show"),
    ("addresses", "ip -j address show"),
    ("routes", "ip -j route show table main"),
    ("routes6", "ip -j -6 route show table main"),
    ("neighbours", "ip -j neigh show nud permanent"),
    ("neighbours6", "ip -j -6 neigh show nud permanent"),
    ("fdb", "bridge -j fdb show"),
    ("iptables", "iptables-save 2>/dev/null"),
    ("ip6tables", "ip6tables-save 2>/dev/null"),
    ("nft4", "nft list table ip flannel-ipv4 2>/dev/null"),
    ("nft6", "nft list table ip6 flannel-ipv6 2>/dev/null"),
    ("files", "cat /run/flannel/subnet.env /run/docker_opts.env 2>/dev/null"),
)
"""What `state` reads, by name: our objects and the machine's, so that a repair that damages the
latter shows as well."""

NETWORK: Final = ("links", "addresses", "routes", "routes6", "neighbours", "neighbours6", "fdb")
"""The part that packets between nodes depend on."""
RULES: Final = ("iptables", "ip6tables", "nft4", "nft6", "files")
"""The rest: rules at the border of the overlay, and files that others read."""

State = Mapping[str, object]
"""By the names of `STATE_COMMANDS`; two are equal if nothing that counts differs."""

_MARK: Final = "=====next====="


def state(node: Node) -> State:
    """All that the overlay keeps on a node, read at once."""
    script = f"\necho; echo {_MARK}\n".join(command for _, command in STATE_COMMANDS)
    said = node.exec(["sh", "-s"], stdin=f"{script}\ntrue\n").stdout.split(_MARK)
    texts = {name: text.strip() for (name, _), text in zip(STATE_COMMANDS, said, strict=True)}
    found: dict[str, object] = {name: _tidy(name, text) for name, text in texts.items()}
    return found


def difference(before: State, now: State, *, only: Iterable[str] = ()) -> dict[str, object]:
    """What differs, by name: what is missing and what is extra.

    Args:
        before: as it should be.
        now: as it is.
        only: look at these names; all if empty.
    """
    found: dict[str, object] = {}
    for name in only or before:
        a, b = before[name], now[name]
        if a == b:
            continue
        if isinstance(a, list) and isinstance(b, list):
            missing = [x for x in a if x not in b]
            extra = [x for x in b if x not in a]
            found[name] = {"missing": missing, "extra": extra}
        else:
            found[name] = {"missing": a, "extra": b}
    return found


def _tidy(name: str, text: str) -> object:
    match name:
        case "links":
            return sorted(map(_link, _rows(text)))
        case "addresses":
            return sorted(
                f"{link['ifname']} {a['local']}/{a['prefixlen']}"
                for link in _rows(text)
                for a in link.get("addr_info", ())
                # The kernel makes link-local ones by itself.
                if a["scope"] != "link"
            )
        case "routes" | "routes6":
            return sorted(
                " ".join(f"{k}={_word(k, route[k])}" for k in _ROUTE_KEYS if k in route)
                for route in _rows(text)
                if route.get("protocol") not in ("kernel", "ra")
            )
        case "neighbours" | "neighbours6":
            return sorted(
                f"{row['dst']} {row['dev']} {row.get('lladdr')} {'/'.join(row['state'])}"
                for row in _rows(text)
            )
        case "fdb":
            return sorted(
                f"{row['mac']} {row['ifname']} {row['dst']} {row.get('state')}"
                f" {row.get('port', '')} {row.get('vni', '')}"
                for row in _rows(text)
                if "dst" in row
            )
        case "iptables" | "ip6tables":
            # Without counters, comments, and the chains and rules of others; in their order.
            return [
                line.partition(" [")[0]
                for line in text.splitlines()
                if "FLANNEL" in line or "flanneld" in line
            ]
        case _:
            return text.splitlines()


_ROUTE_KEYS: Final = (
    "type", "dst", "gateway", "dev", "protocol", "scope", "metric", "metrics", "nhid", "flags"
)  # fmt: skip


def _word(key: str, value: object) -> str:
    # "linkdown" and similar flags are about the device, not the route.
    if key == "flags" and isinstance(value, list):
        return ",".join(f for f in value if f == "onlink")
    return str(value)


def _rows(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text) if text else []
    return [row for row in rows if row]


def _link(link: Mapping[str, object]) -> str:
    info = link.get("linkinfo")
    data = info.get("info_data") if isinstance(info, dict) else None
    kept = [link["ifname"], f"mtu {link['mtu']}", f"qlen {link.get('txqlen')}"]
    flags = link.get("flags")
    kept.append("up" if isinstance(flags, list) and "UP" in flags else "down")
    # The inner device of the eBPF data path is made again with it, with a new MAC.
    if link.get("link_type") == "ether" and not str(link["ifname"]).startswith("flannelgro"):
        kept.append(str(link.get("address")))
    if isinstance(data, dict):
        kept.append(json.dumps({k: v for k, v in sorted(data.items()) if k in _VXLAN_KEYS}))
    return " ".join(map(str, kept))


_VXLAN_KEYS: Final = ("id", "link", "local", "local6", "port", "learning")
