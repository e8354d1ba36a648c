"""The network config: the JSON an operator puts into etcd, parsed once, with derived values.

Three layers, in upstream's order, so that our first error is the one upstream would stop at:

1. JSON and the types of the values (`gocompat.json`, `fields`): Go's rules, keys in any case.
2. Validation and derived values, one code path for both families. The texts of upstream's errors
   stand inside ours, for those who grep for them.
3. The backend: its type, its own settings, and whether they fit the rest (`kind`).

All problems are collected, not only the first. What upstream refuses, now or when it later tries to
use the value, is an error; what it ignores in silence is a warning. A config without errors comes
back as a `NetworkConfig` in which nothing is left to defaults, `effective` prints that one, and
parsing what `effective` printed gives the same config again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, TypeVar

from pyflannel.core.errors import ConfigError
from pyflannel.core.fields import (
    Mismatch,
    ObjectReader,
    Problem,
    Severity,
    boolean,
    show,
    string,
    unsigned,
)
from pyflannel.core.ip import (
    Family,
    IPNetwork,
    parse_ipv4,
    parse_ipv4_network,
    parse_ipv6,
    parse_ipv6_network,
    spell_ip,
)
from pyflannel.core.kind import Kind, Kinds, Settings, decode, every, unknown_type
from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S, MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.gocompat.json import JsonError, JsonObject, JsonValue, fold, loads_go
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

__all__ = [
    "NetworkConfig",
    "Parsed",
    "Problem",
    "Severity",
    "effective",
    "load_network_config",
    "parse_network_config",
    "subnet_count",
]

UNSET_V4: Final = IPv4Address(0)
"""Upstream's "not given" for `SubnetMin` and `SubnetMax`, also when written as `0.0.0.0`."""
UNSET_V6: Final = IPv6Address(0)

DEFAULT_BACKEND: Final = "udp"
"""What upstream's code takes when `Backend` is absent; its documentation says vxlan."""

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """A valid network config with every default filled in.

    The values of a family that is not enabled are the defaults below, whatever the text says.
    """

    network: IPv4Network | None = None
    """Cluster prefix, host bits masked off."""
    subnet_len: int = 0
    """Prefix length of a node's subnet; 0 where the store does not allot by it (Kubernetes)."""
    subnet_min: IPv4Address = UNSET_V4
    """First subnet that may be leased, by its address."""
    subnet_max: IPv4Address = UNSET_V4
    """Last subnet that may be leased; below `subnet_min` if the operator said so: then none may."""
    ipv6_network: IPv6Network | None = None
    ipv6_subnet_len: int = 0
    ipv6_subnet_min: IPv6Address = UNSET_V6
    ipv6_subnet_max: IPv6Address = UNSET_V6
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    enable_nftables: bool = False
    """Traffic rules through nftables instead of iptables."""
    lease_ttl: int = DEFAULT_LEASE_TTL_S
    """Seconds for which a subnet is leased unless it is renewed. Not upstream's: its nodes ignore
    the key and lease for a day."""
    backend_type: str = DEFAULT_BACKEND
    """Canonical, lower case."""
    backend: Settings = Settings()
    """What the type reads of `Backend`; `settings` gives it as what it is."""

    def settings(self, of: type[S]) -> S:
        """The backend's settings, for the backend itself, which knows their class.

        Raises:
            TypeError: they are another kind's, a defect of the caller.
        """
        if not isinstance(self.backend, of):
            raise TypeError(f"settings of {self.backend_type} are not {of.__name__}")
        return self.backend

    @property
    def families(self) -> tuple[Family, ...]:
        """The enabled families, IPv4 first."""
        return tuple(
            family
            for family, on in ((Family.V4, self.enable_ipv4), (Family.V6, self.enable_ipv6))
            if on
        )

    def network_of(self, family: Family) -> IPNetwork | None:
        """The cluster network of one family."""
        return self.network if family is Family.V4 else self.ipv6_network

    @property
    def networks(self) -> tuple[IPNetwork, ...]:
        """The cluster networks of the enabled families, IPv4 first."""
        found = (self.network_of(family) for family in self.families)
        return tuple(network for network in found if network is not None)

    def allots_differently(self, other: NetworkConfig) -> bool:
        """Whether the other config is the same overlay and differs only in how it is divided.

        Such a change matters to the choice of a subnet alone: not to devices, routes or rules.
        """
        return self != other and self == replace(
            other,
            lease_ttl=self.lease_ttl,
            subnet_len=self.subnet_len,
            subnet_min=self.subnet_min,
            subnet_max=self.subnet_max,
            ipv6_subnet_len=self.ipv6_subnet_len,
            ipv6_subnet_min=self.ipv6_subnet_min,
            ipv6_subnet_max=self.ipv6_subnet_max,
        )


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became of a text: a config unless there is an error, and all problems found."""

    config: NetworkConfig | None
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems because of which there is no config."""
        return tuple(p for p in self.problems if p.severity is Severity.ERROR)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """The problems that upstream does not mention."""
        return tuple(p for p in self.problems if p.severity is Severity.WARNING)


