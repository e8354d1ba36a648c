"""Notices that another program changed the firewall, without spawning a process.

nf_tables (the `nft` command and the nft flavour of iptables) announces every change to the
multicast group NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h); each message names its table in
attribute 1, whatever object it is about. Legacy iptables announces nothing, but tells the number
of entries and the size of a table through getsockopt(2) (linux/netfilter_ipv4/ip_tables.h,
`struct ipt_getinfo`).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyflannel.core.ip import Family
from pyflannel.kernel.request import listen

NETLINK_NETFILTER: Final = 12
NFNLGRP_NFTABLES: Final = 7
NFNL_SUBSYS_NFTABLES: Final = 10
NFT_MSG_NEWGEN: Final = 15
_NLMSGHDR: Final = struct.Struct("=IHHII")
_NFGENMSG_BYTES: Final = 4
_NLATTR: Final = struct.Struct("=HH")
_TABLE_NAME: Final = 1
"""NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE: all of them are 1."""
RECEIVE_BYTES: Final = 1 << 16
IPT_SO_GET_INFO: Final = 64
IP6T_SO_GET_INFO: Final = 64
_GETINFO: Final = struct.Struct("=32sI5I5III")
"""`char name[32]; valid_hooks; hook_entry[5]; underflow[5]; num_entries; size`."""


def open_nftables_events() -> socket.socket:
    """A non-blocking socket that becomes readable when nf_tables rules change in this namespace.

    Raises:
        KernelError: the kernel has no nf_tables, or does not let us listen.
    """
    return listen(NETLINK_NETFILTER, NFNLGRP_NFTABLES, "nf_tables changes")


def changed_tables(events: socket.socket) -> set[str] | None:
    """Drains the socket; the names of the tables that were changed.

    `None` means that messages were lost (ENOBUFS), so that anything may have changed.
    """
    names: set[str] = set()
    lost = False
    while True:
        try:
            data = events.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None if lost else names
        except OSError:
            lost = True
            continue
        names.update(table_names(data))


def table_names(data: bytes) -> Iterator[str]:
    """The table names in a buffer of nf_tables notifications; generation messages have none."""
    offset = 0
    while offset + _NLMSGHDR.size <= len(data):
        length, kind, *_ = _NLMSGHDR.unpack_from(data, offset)
        if length < _NLMSGHDR.size or offset + length > len(data):
            return
        if kind >> 8 == NFNL_SUBSYS_NFTABLES and kind & 0xFF != NFT_MSG_NEWGEN:
            name = _table_name(data[offset + _NLMSGHDR.size + _NFGENMSG_BYTES : offset + length])
            if name is not None:
                yield name
        offset += (length + 3) & ~3


def _table_name(attributes: bytes) -> str | None:
    offset = 0
    while offset + _NLATTR.size <= len(attributes):
        length, kind = _NLATTR.unpack_from(attributes, offset)
        if length < _NLATTR.size:
            return None
        if kind & 0x3FFF == _TABLE_NAME:
            value = attributes[offset + _NLATTR.size : offset + length]
            return value.rstrip(b"\0").decode(errors="replace")
        offset += (length + 3) & ~3
    return None


def legacy_table_info(family: Family, table: str) -> bytes | None:
    """A fingerprint of a legacy iptables table; `None` if it does not exist or cannot be asked.

    Must only be asked for tables that are in use: the question loads the table's module.
    """
    level, option, domain = (
        (socket.IPPROTO_IP, IPT_SO_GET_INFO, socket.AF_INET)
        if family is Family.V4
        else (socket.IPPROTO_IPV6, IP6T_SO_GET_INFO, socket.AF_INET6)
    )
    request = _GETINFO.pack(table.encode(), *([0] * 13))
    with contextlib.suppress(OSError), socket.socket(domain, socket.SOCK_RAW, 255) as asking:
        return _getsockopt_in_out(asking.fileno(), level, option, request)
    return None


def _getsockopt_in_out(fd: int, level: int, option: int, request: bytes) -> bytes:
    """getsockopt(2) whose buffer also carries the question, which Python's own cannot do."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(request, len(request))
    size = ctypes.c_uint32(len(request))
    if libc.getsockopt(fd, level, option, buffer, ctypes.byref(size)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: size.value]


def legacy_tables(family: Family) -> tuple[str, ...]:
    """The tables that legacy iptables has in this network namespace (to list one creates it)."""
    name = "ip_tables_names" if family is Family.V4 else "ip6_tables_names"
    try:
        return tuple(Path("/proc/net", name).read_text().split())
    except OSError:
        return ()
