"""One family's part of the network config: `Network`, `SubnetLen`, `SubnetMin`, `SubnetMax`.

One code path for both families; what differs between them stands in `Rules`. Checks come in
upstream's order, and the texts of upstream's errors stand inside ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from pyflannel.core.config import spell_network
from pyflannel.core.fields import Mismatch, ObjectReader, Problem, show, unsigned
from pyflannel.core.ip import (
    Family,
    IPNetwork,
    parse_ipv4,
    parse_ipv4_network,
    parse_ipv6,
    parse_ipv6_network,
    spell_ip,
)
from pyflannel.gocompat.json import JsonValue
from pyflannel.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
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


V4: Final = Rules(
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
V6: Final = Rules(
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


@dataclass(slots=True)
class Pool:
    """One family's part of the config on its way to being valid; numbers instead of addresses."""

    network: IPNetwork | None
    length: int
    low: int
    high: int


class PoolReader:
    """Reads and checks the parts of both families.

    Args:
        reader: the config's members.
        problems: where what is wrong is added.
        guesses: unknown keys, by the known key that was probably meant.
        allots: whether subnets are given by SubnetLen, SubnetMin and SubnetMax.
    """

    def __init__(
        self,
        reader: ObjectReader,
        problems: list[Problem],
        guesses: Mapping[str, str],
        *,
        allots: bool,
    ) -> None:
        self._reader = reader
        self._problems = problems
        self._guesses = guesses
        self._allots = allots

    def read(self, rules: Rules) -> Pool:
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
        return Pool(network, length, int(low or 0), int(high or 0))

    def _read_network_alone(self, rules: Rules) -> Pool:
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
        return Pool(network, 0, 0, 0)

    def note_unused(self, rules: Rules, pool: Pool) -> None:
        """Warns about a network whose family is off: the commonest way to get no IPv6."""
        switch = f"Enable{rules.family}"
        if pool.network is not None:
            key = rules.key("Network")
            why = "is false" if switch in self._reader.given else "is not given, which means false"
            self._warn(key, f"{key} is ignored: {switch} {why}", f'add "{switch}": true')

    def check(self, rules: Rules, pool: Pool) -> None:
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

    def _refuse_missing_network(self, rules: Rules, pool: Pool) -> None:
        key = rules.key("Network")
        state = "is missing"
        remedy = f'add "{key}": "{rules.example}"'
        slip = self._guesses.get(key)
        other = V6 if rules.family is Family.V4 else V4
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

    def _note_host_bits(self, rules: Rules, network: IPNetwork) -> None:
        key = rules.key("Network")
        text = self._reader.given.get(key)
        if isinstance(text, str):
            address = _ADDRESSES[rules.family](text.partition("/")[0])
            if address != network.network_address:
                masked = spell_network(network)
                self._warn(key, f"{key} {text} has host bits, taken as {masked}", f"write {masked}")

    def _refuse_reserved(self, rules: Rules, network: IPNetwork) -> None:
        """Ranges that no host routes, so that not one packet would leave a node."""
        for text, what in rules.reserved:
            reserved = ip_network(text)
            if _lies_inside(network, reserved):
                key = rules.key("Network")
                shown = spell_network(network)
                self._error(
                    key,
                    f"{key} is {shown}, which lies in {text}: {what}",
                    f"use a private range that your LAN does not use, such as {rules.example}",
                )

    def _check_length(self, rules: Rules, pool: Pool, network: IPNetwork) -> None:
        key = rules.key("SubnetLen")
        if key in self._reader.failed:
            # Already reported; whatever is derived now serves the remaining checks only.
            pool.length = 0
        shortest = network.prefixlen + 2
        place = f"{rules.key('Network')} is {spell_network(network)}"
        fitting = f"a length between {shortest} and {rules.longest} fits {spell_network(network)}"
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
        self, rules: Rules, pool: Pool, network: IPNetwork, *, length_is_good: bool
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
                shown = f"{_show_ip(rules, value)}, {outer} is {spell_network(network)}"
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

    def _error(self, key: str, message: str, remedy: str) -> None:
        self._problems.append(Problem.error(key, message, remedy))

    def _warn(self, key: str, message: str, remedy: str) -> None:
        self._problems.append(Problem.warning(key, message, remedy))


def _address_decoder(rules: Rules) -> Callable[[JsonValue], IPv4Address | IPv6Address]:
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


def _network_decoder(rules: Rules) -> Callable[[JsonValue], IPNetwork]:
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


def _network_remedy(rules: Rules, text: str) -> str:
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
        other = V6 if rules.family is Family.V4 else V4
        return f"an {other.family} network belongs into {other.key('Network')}"
    return f"write {spell_network(network)}"


def _show_ip(rules: Rules, value: int) -> str:
    return spell_ip(IPv4Address(value) if rules.family is Family.V4 else IPv6Address(value))
