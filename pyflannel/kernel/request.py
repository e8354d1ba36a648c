"""One netlink request, sent and acknowledged synchronously; and a socket that hears of changes.

For the few who need one or two of them as part of something else (the eBPF data path, at its
start); everything that is reconciled goes through `kernel.netlink`.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from pyflannel.core.errors import KernelError, NotPermitted
from pyflannel.kernel import rtnl
from pyflannel.kernel.sockopts import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK

_TIMEOUT_S: Final = 5.0
"""The answer is there at once, or the kernel is in deep trouble."""
_RECEIVE_BYTES: Final = 1 << 16
"""A dump's datagrams are at most 32 KB (net/netlink/af_netlink.c, `netlink_dump`)."""


def transact(
    request: rtnl.Request,
    operation: str,
    subject: str,
    *,
    protocol: int = socket.NETLINK_ROUTE,
) -> None:
    """Sends one request and waits for its acknowledgement.

    Args:
        request: with NLM_F_ACK.
        operation: for the error, such as `link add`.
        subject: for the error: the object.
        protocol: NETLINK_*, which part of the kernel is asked.

    Raises:
        NotPermitted: EPERM, EACCES.
        KernelError: anything else the kernel answers.
        OSError: it does not know the protocol.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.bind((0, 0))
        netlink.send(rtnl.pack(request, 1))
        received = netlink.recv(_RECEIVE_BYTES)
    code = next(rtnl.decode_answer(message).errno for message in rtnl.split(received))
    if code in (errno.EPERM, errno.EACCES):
        raise NotPermitted(operation, subject, code)
    if code:
        raise KernelError(operation, subject, code)


def listen(protocol: int, group: int, subject: str) -> socket.socket:
    """A non-blocking socket that gets what the kernel tells a multicast group in this namespace.

    Args:
        protocol: of netlink.
        group: its number.
        subject: for the error: what is told.

    Raises:
        KernelError: there is no such protocol or group.
        NotPermitted: a capability is missing.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        events = socket.socket(socket.AF_NETLINK, kind, protocol)
    except OSError as error:
        raise KernelError("listen for", subject, error.errno or 0) from error
    try:
        events.bind((0, 0))
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError as error:
        events.close()
        refused = NotPermitted if isinstance(error, PermissionError) else KernelError
        raise refused("listen for", subject, error.errno or 0) from error
    return events


def query(
    request: rtnl.Request,
    operation: str,
    subject: str,
    *,
    protocol: int = socket.NETLINK_ROUTE,
) -> list[bytes]:
    """Sends a request for objects and gives the body of each.

    Args:
        request: with NLM_F_DUMP, or with NLM_F_ACK for one object.
        operation: for the error, such as `rule list`.
        subject: for the error: what is listed.
        protocol: as for `transact`.

    Raises:
        KernelError: what the kernel answers.
        OSError: it does not know the protocol.
    """
    found: list[bytes] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.bind((0, 0))
        netlink.send(rtnl.pack(request, 1))
        while True:
            for message in rtnl.split(netlink.recv(_RECEIVE_BYTES)):
                if message.kind in (rtnl.NLMSG_ERROR, rtnl.NLMSG_DONE):
                    code = rtnl.decode_answer(message).errno
                    if code:
                        raise KernelError(operation, subject, code)
                    return found
                found.append(message.body)
