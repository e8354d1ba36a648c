"""Addresses and prefixes the way flannel reads and writes them.

`ipaddress` does the arithmetic. This module adds what upstream makes observable: the strictness of
Go's parsers, Go's way to print an IPv6 address, and the spelling of a subnet inside an etcd key
(`10.5.34.0-24`, dual stack `10.5.34.0-24&fd00:5:34::-64`).
"""

from __future__ import annotations

import enum
import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from pyflannel.records import dataclass

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

UNSPECIFIED_V4: Final = IPv4Address(0)
EMPTY_V4: Final = IPv4Network("0.0.0.0/0")
"""What upstream writes where an IPv4 part is missing: `0.0.0.0-0` in a key."""
EMPTY_V6: Final = IPv6Network("::/0")
"""The same for IPv6."""


class Family(enum.Enum):
    """An address family; IPv4 and IPv6 run through one code path that is given one of these."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Bits of an address."""
        return 32 if self is Family.V4 else 128

    @property
    def af(self) -> int:
        """`AF_INET` or `AF_INET6`, as Linux numbers them (bits/socket.h)."""
        return 2 if self is Family.V4 else 10

    def __str__(self) -> str:
        return f"IPv{self.value}"


def family_of(value: IPAddress | IPNetwork) -> Family:
    """The family of an address or a prefix."""
    return Family.V4 if value.version == 4 else Family.V6


_DOTTED_QUAD: Final = re.compile(r"(0|[1-9]\d{0,2})(\.(0|[1-9]\d{0,2})){3}", re.ASCII)


def parse_ipv4(text: str) -> IPv4Address:
    """Reads an IPv4 address as Go's `net.ParseIP(...).To4()` does.

    A dotted quad without leading zeros, or IPv4-mapped IPv6 (`::ffff:10.3.5.0`).

    Raises:
        ValueError: for anything else; the message is a sentence without the value's key.
    """
    if _DOTTED_QUAD.fullmatch(text):
        try:
            return IPv4Address(text)
        except ValueError:
            raise ValueError(f"{text!r} is not an IPv4 address") from None
    if ":" in text and "%" not in text:
        try:
            mapped = IPv6Address(text).ipv4_mapped
        except ValueError:
            mapped = None
        if mapped is not None:
            return mapped
    raise ValueError(f"{text!r} is not an IPv4 address")


def parse_ipv6(text: str) -> IPv6Address:
    """Reads an IPv6 address without a zone.

    Raises:
        ValueError: if it is none.
    """
    if "%" not in text:
        try:
            return IPv6Address(text)
        except ValueError:
            pass
    raise ValueError(f"{text!r} is not an IPv6 address")


