"""flannel's annotations of a Kubernetes node: their names, and a lease in their spelling.

Upstream's nodes read what we write and we read what they write, so both directions are exact. All
values are texts. `backend-data` is the backend's own JSON, and `null` for a backend that publishes
none, which is not the same as an annotation that is missing.

| annotation | written by | value |
|---|---|---|
| `kube-subnet-manager` | flannel | `true`, compared as text; other nodes are no peers |
| `backend-type` | flannel | empty for udp and alloc |
| `backend-data`, `backend-v6-data` | flannel | JSON |
| `public-ip`, `public-ipv6` | flannel | the address that peers send to |
| `public-ip-overwrite`, `public-ipv6-overwrite` | an operator | published in its place |
| `node-public-ip`, `node-public-ipv6` | an operator | as `--public-ip` and `--public-ipv6` |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import Family, IPAddress, format_ip, parse_ipv4, parse_ipv6
from pyflannel.core.lease import LeaseAttrs
from pyflannel.gocompat.json import JsonError, JsonObject, loads_go
from pyflannel.records import dataclass

DEFAULT_PREFIX: Final = "flannel.alpha.coreos.com"

MANAGED: Final = "kube-subnet-manager"
BACKEND_TYPE: Final = "backend-type"
DATA: Final = {Family.V4: "backend-data", Family.V6: "backend-v6-data"}
PUBLIC: Final = {Family.V4: "public-ip", Family.V6: "public-ipv6"}
OVERWRITE: Final = {Family.V4: "public-ip-overwrite", Family.V6: "public-ipv6-overwrite"}
NODE_PUBLIC: Final = {Family.V4: "node-public-ip", Family.V6: "node-public-ipv6"}

NAMES: Final = (
    MANAGED,
    BACKEND_TYPE,
    *DATA.values(),
    *PUBLIC.values(),
    *OVERWRITE.values(),
    *NODE_PUBLIC.values(),
)
"""All of them, without the prefix."""
PUBLISHED: Final = (MANAGED, BACKEND_TYPE, *DATA.values(), *PUBLIC.values())
"""Those that this node writes."""

YES: Final = "true"
NO_DATA: Final = "null"
"""What Go makes of a `RawMessage` that is nil."""

_PREFIX: Final = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?\Z")
"""Not anchored at the front, as in upstream."""


def normal_prefix(text: str) -> str:
    """What stands before a name: `flannel.alpha.coreos.com/`, or `example.org/cni-`.

    Raises:
        ConfigError: it is no prefix; with upstream's text.
    """
    if text.count("/") > 1:
        raise ConfigError(
            f"--kube-annotation-prefix {text!r}: prefix can contain at most single slash"
        )
    prefix = text if "/" in text else f"{text}/"
    if not prefix.endswith(("/", "-")):
        prefix += "-"
    if not _PREFIX.search(prefix):
        raise ConfigError(
            f"--kube-annotation-prefix {text!r}: prefix must be in a format: fqdn/[0-9a-z-_]*"
        )
    return prefix


@dataclass(frozen=True, slots=True)
class Overwrites:
    """What an operator's annotations want to be published, read once and checked."""

    addresses: Mapping[Family, IPAddress]
    """Those that are valid, by family."""
    errors: Mapping[Family, str]
    """What is wrong with the others, naming the annotation."""

    def over(self, former: Mapping[Family, IPAddress]) -> dict[Family, IPAddress]:
        """What is in force now: of an annotation that is wrong what it was before."""
        kept = {family: former[family] for family in self.errors if family in former}
        every = {**kept, **self.addresses}
        return {family: every[family] for family in Family if family in every}


def parse_address(family: Family, text: str) -> IPAddress:
    """An address of one family, which peers could send to.

    Raises:
        ValueError: it is none.
    """
    address: IPv4Address | IPv6Address = (
        parse_ipv4(text) if family is Family.V4 else parse_ipv6(text)
    )
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError(f"{text!r} is not an address that other nodes can send to")
    return address


def addresses_of(
    names: Mapping[Family, str], annotations: Mapping[str, str], prefix: str
) -> Overwrites:
    """The addresses in an operator's annotations.

    Args:
        names: `OVERWRITE` or `NODE_PUBLIC`.
        annotations: by their names without the prefix.
        prefix: as `normal_prefix` gives it, for the messages.
    """
    found: dict[Family, IPAddress] = {}
    errors: dict[Family, str] = {}
    for family, name in names.items():
        text = annotations.get(name, "")
        if not text:
            continue
        try:
            found[family] = parse_address(family, text)
        except ValueError as error:
            errors[family] = f"annotation {prefix}{name}: {error}"
    return Overwrites(found, errors)


