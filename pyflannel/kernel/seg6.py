"""A route of the kernel's SRv6 (`seg6local`), synchronously: frames come out of their packets.

Such a route decapsulates every packet that reaches it. So it stands in a table of its own, and a
rule leads there from one interface alone.

Source: RFC 8986 §4.9 (End.DX2); include/uapi/linux/seg6_local.h, lwtunnel.h, rtnetlink.h,
fib_rules.h.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv6Address
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.kernel.base import Route
from pyflannel.kernel.objects import delete_request, set_request
from pyflannel.kernel.request import query, transact
from pyflannel.kernel.routes import RTA_ENCAP, RTA_TABLE
from pyflannel.kernel.rtnl import (
    AF_INET6,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Request,
    attribute,
    attribute_u32,
    host_network,
)

RTA_ENCAP_TYPE: Final = 21
LWTUNNEL_ENCAP_SEG6_LOCAL: Final = 7
SEG6_LOCAL_ACTION: Final = 1
SEG6_LOCAL_OIF: Final = 7
SEG6_LOCAL_ACTION_END_DX2: Final = 4
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34
FR_ACT_TO_TBL: Final = 1
FRA_IIFNAME: Final = 3
FRA_PRIORITY: Final = 6
FRA_TABLE: Final = 15
_FIB_RULE: Final = struct.Struct("=BBBBBxxBI")
"""`struct fib_rule_hdr`: family, prefix lengths, tos, table (0 = in FRA_TABLE), action, flags."""


def put_host_route(address: IPv6Address, via: int) -> None:
    """Sets the main table's route to one address through a device, in the place of what is there.

    Args:
        address: its destination.
        via: ifindex of the device.

    Raises:
        KernelError: ENODEV without the device, EACCES where IPv6 is switched off on it.
    """
    transact(set_request(_route(address, via)), "route replace", f"{address}/128")


def delete_host_route(address: IPv6Address, via: int) -> None:
    """Deletes that route; one that is not there counts as deleted.

    Raises:
        KernelError: anything else.
    """
    try:
        transact(delete_request(_route(address, via)), "route delete", f"{address}/128")
    except KernelError as error:
        if error.errno not in (errno.ESRCH, errno.ENOENT):
            raise


def put_frame_route(address: IPv6Address, via: int, *, frames_to: int, table: int) -> None:
    """Sets a route of a table: packets for the address are decapsulated, their frame sent out.

    Args:
        address: its destination.
        via: ifindex of the device that the route counts as leading through; it goes with it.
        frames_to: ifindex of the interface out of which the Ethernet frame is sent.
        table: number of the routing table.

    Raises:
        KernelError: EOPNOTSUPP where the kernel lacks seg6local, ENODEV without the device, EACCES
            where IPv6 is switched off on it.
    """
    action = attribute_u32(SEG6_LOCAL_ACTION, SEG6_LOCAL_ACTION_END_DX2)
    action += attribute_u32(SEG6_LOCAL_OIF, frames_to)
    kind = attribute(RTA_ENCAP_TYPE, struct.pack("=H", LWTUNNEL_ENCAP_SEG6_LOCAL))
    request = set_request(_route(address, via))
    # Overrules the table in the header, where there is one byte for it.
    body = request.body + attribute_u32(RTA_TABLE, table) + kind + attribute(RTA_ENCAP, action)
    transact(request._replace(body=body), "route replace", f"{address}/128 table {table}")


def put_rule(interface: str, table: int, *, priority: int) -> None:
    """Has the table asked for IPv6 packets that came in by an interface, and for no others.

    Args:
        interface: name; the rule waits for the interface if it is not there.
        table: number of the routing table.
        priority: the lower, the sooner is it asked.

    Raises:
        KernelError: EAFNOSUPPORT, EOPNOTSUPP where the kernel lacks IPv6 or rules.
    """
    body = _rule(interface, table, priority)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    try:
        transact(Request(RTM_NEWRULE, flags, body), "rule add", f"iif {interface}")
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise


def has_rule(interface: str, table: int, *, priority: int) -> bool:
    """Whether the rule of `put_rule` is there."""
    header = _FIB_RULE.pack(AF_INET6, 0, 0, 0, 0, 0, 0)
    request = Request(RTM_GETRULE, NLM_F_REQUEST | NLM_F_DUMP, header)
    wanted = [
        attribute(FRA_IIFNAME, interface.encode() + b"\0"),
        attribute_u32(FRA_PRIORITY, priority),
        attribute_u32(FRA_TABLE, table),
    ]
    try:
        bodies = query(request, "rule list", "IPv6")
    except KernelError:
        return False  # no IPv6, or no rules
    return any(all(each in body for each in wanted) for body in bodies)


def delete_rule(interface: str, table: int, *, priority: int) -> bool:
    """Deletes the rule of `put_rule`; whether it was there.

    Raises:
        KernelError: it cannot be deleted.
    """
    request = Request(RTM_DELRULE, NLM_F_REQUEST | NLM_F_ACK, _rule(interface, table, priority))
    try:
        transact(request, "rule delete", f"iif {interface}")
    except KernelError as error:
        if error.errno in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _route(address: IPv6Address, via: int) -> Route:
    return Route(dst=host_network(address), oif=via)


def _rule(interface: str, table: int, priority: int) -> bytes:
    return (
        _FIB_RULE.pack(AF_INET6, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
        + attribute(FRA_IIFNAME, interface.encode() + b"\0")
        + attribute_u32(FRA_PRIORITY, priority)
        + attribute_u32(FRA_TABLE, table)
    )
