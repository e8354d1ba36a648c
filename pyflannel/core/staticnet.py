"""The static network file: network config and nodes in one JSON text, the same on all nodes.

    {
      "Config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
      "Nodes": [
        {"Name": "n1", "Subnet": "10.244.1.0/24", "PublicIP": "192.0.2.1"},
        {"Name": "n2", "Subnet": "10.244.2.0/24", "PublicIP": "192.0.2.2"}
      ]
    }

`Config` is what stands in etcd under `<prefix>/config`. A node has `Subnet` and `PublicIP`, or
`IPv6Subnet` and `PublicIPv6`, or all four; `Name` for `--node-name`; and `BackendData` and
`BackendV6Data`, spelt as in the store, where a backend needs what cannot be derived. Keys match in
any case, as everywhere.

Either everything is right or nothing is used: a file that is half right would give some nodes
another idea of the network than others. Pure: text in, values and problems out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from itertools import pairwise
from typing import Final, TypeVar

from pyflannel.core.config import NetworkConfig, effective
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.fields import Mismatch, ObjectReader, Problem, string
from pyflannel.core.ip import (
    Family,
    IPAddress,
    IPNetwork,
    SubnetKey,
    parse_ipv4,
    parse_ipv4_network,
    parse_ipv6,
    parse_ipv6_network,
)
from pyflannel.core.kind import Kind, Kinds
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.gocompat.json import JsonError, JsonObject, JsonValue, compact_raw, loads_go
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

T = TypeVar("T")

_KEYS: Final = ("Config", "Nodes")
_NODE_KEYS: Final = (
    "Name",
    "Subnet",
    "PublicIP",
    "IPv6Subnet",
    "PublicIPv6",
    "BackendData",
    "BackendV6Data",
)
_SUBNET: Final = {Family.V4: "Subnet", Family.V6: "IPv6Subnet"}
_PUBLIC: Final = {Family.V4: "PublicIP", Family.V6: "PublicIPv6"}
_DATA: Final = {Family.V4: "BackendData", Family.V6: "BackendV6Data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticNode:
    """One entry of `Nodes`."""

    lease: Lease
    """As all other nodes see it; a reservation, since it has no time limit."""
    name: str = ""
    """For `--node-name`; empty if it has none."""

    def has(self, address: IPAddress | None) -> bool:
        """Whether an address is the node's public one."""
        attrs = self.lease.attrs
        return address is not None and address in (attrs.public_ip, attrs.public_ipv6)


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticNetwork:
    """A file without errors."""

    config: NetworkConfig
    config_text: bytes
    """The config as JSON."""
    nodes: Sequence[StaticNode] = ()

    def find(self, name: str, attrs: LeaseAttrs) -> StaticNode | None:
        """This node: the one of this name if one is given, else the one with our address."""
        if name:
            return next((node for node in self.nodes if node.name == name), None)
        addresses = (attrs.public_ip, attrs.public_ipv6)
        return next(
            (node for node in self.nodes if any(node.has(address) for address in addresses)), None
        )