def encode(
    attrs: LeaseAttrs, families: tuple[Family, ...], overwrites: Mapping[Family, IPAddress]
) -> dict[str, str | None]:
    """The annotations that a node with this lease must carry; `None` for one that must not be.

    Args:
        attrs: what the backend publishes.
        families: those that the network config enables.
        overwrites: addresses that an operator wants published in the place of the node's own.
    """
    wanted: dict[str, str | None] = dict.fromkeys((*DATA.values(), *PUBLIC.values()))
    wanted[MANAGED] = YES
    wanted[BACKEND_TYPE] = attrs.backend_type
    for family in families:
        address = overwrites.get(family, attrs.underlay(family))
        if address is None or not _writes(attrs, family):
            continue
        wanted[PUBLIC[family]] = format_ip(address)
        wanted[DATA[family]] = attrs.data(family) or NO_DATA
    return wanted


def _writes(attrs: LeaseAttrs, family: Family) -> bool:
    """Whether a backend publishes a family.

    As upstream: vxlan not without data, IPv6 not without a type.
    """
    if attrs.backend_type == "vxlan" and not attrs.data(family):
        return False
    return family is Family.V4 or bool(attrs.backend_type)


def difference(
    annotations: Mapping[str, str], wanted: Mapping[str, str | None]
) -> dict[str, str | None]:
    """What has to be written, sorted by name; empty if all is as it should be."""
    return {name: wanted[name] for name in sorted(wanted) if annotations.get(name) != wanted[name]}


def decode(annotations: Mapping[str, str], families: tuple[Family, ...]) -> LeaseAttrs:
    """What a node publishes, in the families that the network config enables.

    Raises:
        ValueError: something in it cannot be used; a phrase that names the annotation.
    """
    public: dict[Family, IPAddress] = {}
    data: dict[Family, str | None] = {}
    for family in families:
        name = PUBLIC[family]
        if name not in annotations:
            raise ValueError(f"it has no annotation {name}")
        try:
            public[family] = (parse_ipv4 if family is Family.V4 else parse_ipv6)(annotations[name])
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        data[family] = _data(annotations, DATA[family])
    v4, v6 = public.get(Family.V4), public.get(Family.V6)
    return LeaseAttrs(
        public_ip=v4 if isinstance(v4, IPv4Address) else None,
        public_ipv6=v6 if isinstance(v6, IPv6Address) else None,
        backend_type=annotations.get(BACKEND_TYPE, ""),
        backend_data=data.get(Family.V4),
        backend_v6_data=data.get(Family.V6),
    )


def _data(annotations: Mapping[str, str], name: str) -> str | None:
    text = annotations.get(name, NO_DATA)
    if text == NO_DATA:
        return None
    try:
        loads_go(text)
    except JsonError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    return text


def has_fields(data: str | None) -> bool:
    """Whether backend data is a JSON object with something in it."""
    if data is None:
        return False
    try:
        value = loads_go(data)
    except JsonError:
        return False
    return isinstance(value, JsonObject) and len(value) > 0


def former_attrs(annotations: Mapping[str, str]) -> LeaseAttrs | None:
    """What a former run of this node published, as far as it can be read; `None` if nothing."""
    if annotations.get(MANAGED) != YES:
        return None
    public: dict[Family, IPAddress | None] = {}
    for family, name in PUBLIC.items():
        try:
            public[family] = parse_address(family, annotations.get(name, ""))
        except ValueError:
            public[family] = None
    data: dict[Family, str | None] = {}
    for family, name in DATA.items():
        try:
            data[family] = _data(annotations, name)
        except ValueError:
            data[family] = None
    v4, v6 = public[Family.V4], public[Family.V6]
    return LeaseAttrs(
        public_ip=v4 if isinstance(v4, IPv4Address) else None,
        public_ipv6=v6 if isinstance(v6, IPv6Address) else None,
        backend_type=annotations.get(BACKEND_TYPE, ""),
        backend_data=data[Family.V4],
        backend_v6_data=data[Family.V6],
    )
