"""From the network config's JSON to a `NetworkConfig`, or to all that is wrong with it.

Three layers, in upstream's order, so that our first error is the one upstream would stop at:

1. JSON and the types of the values (`gocompat.json`, `fields`): Go's rules, keys in any case.
2. Validation and derived values of each family (`pools`).
3. The backend: its type, its own settings, and whether they fit the rest (`kind`).

All problems are collected, not only the first. What upstream refuses, now or when it later tries to
use the value, is an error; what it ignores in silence is a warning. A config without errors comes
back with nothing left to defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from pyflannel.core.config import DEFAULT_BACKEND, NetworkConfig
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
from pyflannel.core.ip import Family
from pyflannel.core.kind import Kind, Kinds, decode, every, unknown_type
from pyflannel.core.pools import V4, V6, Pool, PoolReader
from pyflannel.core.renewal import DEFAULT_LEASE_TTL_S, MAX_LEASE_TTL_S, MIN_LEASE_TTL_S
from pyflannel.core.settings import Settings
from pyflannel.gocompat.json import JsonError, JsonObject, JsonValue, fold, loads_go
from pyflannel.records import dataclass
from pyflannel.suggest import did_you_mean

TOP_KEYS: Final = (
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
_OUTSIDE: Final = tuple(key for key in TOP_KEYS if key != "Backend")
"""Keys that are sometimes put into `Backend` by mistake."""


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
        wanted = f'write {{"Network": "{V4.example}"}}'
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


class _Parser:
    """One run over one object."""

    def __init__(self, members: JsonObject, kinds: Kinds, *, allots: bool) -> None:
        self._kinds = kinds
        self._reader = ObjectReader(members)
        self._problems: list[Problem] = []
        self._guesses: dict[str, str] = {}
        """Unknown keys by the known key that was probably meant."""
        self._pools = PoolReader(self._reader, self._problems, self._guesses, allots=allots)

    def run(self) -> Parsed:
        read = self._reader.read
        pools = {rules.family: self._pools.read(rules) for rules in (V4, V6)}
        enabled = {
            Family.V4: read("EnableIPv4", boolean, default=True),
            Family.V6: read("EnableIPv6", boolean, default=False),
        }
        nftables = read("EnableNFTables", boolean, default=False)
        lease_ttl = read("LeaseTTL", unsigned, DEFAULT_LEASE_TTL_S)
        backend_type, members = self._read_backend()
        self._note_unknown()
        self._problems += self._reader.problems()

        for rules in (V4, V6):
            if enabled[rules.family]:
                self._pools.check(rules, pools[rules.family])
            else:
                self._pools.note_unused(rules, pools[rules.family])
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
            pools[f] if not broken and enabled[f] else Pool(None, 0, 0, 0)
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
        missing = [key for key in TOP_KEYS if key not in self._reader.given]
        for key in unknown:
            message = f"unknown key {show(key)} is ignored"
            # A key that is not there yet is meant more likely than one that is.
            guess = did_you_mean(key, missing) or did_you_mean(key, TOP_KEYS)
            if fold(key) == "backendtype":
                remedy = 'the type stands inside Backend: "Backend": {"Type": "vxlan"}'
            elif fold(key) in inside:
                name = inside[fold(key)]
                remedy = f'{name} stands inside Backend: "Backend": {{"{name}": …}}'
            elif guess is not None:
                self._guesses.setdefault(guess, key)
                remedy = f"did you mean {guess}?"
            else:
                remedy = f"known keys: {', '.join(TOP_KEYS)}"
            self._reader.warn_unknown(key, message, remedy)

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
