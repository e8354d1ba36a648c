"""A veth pair, synchronously: some netlink requests.

For the one caller that has a pair as part of something else (the eBPF data path); everything that
is reconciled by the engine goes through `kernel.netlink`.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.kernel.links import (
    IFF_UP,
    IFINFOMSG,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_INFO_DATA,
    IFLA_INFO_KIND,
    IFLA_LINK,
    IFLA_LINK_NETNSID,
    IFLA_LINKINFO,
    IFLA_MTU,
    link_attributes,
)
from pyflannel.kernel.request import query, transact
from pyflannel.kernel.rtnl import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWLINK,
    Request,
    attribute,
    attribute_u32,
    nested_attributes,
)
from pyflannel.records import dataclass

VETH_INFO_PEER: Final = 1
IFF_NOARP: Final = 0x80
"""linux/veth.h, linux/if.h."""


def _name(name: str) -> bytes:
    return attribute(IFLA_IFNAME, name.encode() + b"\0")


def _change(kind: int, flags: int, body: bytes, operation: str, subject: str) -> None:
    transact(Request(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body), operation, subject)


def create_pair(name: str, peer: str, *, mtu: int) -> None:
    """Makes a pair; its ends are down.

    Raises:
        KernelError: EEXIST if one of the names is taken; EOPNOTSUPP without veth.
    """
    info = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    ends = attribute_u32(IFLA_MTU, mtu)
    data = attribute(VETH_INFO_PEER, info + _name(peer) + ends)
    link = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(IFLA_INFO_DATA, data)
    body = info + _name(name) + ends + attribute(IFLA_LINKINFO, link)
    _change(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, "link add", f"{name} peer {peer}")


def bring_up(name: str) -> None:
    """Sets a link up, and without ARP. An end of a pair must have its peer (ENOTCONN).

    Raises:
        KernelError: it cannot come up.
    """
    flags = IFF_UP | IFF_NOARP
    change = IFINFOMSG.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), flags, flags)
    _change(RTM_NEWLINK, 0, change, "link set", f"{name} up")


def set_mtu(name: str, mtu: int) -> None:
    """Sets the MTU of a link, in bytes.

    Raises:
        KernelError: EINVAL if the device cannot have it.
    """
    info = IFINFOMSG.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    body = info + attribute_u32(IFLA_MTU, mtu)
    _change(RTM_NEWLINK, 0, body, "link set", f"{name} mtu {mtu}")


def delete_link(name: str) -> bool:
    """Deletes a link by name; whether it was there."""
    body = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _name(name)
    try:
        _change(RTM_DELLINK, 0, body, "link delete", name)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


@dataclass(frozen=True, slots=True)
class End:
    """One end of a pair, as it is."""

    index: int
    peer: int
    """ifindex of the other end; 0 = it is in another network namespace, or gone."""
    is_veth: bool
    up: bool
    mtu: int
    mac: bytes


def read_end(name: str) -> End | None:
    """The link of this name, `None` if there is none.

    Raises:
        KernelError: the kernel does not say.
    """
    body = _read(name)
    if body is None:
        return None
    _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
    found = link_attributes(body)
    is_veth = _kind(body) == "veth"
    elsewhere = IFLA_LINK_NETNSID in found or IFLA_LINK not in found
    return End(
        index=index,
        peer=0 if elsewhere or not is_veth else _number(found[IFLA_LINK]),
        is_veth=is_veth,
        up=bool(flags & IFF_UP),
        mtu=_number(found[IFLA_MTU]),
        mac=found.get(IFLA_ADDRESS, b""),
    )


def kind_of(name: str) -> str:
    """The kind of a link (`veth`, `vlan`); empty for a card, and where there is no such link.

    Raises:
        KernelError: the kernel does not say.
    """
    body = _read(name)
    return _kind(body) if body is not None else ""


def _read(name: str) -> bytes | None:
    header = IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    request = Request(RTM_GETLINK, NLM_F_REQUEST | NLM_F_ACK, header + _name(name))
    try:
        (body,) = query(request, "link get", name)
    except KernelError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return body


def _kind(body: bytes) -> str:
    info = nested_attributes(link_attributes(body).get(IFLA_LINKINFO, b""))
    return info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")


def _number(value: bytes) -> int:
    return int(struct.unpack("=I", value)[0])