def parse_network_config(text: bytes | str, kinds: Kinds, *, allots: bool = True) -> Parsed:
    """Reads a network config and says everything that is wrong with it. Never raises.

    Args:
        text: the value of `<prefix>/config`, or the content of a file.
        kinds: the backends there are.
        allots: whether subnets are given by SubnetLen, SubnetMin and SubnetMax. With Kubernetes
            they are the nodes' podCIDRs: whatever stands there is ignored, as by upstream.
    """
    try:
        value = loads_go(text)
    except JsonError as error:
        where = f"line {error.line}, column {error.column}"
        return _refuse(f"the config is not JSON: {error.problem} ({where})", error.hint)
    if value is None:
        value = JsonObject("{}", [])  # Go decodes `null` into anything, leaving the defaults.
    if not isinstance(value, JsonObject):
        wanted = f'write {{"Network": "{_V4.example}"}}'
        return _refuse(f"the config is {show(value)}, expected a JSON object", wanted)
    return _Parser(value, kinds, allots=allots).run()


def load_network_config(text: bytes | str, kinds: Kinds) -> NetworkConfig:
    """The config in `text`, for those who have no use for warnings.

    Raises:
        ConfigError: naming every error in it.
    """
    parsed = parse_network_config(text, kinds)
    if parsed.config is None:
        raise ConfigError("the network config is wrong: " + "; ".join(map(str, parsed.errors)))
    return parsed.config


def effective(config: NetworkConfig) -> dict[str, object]:
    """The config under upstream's key names with nothing left to defaults; plain JSON values.

    Keys of a family that is not enabled are left out.
    """
    values: dict[str, object] = {
        "EnableIPv4": config.enable_ipv4,
        "EnableIPv6": config.enable_ipv6,
        "EnableNFTables": config.enable_nftables,
        "LeaseTTL": config.lease_ttl,
    }
    if config.enable_ipv4 and config.network is not None:
        values["Network"] = _spell_network(config.network)
        if config.subnet_len:
            values |= {
                "SubnetLen": config.subnet_len,
                "SubnetMin": spell_ip(config.subnet_min),
                "SubnetMax": spell_ip(config.subnet_max),
            }
    if config.enable_ipv6 and config.ipv6_network is not None:
        values["IPv6Network"] = _spell_network(config.ipv6_network)
        if config.ipv6_subnet_len:
            values |= {
                "IPv6SubnetLen": config.ipv6_subnet_len,
                "IPv6SubnetMin": spell_ip(config.ipv6_subnet_min),
                "IPv6SubnetMax": spell_ip(config.ipv6_subnet_max),
            }
    values["Backend"] = {"Type": config.backend_type, **config.backend.encode()}
    return values


