"""What flannel keeps in etcd: the spelling of its keys and of a lease's value, and nothing else.

    <prefix>/config                                     the network config, written by the operator
    <prefix>/subnets/10.5.34.0-24                       a lease
    <prefix>/subnets/10.5.34.0-24&fd00:5:34::-64        a dual-stack lease

Upstream nodes read what we write and we read what they write, so both directions are exact: keys
are joined as Go's `path.Join` does, values have the fields, the order and the escapes of Go's
`encoding/json`, and are read as leniently (any case of a key, the last of several, unknown ones
ignored). The backend's own data stays text throughout: a number keeps the digits its author gave
it.

What lies below `subnets/` may have been put there by any client. Reading it never raises:
`decode_lease` gives the lease or a `BadKey` with the reason, so that one stray key costs nothing
but a line in the log.
"""

from __future__ import annotations

import json
import posixpath
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from pyflannel.core.ip import SubnetKey, format_ip, parse_ip, parse_ipv4, parse_subnet_key
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.foreign import shown
from pyflannel.gocompat.json import HTML, JsonObject, compact_raw, loads_go
from pyflannel.records import dataclass
from pyflannel.store.etcd.base import MAX_VALUE_BYTES, KeyValue

_UNSPECIFIED: Final = IPv4Address(0)
"""How upstream writes "no IPv4 address"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadKey:
    """A key below `subnets/` that is no lease, and why not."""

    key: bytes
    reason: str
    """A phrase for the log."""


def _join(*parts: str) -> str:
    """Joins like Go's `path.Join`: empty parts skipped, slashes collapsed, `.` and `..` resolved.

    `posixpath.normpath` does the same but for a leading `//`, which POSIX lets it keep.
    """
    joined = posixpath.normpath("/".join(part for part in parts if part))
    return joined[1:] if joined.startswith("//") else joined


def config_key(prefix: str) -> bytes:
    """The key of the network config."""
    return _join(prefix, "config").encode(errors="surrogateescape")


def subnets_prefix(prefix: str) -> bytes:
    """What the key of every lease starts with; ends in a slash.

    Upstream ranges over `<prefix>/subnets` without the slash and so also sees siblings such as
    `<prefix>/subnets-old/10.9.0.0-24`.
    """
    return _join(prefix, "subnets").encode(errors="surrogateescape") + b"/"


def lease_key(prefix: str, key: SubnetKey) -> bytes:
    """The key of one lease."""
    return subnets_prefix(prefix) + str(key).encode()


def parse_key(prefix: str, key: bytes) -> SubnetKey | None:
    """The subnet(s) that a key is about; `None` if it is not the key of a lease.

    A key that is not directly below `subnets/` is none, for no subnet has a slash in it.
    """
    above = subnets_prefix(prefix)
    if not key.startswith(above):
        return None
    return parse_subnet_key(key[len(above) :].decode(errors="replace"))


def encode_attrs(attrs: LeaseAttrs) -> bytes:
    """The value of a lease, byte for byte as upstream writes it.

    Raises:
        ValueError: the backend's data is not JSON.
    """
    public_ipv6 = f'"{format_ip(attrs.public_ipv6)}"' if attrs.public_ipv6 is not None else "null"
    fields = [
        f'"PublicIP":"{attrs.public_ip or _UNSPECIFIED}"',
        f'"PublicIPv6":{public_ipv6}',
    ]
    if attrs.backend_type:
        quoted = json.dumps(attrs.backend_type, ensure_ascii=False).translate(HTML)
        fields.append(f'"BackendType":{quoted}')
    if attrs.backend_data:
        fields.append(f'"BackendData":{compact_raw(attrs.backend_data)}')
    if attrs.backend_v6_data:
        fields.append(f'"BackendV6Data":{compact_raw(attrs.backend_v6_data)}')
    return f"{{{','.join(fields)}}}".encode(errors="replace")


def decode_attrs(value: bytes) -> LeaseAttrs:
    """Reads the value of a lease, those of the etcd v2 era included.

    Raises:
        ValueError: it is not JSON, or a field has the wrong type; the message is a phrase.
    """
    fields = loads_go(value)
    if fields is None:
        # Go leaves a struct as it is when told `null`.
        return LeaseAttrs()
    if not isinstance(fields, JsonObject):
        raise ValueError("the value is not a JSON object")  # noqa: TRY004 - what JSON holds
    backend_type = fields.find("BackendType")
    if not isinstance(backend_type, str | None):
        raw = fields.find_raw("BackendType")
        raise ValueError(f"BackendType is {shown(raw)}, not a string")  # noqa: TRY004 - as above
    return LeaseAttrs(
        public_ip=_public_ip(fields),
        public_ipv6=_public_ipv6(fields),
        backend_type=backend_type or "",
        backend_data=_raw(fields, "BackendData"),
        backend_v6_data=_raw(fields, "BackendV6Data"),
    )


def decode_lease(prefix: str, kv: KeyValue) -> Lease | BadKey:
    """The lease that a key and its value stand for, or why they stand for none. Never raises."""
    key = parse_key(prefix, kv.key)
    if key is None:
        return BadKey(key=kv.key, reason="the key does not name a subnet")
    size = kv.left_out or len(kv.value)
    if size > MAX_VALUE_BYTES:
        return BadKey(key=kv.key, reason=f"its value has more than {MAX_VALUE_BYTES} bytes")
    try:
        attrs = decode_attrs(kv.value)
    except ValueError as error:
        return BadKey(key=kv.key, reason=str(error))
    return Lease(key=key, attrs=attrs, store_lease=kv.lease, revision=kv.mod_revision)


def _public_ip(fields: JsonObject) -> IPv4Address | None:
    """`PublicIP`; missing is allowed, but empty, `null`, a number or IPv6 spoils the whole value.

    Upstream parses the raw text between the quotes, so an escape inside is an error to it, too.
    """
    raw = fields.find_raw("PublicIP")
    if raw is None:
        return None
    try:
        address = parse_ipv4(raw.strip('"'))
    except ValueError:
        raise ValueError(f"PublicIP is {shown(raw)}, not an IPv4 address") from None
    return address if address != _UNSPECIFIED else None


def _public_ipv6(fields: JsonObject) -> IPv6Address | None:
    """`PublicIPv6`: missing, `null`, or any IP address; an IPv4 one is mapped into IPv6."""
    raw = fields.find_raw("PublicIPv6")
    if raw is None or raw == "null":
        return None
    try:
        address = parse_ip(raw.strip('"'))
    except ValueError:
        raise ValueError(f"PublicIPv6 is {shown(raw)}, neither an IP address nor null") from None
    if isinstance(address, IPv4Address):
        return IPv6Address(f"::ffff:{address}")
    return address


def _raw(fields: JsonObject, name: str) -> str | None:
    """The compact text of a member, `None` if it is missing; `null` is a text, as in Go."""
    raw = fields.find_raw(name)
    return None if raw is None else compact_raw(raw)
