"""A device of the fake kernel, and what can be said of one without the others."""

from __future__ import annotations

import errno
from dataclasses import field
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import IPAddress
from pyflannel.kernel.base import (
    Address,
    FdbEntry,
    Link,
    Neighbour,
    VxlanAttrs,
)
from pyflannel.records import dataclass

VXLAN_PORT: Final = 8472
"""What the kernel takes if no port is given."""
LINK_LOCAL: Final = IPv6Network("fe80::/64")
NAME_LIMIT: Final = 15
VNI_LIMIT: Final = 1 << 24
MTU_RANGE: Final = range(68, 65536)


@dataclass(slots=True)
class Device:
    """A link and what hangs on it."""

    link: Link
    carrier: bool = True
    addresses: list[Address] = field(default_factory=list)
    neighbours: dict[IPAddress, Neighbour] = field(default_factory=dict)
    fdb: dict[str, FdbEntry] = field(default_factory=dict)
    learned: dict[str, FdbEntry] = field(default_factory=dict)
    tx_checksum: bool = True


def kernel_error(operation: str, subject: str, code: int, hint: str = "") -> KernelError:
    """A refusal, in the class that the real room raises for this errno."""
    if code in (errno.EPERM, errno.EACCES):
        return NotPermitted(operation, subject, code)
    if code == errno.ENODEV:
        return DeviceUnavailable(operation, subject, code, hint or "the link is gone")
    return KernelError(operation, subject, code, hint)


def check_mac(operation: str, mac: str) -> None:
    """Refuses what is no MAC, as the kernel does."""
    try:
        bytes.fromhex(mac.replace(":", ""))
    except ValueError as error:
        raise KernelError(operation, f"lladdr {mac}", errno.EINVAL, str(error)) from error


def collide(standing: VxlanAttrs | None, wanted: VxlanAttrs) -> bool:
    """Whether two vxlan devices would get the same packets."""

    def identity(vxlan: VxlanAttrs) -> tuple[int, int, int]:
        return (vxlan.vni, vxlan.port, 4 if vxlan.local is None else vxlan.local.version)

    return standing is not None and identity(standing) == identity(wanted)


def default_mac(index: int) -> str:
    """Locally administered and unicast, like the kernel's random ones; here it can be foretold."""
    return f"06:00:00:00:{index >> 8 & 0xFF:02x}:{index & 0xFF:02x}"


def eui64(mac: str) -> IPv6Address:
    """The link-local address that a MAC gives (RFC 4291 appendix A)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes((octets[0] ^ 2,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(LINK_LOCAL.network_address.packed[:8] + identifier)
