"""Generic netlink: families of commands that parts of the kernel register by name.

A message has a header of its own behind netlink's (`genlmsghdr`: command, version); what follows
are attributes. The number of a family is the netlink type of its messages; it is given when a
module is loaded, so it is asked for each time.

Source: linux/genetlink.h; Documentation/userspace-api/netlink/intro.rst.
"""

from __future__ import annotations

import errno
import struct
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.kernel.request import query
from pyflannel.kernel.rtnl import NLM_F_ACK, NLM_F_REQUEST, Request, attribute, attributes_from

NETLINK_GENERIC: Final = 16
HEADER: Final = struct.Struct("=BBH")
"""Command, version, nothing."""
_CONTROL: Final = 0x10
_GET_FAMILY: Final = 3
_FAMILY_ID: Final = 1
_FAMILY_NAME: Final = 2
_U16: Final = struct.Struct("=H")


def request(family: int, command: int, flags: int, attributes: bytes = b"") -> Request:
    """A message to a family, in its first version."""
    return Request(family, NLM_F_REQUEST | flags, HEADER.pack(command, 1, 0) + attributes)


def family_number(name: str) -> int:
    """The number of a family.

    Raises:
        DeviceUnavailable: no such family: the kernel lacks it, or its module is not loaded.
        KernelError: anything else.
    """
    asking = request(
        _CONTROL, _GET_FAMILY, NLM_F_ACK, attribute(_FAMILY_NAME, name.encode() + b"\0")
    )
    try:
        (body,) = query(asking, "family get", name, protocol=NETLINK_GENERIC)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        hint = f"this kernel has none, or the module is not loaded; try: modprobe {name}"
        raise DeviceUnavailable("find", f"netlink family {name}", error.errno, hint) from error
    (number,) = _U16.unpack(attributes_from(body, HEADER.size)[_FAMILY_ID])
    return int(number)