@dataclass(frozen=True, slots=True)
class ParsedStatic:
    """What became of a text: a network unless there is an error, and all problems found."""

    network: StaticNetwork | None
    problems: tuple[Problem, ...] = field(default=())

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems because of which there is no network."""
        return tuple(problem for problem in self.problems if problem.is_error)


def parse_static(text: bytes | str, kinds: Kinds) -> ParsedStatic:
    """Reads a static network file and says everything that is wrong with it. Never raises."""
    try:
        value = loads_go(text)
    except JsonError as error:
        where = f"line {error.line}, column {error.column}"
        return _refused(f"the file is not JSON: {error.problem} ({where})", error.hint)
    if not isinstance(value, JsonObject):
        return _refused("the file is not a JSON object", 'write {"Config": {…}, "Nodes": […]}')
    raw = value.find_raw("Config")
    if raw is None:
        return _refused("Config is missing", 'add "Config": {"Network": "10.244.0.0/16"}', "Config")
    parsed = parse_network_config(raw, kinds)
    problems = [_below("Config", problem) for problem in parsed.problems]
    problems += _unknown(value, _KEYS, "")
    entries = value.find("Nodes")
    if not isinstance(entries, list):
        problems.append(Problem.error("Nodes", "Nodes is not an array", "list every node in it"))
        entries = []
    config = parsed.config
    kind = kinds.get(config.backend_type) if config is not None else None
    nodes: list[StaticNode] = []
    for position, entry in enumerate(entries):
        path = f"Nodes[{position}]."
        if not isinstance(entry, JsonObject):
            problems.append(Problem.error(path[:-1], f"{path[:-1]} is not an object"))
            continue
        node, found = _node(entry, path, config, kind)
        problems += found
        if node is not None:
            nodes.append(node)
    problems += _conflicts(nodes)
    if config is None or any(problem.is_error for problem in problems):
        return ParsedStatic(None, tuple(problems))
    network = StaticNetwork(config=config, config_text=raw.encode(), nodes=tuple(nodes))
    return ParsedStatic(network, tuple(problems))


def _refused(message: str, remedy: str = "", key: str = "") -> ParsedStatic:
    return ParsedStatic(None, (Problem.error(key, message, remedy),))


def _below(path: str, problem: Problem) -> Problem:
    key = f"{path}.{problem.key}" if problem.key else path
    return Problem(problem.severity, key, problem.message, problem.remedy)


def _unknown(members: JsonObject, known: Sequence[str], path: str) -> Iterator[Problem]:
    reader = ObjectReader(members)
    for name in known:
        reader.read(name, lambda value: value, None)
    for key in reader.unknown():
        guess = did_you_mean(key, known)
        remedy = f"did you mean {guess}?" if guess else f"known keys: {', '.join(known)}"
        yield Problem.warning(f"{path}{key}", f"{path}{key} is ignored", remedy)


def _decoder(parse: Callable[[str], T], expected: str) -> Callable[[JsonValue], T]:
    def decode(value: JsonValue) -> T:
        try:
            return parse(string(value))
        except ValueError:
            raise Mismatch(expected) from None

    return decode


_V4_SUBNET: Final = _decoder(parse_ipv4_network, "an IPv4 network like 10.244.1.0/24")
_V6_SUBNET: Final = _decoder(parse_ipv6_network, "an IPv6 network like fd00:10:244:1::/64")
_V4_PUBLIC: Final = _decoder(parse_ipv4, "an IPv4 address like 192.0.2.1")
_V6_PUBLIC: Final = _decoder(parse_ipv6, "an IPv6 address like 2001:db8::1")


def _node(
    entry: JsonObject, path: str, config: NetworkConfig | None, kind: Kind | None
) -> tuple[StaticNode | None, list[Problem]]:
    """One node, `None` if anything is wrong with it, and what is."""
    reader = ObjectReader(entry, path=path)
    v4 = reader.read("Subnet", _V4_SUBNET, None)
    v6 = reader.read("IPv6Subnet", _V6_SUBNET, None)
    public = reader.read("PublicIP", _V4_PUBLIC, None)
    public6 = reader.read("PublicIPv6", _V6_PUBLIC, None)
    name = reader.read("Name", string, "")
    problems = [*reader.problems(), *_unknown(entry, _NODE_KEYS, path)]
    if config is None or kind is None or reader.failed:
        return None, problems
    problems += _check_family(path, Family.V4, config, v4, public)
    problems += _check_family(path, Family.V6, config, v6, public6)
    if any(problem.is_error for problem in problems):
        return None, problems
    key = SubnetKey(v4 if config.enable_ipv4 else None, v6 if config.enable_ipv6 else None)
    attrs = LeaseAttrs(
        public_ip=public,
        public_ipv6=public6,
        backend_type=kind.name if kind.lease_type is None else kind.lease_type,
        backend_data=_data(entry, Family.V4, kind, config, key.v4),
        backend_v6_data=_data(entry, Family.V6, kind, config, key.v6),
    )
    return StaticNode(lease=Lease(key=key, attrs=attrs), name=name), problems


def _check_family(
    path: str,
    family: Family,
    config: NetworkConfig,
    subnet: IPNetwork | None,
    public: IPAddress | None,
) -> Iterator[Problem]:
    """What is wrong with one family's half of a node."""
    key, network = f"{path}{_SUBNET[family]}", config.network_of(family)
    if family not in config.families or network is None:
        if subnet is not None:
            text = f"{key} is ignored: the config has no {family}"
            yield Problem.warning(key, text, "remove it")
        return
    for name, value in ((key, subnet), (f"{path}{_PUBLIC[family]}", public)):
        if value is None:
            yield Problem.error(name, f"{name} is missing: the config has {family}")
    if subnet is None:
        return
    first, last = int(network.network_address), int(network.broadcast_address)
    inside = first <= int(subnet.network_address) and int(subnet.broadcast_address) <= last
    if not inside or subnet.prefixlen == network.prefixlen:
        yield Problem.error(key, f"{key} {subnet} is not a part of {network}")


def _data(
    entry: JsonObject,
    family: Family,
    kind: Kind,
    config: NetworkConfig,
    subnet: IPNetwork | None,
) -> str | None:
    raw = entry.find_raw(_DATA[family])
    if raw is not None and raw != "null":
        return compact_raw(raw)
    return kind.derive_data(config.backend, family, subnet) if subnet is not None else None


def _conflicts(nodes: Sequence[StaticNode]) -> Iterator[Problem]:
    """Two nodes with one name or address, or with subnets that overlap."""
    seen: dict[object, int] = {}
    for position, node in enumerate(nodes):
        attrs = node.lease.attrs
        for value in (node.name, attrs.public_ip, attrs.public_ipv6):
            if not value:
                continue
            first = seen.setdefault(value, position)
            if first != position:
                text = f"Nodes[{position}] and Nodes[{first}] both have {value}"
                yield Problem.error(f"Nodes[{position}]", text, "each node has its own")
    for family in Family:
        ranges = sorted(
            (int(subnet.network_address), int(subnet.broadcast_address), position, subnet)
            for position, node in enumerate(nodes)
            if (subnet := node.lease.subnet(family)) is not None
        )
        for (_, end, first, one), (start, _, second, other) in pairwise(ranges):
            if start <= end:
                text = f"Nodes[{first}] has {one} and Nodes[{second}] has {other}: they overlap"
                yield Problem.error(f"Nodes[{second}]", text, "give each node a subnet of its own")


def render_static(config: NetworkConfig, leases: Sequence[Lease]) -> str:
    """A static network file that says the same as a store's config and leases."""
    nodes: list[dict[str, object]] = []
    for lease in leases:
        attrs = lease.attrs
        node: dict[str, object] = {}
        for key, value in (
            ("Subnet", lease.key.v4),
            ("PublicIP", attrs.public_ip),
            ("IPv6Subnet", lease.key.v6),
            ("PublicIPv6", attrs.public_ipv6),
        ):
            if value is not None:
                node[key] = str(value)
        for family, key in _DATA.items():
            raw = attrs.data(family)
            if raw is not None:
                node[key] = json.loads(raw)
        nodes.append(node)
    return json.dumps({"Config": effective(config), "Nodes": nodes}, indent=2) + "\n"
