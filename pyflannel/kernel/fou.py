"""FOU ports: UDP ports at which the kernel takes the header off and hands on what is inside.

*Foo over UDP* (net/ipv4/fou_core.c). Such a port is a socket of the kernel's, with an address and a
device that it is bound to; it belongs to no process and stays until it is deleted. Beside what it
takes, GRO knows it: packets of one TCP stream in its datagrams are joined as they come in.

Source: linux/fou.h; Documentation/netlink/specs/fou.yaml.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import Final

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel import genl
from pyflannel.kernel.request import query, transact
from pyflannel.kernel.rtnl import AF_INET, BE16, NLM_F_ACK, NLM_F_DUMP, attribute, attributes_from
from pyflannel.records import dataclass

FAMILY: Final = "fou"
IPPROTO_IPIP: Final = 4
_ADD: Final = 1
_DELETE: Final = 2
_GET: Final = 3
_PORT: Final = 1
_AF: Final = 2
_IPPROTO: Final = 3
_TYPE: Final = 4
_LOCAL_V4: Final = 6
_PEER_PORT: Final = 10
_IFINDEX: Final = 11
_DIRECT: Final = 1
"""`FOU_ENCAP_DIRECT`: nothing between the UDP header and what is inside."""
_S32: Final = struct.Struct("=i")
_NO_ADDRESS: Final = bytes(4)
_GENERIC: Final = genl.NETLINK_GENERIC


@dataclass(frozen=True, slots=True, kw_only=True)
class FouPort:
    """One port, by all that its deletion must name."""

    port: int
    protocol: int
    """Of what is inside (IPPROTO_*)."""
    local: IPv4Address | None
    """`None`: every address."""
    ifindex: int
    """0: every device. The device may be gone."""
    plain: bool = True
    """Whether it is of IPv4, with nothing between the headers, and no peer alone is heard."""


def pack(port: FouPort) -> bytes:
    """The attributes of a port to add or to delete."""
    packed = (
        attribute(_PORT, BE16.pack(port.port))
        + attribute(_AF, bytes((AF_INET,)))
        + attribute(_IPPROTO, bytes((port.protocol,)))
        + attribute(_TYPE, bytes((_DIRECT,)))
    )
    if port.local is not None:
        packed += attribute(_LOCAL_V4, port.local.packed)
    if port.ifindex:
        packed += attribute(_IFINDEX, _S32.pack(port.ifindex))
    return packed


def unpack(body: bytes) -> FouPort:
    """A port out of the kernel's listing."""
    found = attributes_from(body, genl.HEADER.size)
    local = found.get(_LOCAL_V4, _NO_ADDRESS)
    alone = not any(found.get(_PEER_PORT, b""))
    return FouPort(
        port=BE16.unpack(found[_PORT])[0],
        protocol=found[_IPPROTO][0],
        local=IPv4Address(local) if any(local) else None,
        ifindex=_S32.unpack(found.get(_IFINDEX, bytes(4)))[0],
        plain=found[_AF][0] == AF_INET and found[_TYPE][0] == _DIRECT and alone,
    )


def is_there() -> bool:
    """Whether the kernel has FOU, and its module is loaded.

    Raises:
        KernelError: what the kernel answers.
    """
    try:
        genl.family_number(FAMILY)
    except DeviceUnavailable:
        return False
    return True


def ports() -> list[FouPort]:
    """All of this network namespace; none where the kernel has no FOU.

    Raises:
        KernelError: what the kernel answers.
    """
    try:
        family = genl.family_number(FAMILY)
    except DeviceUnavailable:
        return []
    asking = genl.request(family, _GET, NLM_F_DUMP)
    return [unpack(each) for each in query(asking, "list", "fou ports", protocol=_GENERIC)]


def add(port: FouPort) -> None:
    """Adds a port.

    Raises:
        DeviceUnavailable: the kernel has no FOU, or its module is not loaded.
        NotPermitted: CAP_NET_ADMIN, over the machine and not over a container, is missing.
        KernelError: EADDRINUSE if a socket is bound there, EALREADY if the port is there.
    """
    _change(_ADD, "add", port)


def delete(port: FouPort) -> None:
    """Deletes a port.

    Raises:
        KernelError: EINVAL if there is none.
    """
    _change(_DELETE, "delete", port)


def _change(command: int, operation: str, port: FouPort) -> None:
    asking = genl.request(genl.family_number(FAMILY), command, NLM_F_ACK, pack(port))
    transact(asking, operation, f"fou port {port.port}", protocol=_GENERIC)
