"""A route of the kernel's SRv6 (`seg6local`), synchronously: frames come out of their packets.

Source: RFC 8986 §4.9 (End.DX2); include/uapi/linux/seg6_local.h, lwtunnel.h, rtnetlink.h.
"""

from __future__ import annotations

import struct
from ipaddress import IPv6Address
from typing import Final

from pyflannel.kernel.base import Route
from pyflannel.kernel.request import transact
from pyflannel.kernel.rtnl import attribute, attribute_u32, host_network, set_request

RTA_ENCAP_TYPE: Final = 21
RTA_ENCAP: Final = 22
LWTUNNEL_ENCAP_SEG6_LOCAL: Final = 7
SEG6_LOCAL_ACTION: Final = 1
SEG6_LOCAL_OIF: Final = 7
SEG6_LOCAL_ACTION_END_DX2: Final = 4


def put_host_route(address: IPv6Address, via: int, *, frames_to: int | None = None) -> None:
    """Sets the route to one address through a device, in the place of one that is there.

    Args:
        address: its destination.
        via: ifindex of the device.
        frames_to: if given, what arrives for the address is undressed, and the Ethernet frame that
            it carries is sent out of the interface with this index.

    Raises:
        KernelError: EOPNOTSUPP where the kernel lacks seg6local, ENODEV without the device, EACCES
            where IPv6 is switched off on it.
    """
    request = set_request(Route(dst=host_network(address), oif=via))
    if frames_to is not None:
        action = attribute_u32(SEG6_LOCAL_ACTION, SEG6_LOCAL_ACTION_END_DX2)
        action += attribute_u32(SEG6_LOCAL_OIF, frames_to)
        kind = attribute(RTA_ENCAP_TYPE, struct.pack("=H", LWTUNNEL_ENCAP_SEG6_LOCAL))
        request = request._replace(body=request.body + kind + attribute(RTA_ENCAP, action))
    transact(request, "route replace", f"{address}/128")
