"""One rtnetlink request, sent and acknowledged synchronously.

For the few who need one or two of them as part of something else (the eBPF data path, at its
start); everything that is reconciled goes through `kernel.netlink`.

Source: include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from pyflannel.core.errors import KernelError, NotPermitted

NLM_F_REQUEST: Final = 0x01
NLM_F_ACK: Final = 0x04
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLMSG_ERROR: Final = 2
_NLMSGHDR: Final = struct.Struct("=IHHII")
_TIMEOUT_S: Final = 5.0
"""The answer is there at once, or the kernel is in deep trouble."""


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes; nested ones are attributes in the value."""
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def request(kind: int, flags: int, body: bytes, operation: str, subject: str) -> None:
    """Sends one request and waits for its acknowledgement.

    Args:
        kind: an `RTM_…`.
        flags: beside NLM_F_REQUEST and NLM_F_ACK.
        body: the family's header and the attributes.
        operation: for the error, such as `link add`.
        subject: for the error: the object.

    Raises:
        NotPermitted: EPERM, EACCES.
        KernelError: anything else the kernel answers.
    """
    header = _NLMSGHDR.pack(
        _NLMSGHDR.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.settimeout(_TIMEOUT_S)
        netlink.bind((0, 0))
        netlink.send(header + body)
        answer = netlink.recv(65536)
    _, answered, *_ = _NLMSGHDR.unpack_from(answer)
    code = -struct.unpack_from("=i", answer, _NLMSGHDR.size)[0] if answered == NLMSG_ERROR else 0
    if code in (errno.EPERM, errno.EACCES):
        raise NotPermitted(operation, subject, code)
    if code:
        raise KernelError(operation, subject, code)
