"""A route of the kernel's SRv6 (`seg6local`), synchronously: frames come out of their packets.

Source: RFC 8986 §4.9 (End.DX2); include/uapi/linux/seg6_local.h, lwtunnel.h, rtnetlink.h.
"""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv6Address
from typing import Final

from pyflannel.kernel.request import NLM_F_CREATE, NLM_F_REPLACE, attribute, request

RTM_NEWROUTE: Final = 24
RT_TABLE_MAIN: Final = 254
RTPROT_BOOT: Final = 3
RT_SCOPE_UNIVERSE: Final = 0
RTN_UNICAST: Final = 1
RTA_DST: Final = 1
RTA_OIF: Final = 4
RTA_ENCAP_TYPE: Final = 21
RTA_ENCAP: Final = 22
LWTUNNEL_ENCAP_SEG6_LOCAL: Final = 7
SEG6_LOCAL_ACTION: Final = 1
SEG6_LOCAL_OIF: Final = 7
SEG6_LOCAL_ACTION_END_DX2: Final = 4
_RTMSG: Final = struct.Struct("=8BI")
_ALL_BITS: Final = 128


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
    header = _RTMSG.pack(
        socket.AF_INET6,
        _ALL_BITS,
        0,
        0,
        RT_TABLE_MAIN,
        RTPROT_BOOT,
        RT_SCOPE_UNIVERSE,
        RTN_UNICAST,
        0,
    )
    body = header + attribute(RTA_DST, address.packed) + attribute(RTA_OIF, struct.pack("=I", via))
    if frames_to is not None:
        action = attribute(SEG6_LOCAL_ACTION, struct.pack("=I", SEG6_LOCAL_ACTION_END_DX2))
        action += attribute(SEG6_LOCAL_OIF, struct.pack("=I", frames_to))
        body += attribute(RTA_ENCAP_TYPE, struct.pack("=H", LWTUNNEL_ENCAP_SEG6_LOCAL))
        body += attribute(RTA_ENCAP, action)
    request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, "route replace", f"{address}/128")
