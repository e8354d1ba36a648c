"""A veth pair and the offloads of its ends, synchronously: three netlink requests and two ioctls.

For the one caller that makes a pair as part of something else (the eBPF data path, at its start);
everything that is reconciled goes through `kernel.netlink`.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from typing import Final

from pyflannel.core.errors import KernelError, NotPermitted

RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLMSG_ERROR: Final = 2
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_LINKINFO: Final = 18
IFLA_INFO_KIND: Final = 1
IFLA_INFO_DATA: Final = 2
VETH_INFO_PEER: Final = 1
IFF_UP: Final = 0x1
IFF_NOARP: Final = 0x80
"""linux/rtnetlink.h, linux/if_link.h, linux/veth.h, linux/if.h."""
SIOCETHTOOL: Final = 0x8946
ETHTOOL_STSO: Final = 0x1F
ETHTOOL_SGRO: Final = 0x2C
"""linux/ethtool.h: `struct ethtool_value` is a command and a value."""
_NLMSGHDR: Final = struct.Struct("=IHHII")
_IFINFOMSG: Final = struct.Struct("=BxHiII")


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def _name(name: str) -> bytes:
    return _attribute(IFLA_IFNAME, name.encode() + b"\0")


def _request(kind: int, flags: int, body: bytes, operation: str, subject: str) -> None:
    header = _NLMSGHDR.pack(
        _NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(5.0)
        netlink.bind((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(65536)
    _, answered, *_ = _NLMSGHDR.unpack_from(answer)
    code = -struct.unpack_from("=i", answer, _NLMSGHDR.size)[0] if answered == NLMSG_ERROR else 0
    if code in (errno.EPERM, errno.EACCES):
        raise NotPermitted(operation, subject, code)
    if code:
        raise KernelError(operation, subject, code)


def create_pair(name: str, peer: str, *, mtu: int) -> None:
    """Makes a pair, both ends up and without ARP.

    Raises:
        KernelError: EEXIST if one of the names is taken; EOPNOTSUPP without veth.
    """
    flags = IFF_UP | IFF_NOARP
    info = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    ends = _attribute(IFLA_MTU, struct.pack("=I", mtu))
    data = _attribute(VETH_INFO_PEER, info + _name(peer) + ends)
    link = _attribute(IFLA_INFO_KIND, b"veth\0") + _attribute(IFLA_INFO_DATA, data)
    body = info + _name(name) + ends + _attribute(IFLA_LINKINFO, link)
    _request(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, "link add", f"{name} peer {peer}")
    # Not in the creation: an end cannot come up before it has its peer (ENOTCONN).
    for end in (name, peer):
        change = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(end), flags, flags)
        _request(RTM_NEWLINK, 0, change, "link set", f"{end} up")


def delete_link(name: str) -> None:
    """Deletes a link by name; one that is not there is well deleted."""
    body = _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _name(name)
    try:
        _request(RTM_DELLINK, 0, body, "link delete", name)
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise


def set_offload(name: str, command: int, *, on: bool) -> None:
    """Switches one offload of an interface.

    Args:
        command: `ETHTOOL_STSO` or `ETHTOOL_SGRO`.

    Raises:
        KernelError: the interface does not let it be switched.
    """
    import ctypes

    value = ctypes.create_string_buffer(struct.pack("=II", command, int(on)), 8)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            fcntl.ioctl(asking, SIOCETHTOOL, request)
        except OSError as error:
            raise KernelError("ethtool", f"{name} {command:#x}", error.errno or 0) from error


def mac_of(name: str) -> bytes:
    """The six bytes of an interface's MAC address."""
    siocgifhwaddr = 0x8927
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, siocgifhwaddr, struct.pack("16s24x", name.encode()))
        except OSError as error:
            raise KernelError("link get", name, error.errno or 0) from error
    return bytes(answer[18:24])