def subnet_count(config: NetworkConfig, family: Family = Family.V4) -> int:
    """How many subnets may be leased between the family's Min and Max, both included."""
    if config.network_of(family) is None:
        return 0
    if family is Family.V4:
        low, high, length = int(config.subnet_min), int(config.subnet_max), config.subnet_len
    else:
        low, high = int(config.ipv6_subnet_min), int(config.ipv6_subnet_max)
        length = config.ipv6_subnet_len
    return max(0, ((high - low) >> (family.bits - length)) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """What differs between the families in reading and validating."""

    family: Family
    prefix: str
    """What the family's keys start with."""
    longest: int
    """Longest SubnetLen: below it no address is left for a container."""
    derive_from: int
    """Longest network prefix for which a SubnetLen can be derived."""
    usual_up_to: int
    """Longest network prefix for which SubnetLen defaults to `usual`; beyond, to prefix + 2."""
    usual: int
    example: str
    reserved: tuple[tuple[str, str], ...]
    """Ranges that cannot be an overlay, each with what it is for."""

    def key(self, name: str) -> str:
        """The key of this family, such as `IPv6SubnetMin`."""
        return self.prefix + name


_V4: Final = _Rules(
    family=Family.V4,
    prefix="",
    longest=30,
    derive_from=28,
    usual_up_to=22,
    usual=24,
    example="10.244.0.0/16",
    # RFC 6890; kernel: net/ipv4/route.c, ip_route_input_slow() drops all four as martians.
    reserved=(
        ("0.0.0.0/8", "addresses of this host on this network"),
        ("127.0.0.0/8", "loopback addresses"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast addresses"),
    ),
)
_V6: Final = _Rules(
    family=Family.V6,
    prefix="IPv6",
    longest=126,
    derive_from=124,
    usual_up_to=62,
    usual=64,
    example="fd00:10:244::/48",
    # RFC 4291 section 2.4.
    reserved=(
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast addresses"),
    ),
)


def _lies_inside(network: IPNetwork, outer: IPNetwork) -> bool:
    return (
        network.version == outer.version
        and network.prefixlen >= outer.prefixlen
        and network.network_address in outer
    )


_NETWORKS: Final[Mapping[Family, Callable[[str], IPNetwork]]] = {
    Family.V4: parse_ipv4_network,
    Family.V6: parse_ipv6_network,
}
_ADDRESSES: Final[Mapping[Family, Callable[[str], IPv4Address | IPv6Address]]] = {
    Family.V4: parse_ipv4,
    Family.V6: parse_ipv6,
}

_TOP_KEYS: Final = (
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "LeaseTTL",
    "Backend",
)
_OUTSIDE: Final = tuple(key for key in _TOP_KEYS if key != "Backend")
"""Keys that are sometimes put into `Backend` by mistake."""


@dataclass(slots=True)
class _Pool:
    """One family's part of the config on its way to being valid; numbers instead of addresses."""

    network: IPNetwork | None
    length: int
    low: int
    high: int


class _Parser:
    """One run over one object."""

    def __init__(self, members: JsonObject, kinds: Kinds, *, allots: bool) -> None:
        self._kinds = kinds
        self._reader = ObjectReader(members)
        self._members = members
        self._allots = allots
        self._problems: list[Problem] = []
        self._guesses: dict[str, str] = {}
        """Unknown keys by the known key that was probably meant."""

    def run(self) -> Parsed:
        read = self._reader.read
        pools = {rules.family: self._read_pool(rules) for rules in (_V4, _V6)}
        enabled = {
            Family.V4: read("EnableIPv4", boolean, default=True),
            Family.V6: read("EnableIPv6", boolean, default=False),
        }
        nftables = read("EnableNFTables", boolean, default=False)
        lease_ttl = read("LeaseTTL", unsigned, DEFAULT_LEASE_TTL_S)
        backend_type, members = self._read_backend()
        self._note_unknown()
        self._problems += self._reader.problems()

        for rules in (_V4, _V6):
            if enabled[rules.family]:
                self._check_pool(rules, pools[rules.family])
            else:
                self._note_unused(rules, pools[rules.family])
        if not any(enabled.values()):
            self._error(
                "EnableIPv4",
                "EnableIPv4 and EnableIPv6 are both false: none defined stack",
                "set one of them to true",
            )
        if not MIN_LEASE_TTL_S <= lease_ttl <= MAX_LEASE_TTL_S:
            self._error(
                "LeaseTTL",
                f"LeaseTTL is {lease_ttl}, expected seconds from {MIN_LEASE_TTL_S} to "
                f"{MAX_LEASE_TTL_S}",
                f"leave it out for a day ({DEFAULT_LEASE_TTL_S})",
            )
        broken = any(problem.is_error for problem in self._problems)
        v4, v6 = (
            pools[f] if not broken and enabled[f] else _Pool(None, 0, 0, 0)
            for f in (Family.V4, Family.V6)
        )
        kind, settings = self._check_backend(backend_type, members)
        config = NetworkConfig(
            network=v4.network if isinstance(v4.network, IPv4Network) else None,
            subnet_len=v4.length,
            subnet_min=IPv4Address(v4.low),
            subnet_max=IPv4Address(v4.high),
            ipv6_network=v6.network if isinstance(v6.network, IPv6Network) else None,
            ipv6_subnet_len=v6.length,
            ipv6_subnet_min=IPv6Address(v6.low),
            ipv6_subnet_max=IPv6Address(v6.high),
            enable_ipv4=enabled[Family.V4],
            enable_ipv6=enabled[Family.V6],
            enable_nftables=nftables,
            lease_ttl=lease_ttl,
            backend_type=backend_type.lower(),
            backend=settings if settings is not None else Settings(),
        )
        if kind is not None and settings is not None:
            self._problems += kind.fits(config, kinds=self._kinds)
        problems = tuple(self._problems)
        return Parsed(None if any(p.is_error for p in problems) else config, problems)

    def _read_pool(self, rules: _Rules) -> _Pool:
        """The family's four keys as they stand there, 0 for what is missing."""
        read = self._reader.read
        address = _address_decoder(rules)
        if not self._allots:
            return self._read_network_alone(rules)
        # Go decodes the IPv6 bounds through pointers, so that `null` means "not given" for them;
        # the IPv4 ones and the networks are values with a parser of their own, which refuses it.
        bounds_may_be_null = rules.family is Family.V6
        network_key = rules.key("Network")
        network = read(network_key, _network_decoder(rules), None, nullable=False)
        length = read(rules.key("SubnetLen"), unsigned, 0)
        low, high = (
            read(rules.key(name), address, None, nullable=bounds_may_be_null)
            for name in ("SubnetMin", "SubnetMax")
        )
        return _Pool(network, length, int(low or 0), int(high or 0))

    def _read_network_alone(self, rules: _Rules) -> _Pool:
        network = self._reader.read(
            rules.key("Network"), _network_decoder(rules), None, nullable=False
        )
        for name in ("SubnetLen", "SubnetMin", "SubnetMax"):
            key = rules.key(name)
            self._reader.read(key, lambda value: value, None)
            if key in self._reader.given:
                text = f"{key} is ignored: a node's subnet is its podCIDR"
                self._warn(
                    key, text, "remove it; kube-controller-manager has --node-cidr-mask-size"
                )
        return _Pool(network, 0, 0, 0)

    def _read_backend(self) -> tuple[str, Mapping[str, object]]:
        """The canonical type and the members of `Backend`."""
        key = "Backend"
        members = self._reader.read(key, _object, None, nullable=False)
        if members is None:
            return DEFAULT_BACKEND, {}
        inner = ObjectReader(members, path="Backend.")
        name = inner.read("Type", string, "")  # `null` is the empty string to Go
        self._problems += (p for p in inner.problems() if p.severity is Severity.ERROR)
        if inner.failed:
            self._reader.failed.add(key)
        return name, members

    def _note_unknown(self) -> None:
        """Warns about every unknown key, with what was probably meant."""
        unknown = self._reader.unknown()
        if not unknown:
            return
        inside = {
            fold(key): key for kind in every(self._kinds) for key in ("Type", *kind.settings.keys())
        }
        missing = [key for key in _TOP_KEYS if key not in self._reader.given]
        for key in unknown:
            message = f"unknown key {show(key)} is ignored"
            # A key that is not there yet is meant more likely than one that is.
            guess = did_you_mean(key, missing) or did_you_mean(key, _TOP_KEYS)
            if fold(key) == "backendtype":
                remedy = 'the type stands inside Backend: "Backend": {"Type": "vxlan"}'
            elif fold(key) in inside:
                name = inside[fold(key)]
                remedy = f'{name} stands inside Backend: "Backend": {{"{name}": …}}'
            elif guess is not None:
                self._guesses.setdefault(guess, key)
                remedy = f"did you mean {guess}?"
            else:
                remedy = f"known keys: {', '.join(_TOP_KEYS)}"
            self._reader.warn_unknown(key, message, remedy)

    def _note_unused(self, rules: _Rules, pool: _Pool) -> None:
        """Warns about a network whose family is off: the commonest way to get no IPv6."""
        switch = f"Enable{rules.family}"
        if pool.network is not None:
            key = rules.key("Network")
            why = "is false" if switch in self._reader.given else "is not given, which means false"
            self._warn(key, f"{key} is ignored: {switch} {why}", f'add "{switch}": true')

    def _check_pool(self, rules: _Rules, pool: _Pool) -> None:
        """Validates one family and fills in what was not given, in upstream's order."""
        if rules.key("Network") in self._reader.failed:
            return
        if pool.network is None or int(pool.network.network_address) == pool.network.prefixlen == 0:
            self._refuse_missing_network(rules, pool)
            return
        self._note_host_bits(rules, pool.network)
        self._refuse_reserved(rules, pool.network)
        if not self._allots:
            return
        before = len(self._problems)
        self._check_length(rules, pool, pool.network)
        length_is_good = len(self._problems) == before
        self._check_bounds(rules, pool, pool.network, length_is_good=length_is_good)

    def _refuse_missing_network(self, rules: _Rules, pool: _Pool) -> None:
        key = rules.key("Network")
        state = "is missing"
        remedy = f'add "{key}": "{rules.example}"'
        slip = self._guesses.get(key)
        other = _V6 if rules.family is Family.V4 else _V4
        if other.key("Network") in self._reader.given:
            enable = "EnableIPv4" if rules.family is Family.V4 else "EnableIPv6"
            only = "IPv6" if rules.family is Family.V4 else "IPv4"
            remedy = f'set "{enable}": false if the network is {only} only, or {remedy}'
        if pool.network is not None:
            state = f"is {pool.network}"
        elif slip is not None:
            state = f"is missing (there is an unknown key {show(slip)})"
            remedy = f"did you mean {key} by {show(slip)}?"
        wanted = f"please define a correct {key} parameter in the flannel config"
        self._error(key, f"{key} {state}: {wanted}", remedy)

    def _note_host_bits(self, rules: _Rules, network: IPNetwork) -> None:
        key = rules.key("Network")
        text = self._reader.given.get(key)
        if isinstance(text, str):
            address = _ADDRESSES[rules.family](text.partition("/")[0])
            if address != network.network_address:
                masked = _spell_network(network)
                self._warn(key, f"{key} {text} has host bits, taken as {masked}", f"write {masked}")

    def _refuse_reserved(self, rules: _Rules, network: IPNetwork) -> None:
        """Ranges that no host routes, so that not one packet would leave a node."""
        for text, what in rules.reserved:
            reserved = ip_network(text)
            if _lies_inside(network, reserved):
                key = rules.key("Network")
                shown = _spell_network(network)
                self._error(
                    key,
                    f"{key} is {shown}, which lies in {text}: {what}",
                    f"use a private range that your LAN does not use, such as {rules.example}",
                )

    def _check_length(self, rules: _Rules, pool: _Pool, network: IPNetwork) -> None:
        key = rules.key("SubnetLen")
        if key in self._reader.failed:
            # Already reported; whatever is derived now serves the remaining checks only.
            pool.length = 0
        shortest = network.prefixlen + 2
        place = f"{rules.key('Network')} is {_spell_network(network)}"
        fitting = f"a length between {shortest} and {rules.longest} fits {_spell_network(network)}"
        if pool.length == 0:
            if network.prefixlen > rules.derive_from:
                kind = rules.key("Network") if rules.prefix else "network"
                self._error(
                    rules.key("Network"),
                    f"{place}: {kind} is too small. Minimum useful network prefix is "
                    f"/{rules.derive_from}",
                    "use a larger network",
                )
            usual = network.prefixlen <= rules.usual_up_to
            pool.length = rules.usual if usual else min(shortest, rules.longest)
        elif pool.length > rules.longest:
            self._error(
                key,
                f"{key} is {pool.length}: SubnetLen must be less than /{rules.longest + 1}",
                fitting if shortest <= rules.longest else "use a larger network",
            )
        elif pool.length < shortest:
            self._error(
                key,
                f"{key} is {pool.length} and {place}: network must be able to accommodate at "
                "least four subnets",
                fitting if shortest <= rules.longest else "use a larger network",
            )

    def _check_bounds(
        self, rules: _Rules, pool: _Pool, network: IPNetwork, *, length_is_good: bool
    ) -> None:
        size = 1 << max(0, rules.family.bits - pool.length)  # a longer one has been reported
        first, last = int(network.network_address), int(network.broadcast_address)
        bounds = (("SubnetMin", pool.low), ("SubnetMax", pool.high))
        given = [(rules.key(name), value) for name, value in bounds if value]
        # Upstream leaves out the first subnet: its address is the network's own.
        pool.low = pool.low or first + size
        pool.high = pool.high or last + 1 - size
        before = len(self._problems)
        for key, value in given:
            if not first <= value <= last:
                outer = rules.key("Network")
                shown = f"{_show_ip(rules, value)}, {outer} is {_spell_network(network)}"
                self._error(
                    key,
                    f"{key} is not in the range of the {outer}: {shown}",
                    "leave it out to use the whole network",
                )
        if not length_is_good:
            return
        for key, value in given:
            if first <= value <= last and value % size:
                self._error(
                    key,
                    f"{key} is not on a SubnetLen boundary: {_show_ip(rules, value)}",
                    f"write {_show_ip(rules, value - value % size)}, the start of its "
                    f"/{pool.length}",
                )
        if pool.low > pool.high and len(self._problems) == before:
            low, high = rules.key("SubnetMin"), rules.key("SubnetMax")
            self._warn(
                low,
                f"{low} {_show_ip(rules, pool.low)} is above {high} {_show_ip(rules, pool.high)}: "
                "no subnet can be leased, every node will be told out of subnets",
                "swap them",
            )

    def _check_backend(
        self, name: str, members: Mapping[str, object]
    ) -> tuple[Kind | None, Settings | None]:
        """Checks type and settings; `None` for what has an error."""
        if "Backend" in self._reader.failed:
            return None, None
        if "Backend" not in self._reader.given:
            slip = self._guesses.get("Backend")
            self._warn(
                "Backend",
                "Backend is missing, which means udp (flannel's documentation says vxlan, its code "
                "takes udp)",
                f"did you mean Backend by {show(slip)}?"
                if slip is not None
                else 'write "Backend": {"Type": "udp"}, or the type you want',
            )
        try:
            kind = self._kinds.get(name.lower())
        except ConfigError as error:
            self._error("Backend.Type", str(error), "repair its package, or use another type")
            return None, None
        if kind is None:
            self._problems.append(unknown_type(name, self._kinds))
            return None, None
        settings, problems = decode(kind, members, self._kinds, outside=_OUTSIDE)
        self._problems += problems
        return kind, settings

    def _error(self, key: str, message: str, remedy: str) -> None:
        self._problems.append(Problem.error(key, message, remedy))

    def _warn(self, key: str, message: str, remedy: str) -> None:
        self._problems.append(Problem.warning(key, message, remedy))


def _refuse(message: str, remedy: str) -> Parsed:
    return Parsed(None, (Problem.error("", message, remedy),))


def _object(value: JsonValue) -> JsonObject:
    if value is None:
        return JsonObject("{}", [])
    if isinstance(value, JsonObject):
        return value
    remedy = f'write {{"Type": {show(value)}}}' if isinstance(value, str) else ""
    raise Mismatch("an object", remedy)


def _address_decoder(rules: _Rules) -> Callable[[JsonValue], IPv4Address | IPv6Address]:
    parse = _ADDRESSES[rules.family]
    expected = f"an {rules.family} address like {rules.example.partition('/')[0]}"

    def decode(value: JsonValue) -> IPv4Address | IPv6Address:
        if not isinstance(value, str):
            raise Mismatch(expected)
        try:
            return parse(value)
        except ValueError:
            pass
        host, slash, _ = value.partition("/")
        raise Mismatch(expected, f"write {host}, without a length" if slash else "")

    return decode


def _network_decoder(rules: _Rules) -> Callable[[JsonValue], IPNetwork]:
    parse = _NETWORKS[rules.family]
    expected = f"an {rules.family} network like {rules.example}"

    def decode(value: JsonValue) -> IPNetwork:
        if not isinstance(value, str):
            raise Mismatch(expected)
        try:
            return parse(value)
        except ValueError:
            raise Mismatch(expected, _network_remedy(rules, value)) from None

    return decode


def _network_remedy(rules: _Rules, text: str) -> str:
    """What to write instead of a network that is wrong in a way we know."""
    address, slash, _ = text.strip().partition("/")
    if not slash:
        return "the prefix length is missing"
    try:
        # `ipaddress` is laxer than Go: it takes netmasks.
        network = ip_network(text.strip(), strict=False)
    except ValueError:
        parts = address.split(".")
        if rules.family is Family.V4 and all(part.isdecimal() for part in parts):
            if len(parts) < 4:
                return "all four numbers of the address are needed"
            if any(len(part) > 1 and part.startswith("0") for part in parts):
                return "write the numbers without leading zeros"
        return ""
    if network.version != rules.family.value:
        other = _V6 if rules.family is Family.V4 else _V4
        return f"an {other.family} network belongs into {other.key('Network')}"
    return f"write {_spell_network(network)}"


def _spell_network(network: IPNetwork) -> str:
    return f"{spell_ip(network.network_address)}/{network.prefixlen}"


def _show_ip(rules: _Rules, value: int) -> str:
    return spell_ip(IPv4Address(value) if rules.family is Family.V4 else IPv6Address(value))