def parse_ip(text: str) -> IPAddress:
    """Reads an address of either family; IPv4-mapped IPv6 gives IPv4, as in Go.

    Raises:
        ValueError: if it is neither.
    """
    try:
        return parse_ipv4(text)
    except ValueError:
        pass
    try:
        return parse_ipv6(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None


def _split_cidr(text: str, bits: int) -> tuple[str, int]:
    address, slash, length = text.partition("/")
    # Go reads the length as a plain decimal number: leading zeros do not matter here.
    if not slash or not re.fullmatch(r"0*\d{1,3}", length, re.ASCII) or int(length) > bits:
        raise ValueError(f"{text!r} is not an address with a prefix length (A.B.C.D/N)")
    return address, int(length)


def parse_ipv4_network(text: str) -> IPv4Network:
    """Reads `A.B.C.D/N` and masks the host bits off, as Go's `net.ParseCIDR` gives the network.

    Raises:
        ValueError: for a netmask, a missing length, abbreviations or another family.
    """
    address, length = _split_cidr(text, 32)
    if not _DOTTED_QUAD.fullmatch(address):
        raise ValueError(f"{text!r} is not an IPv4 prefix (A.B.C.D/N)")
    return IPv4Network((int(parse_ipv4(address)), length), strict=False)


def parse_ipv6_network(text: str) -> IPv6Network:
    """Reads an IPv6 prefix and masks the host bits off.

    Raises:
        ValueError: if it is none.
    """
    address, length = _split_cidr(text, 128)
    return IPv6Network((int(parse_ipv6(address)), length), strict=False)


def format_ip(address: IPAddress) -> str:
    """Prints an address as upstream does, which is Go's `net.IP.String()` and a slip of its own.

    Lower case, the longest run of two or more zero groups compressed (the first one on a tie).
    IPv4-mapped addresses print as a dotted quad. So do, in upstream, all addresses below 2^32 whose
    top byte of these 32 bits is not zero: `::1.2.3.4` is `1.2.3.4`, yet `::1` is `::1`.
    """
    if isinstance(address, IPv6Address):
        number = int(address)
        if address.ipv4_mapped is not None or 1 << 24 <= number < 1 << 32:
            return str(IPv4Address(number & 0xFFFFFFFF))
    return str(address)


def spell_ip(address: IPAddress) -> str:
    """An address in a spelling that reads back as the same address of the same family.

    As `format_ip`, but an IPv6 address never becomes a dotted quad. (Newer Pythons print the
    IPv4-mapped ones half and half, for which the pattern of a subnet key has no room.)
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        low = int(address) & 0xFFFFFFFF
        return f"::ffff:{low >> 16:x}:{low & 0xFFFF:x}"
    return str(address)


def format_network(network: IPNetwork) -> str:
    """`10.5.34.0/24`, with the address printed by `format_ip`."""
    return f"{format_ip(network.network_address)}/{network.prefixlen}"


@dataclass(frozen=True, slots=True)
class SubnetKey:
    """Which subnet(s) a lease is about: the part of an etcd key behind `subnets/`.

    At least one of the two is set. Keys have an order, so that listings are stable: by IPv4 subnet,
    those without one first; then by IPv6 subnet in the same way.
    """

    v4: IPv4Network | None
    """The IPv4 subnet; `None` in an IPv6-only network, written as `0.0.0.0-0`."""
    v6: IPv6Network | None = None
    """The IPv6 subnet of a dual-stack or IPv6-only lease."""

    def __str__(self) -> str:
        """The spelling inside an etcd key: `10.5.34.0-24` or `10.5.34.0-24&fd00:5:34::-64`.

        Always one that can be read back, unlike upstream's for subnets in `::/96`.
        """
        v4 = self.v4 or EMPTY_V4
        text = f"{v4.network_address}-{v4.prefixlen}"
        if self.v6 is not None:
            text += f"&{spell_ip(self.v6.network_address)}-{self.v6.prefixlen}"
        return text

    def __lt__(self, other: SubnetKey) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[tuple[int, int], tuple[int, int]]:
        v4, v6 = (
            (int(net.network_address), net.prefixlen) if net is not None else (-1, -1)
            for net in (self.v4, self.v6)
        )
        return v4, v6

    def subnet(self, family: Family) -> IPNetwork | None:
        """The subnet of one family, or `None`."""
        return self.v4 if family is Family.V4 else self.v6

    def describe(self) -> str:
        """For people: `10.5.34.0/24` or `10.5.34.0/24 + fd00:5:34::/64`."""
        return " + ".join(format_network(n) for n in (self.v4, self.v6) if n is not None)


_KEY: Final = re.compile(
    r"(\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3})-(\d{1,3})(?:&([a-f0-9:]+)-(\d{1,3}))?", re.ASCII
)


def parse_subnet_key(text: str) -> SubnetKey | None:
    """Reads what stands behind `subnets/` in an etcd key; `None` if it is not a subnet.

    Upstream's pattern has room for prefix lengths 0..31 and 0..127 only and reads lower-case hex
    only; it is not anchored at the front, ours is (a key `x10.5.1.0-24` is not ours to follow).
    Host bits are kept out: `10.5.1.7-24` is the subnet `10.5.1.0/24` to upstream's backends, but as
    a key it is not one that flannel writes, so it is "not a subnet" here.
    """
    match = _KEY.fullmatch(text)
    if match is None or int(match[2]) > 31 or (match[4] and int(match[4]) > 127):
        return None
    try:
        v4 = IPv4Network((int(parse_ipv4(match[1])), int(match[2])))
        v6 = IPv6Network((int(parse_ipv6(match[3])), int(match[4]))) if match[3] else None
    except ValueError:
        return None
    empty = v4 == EMPTY_V4
    if empty and (v6 is None or v6 == EMPTY_V6):
        return None
    return SubnetKey(None if empty else v4, v6)
