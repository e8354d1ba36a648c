"""Which notifications the kernel hands over: a classic BPF program on the listening socket.

A router's table changes a thousand times a second, a node's ARP table with each pod that talks, and
to wake up for each change costs 30 µs and more. So what is of no use to us is dropped before it is
queued:

* neighbours and FDB entries of links other than the given ones;
* changes of tables other than main;
* changes of routes of routing daemons (a protocol above `static`), unless the route is a default
  route, or it or its gateway lies in one of the given prefixes. (Of a route with several next hops
  the destination alone is looked at.)

All else passes, what is not understood included. The program sees one message: 16 bytes of
`nlmsghdr`, 12 of `rtmsg` or `ndmsg`, attributes; `SKF_AD_NLATTR` finds an attribute. Pure, but for
`attach`.

Source: linux/filter.h, linux/bpf_common.h, `do_one_broadcast` of net/netlink/af_netlink.c.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pyflannel.core.ip import IPNetwork
from pyflannel.kernel import rtnl
from pyflannel.kernel.base import RT_TABLE_MAIN
from pyflannel.kernel.ownership import RTPROT_STATIC
from pyflannel.kernel.routes import RTA_DST, RTA_GATEWAY
from pyflannel.kernel.sockopts import attach_filter, detach_filter

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_HALF: Final = 0x28
_LOAD_BYTE: Final = 0x30
_LOAD_WORD_AT_X: Final = 0x40  # BPF_LD | BPF_W | BPF_IND
_LOAD_NUMBER: Final = 0x00  # BPF_LD | BPF_IMM
_LOAD_X: Final = 0x01  # BPF_LDX | BPF_IMM
_TO_X: Final = 0x07  # BPF_MISC | BPF_TAX
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL: Final = 0x15
_JUMP_ABOVE: Final = 0x25
_RETURN: Final = 0x06
_FIND_ATTRIBUTE: Final = 0x1_0000_0000 - 0x1000 + 12
"""SKF_AD_OFF + SKF_AD_NLATTR: the offset of the attribute of type X behind offset A, or 0."""
_ALL: Final = 0xFFFF_FFFF

_KIND: Final = 4
_FAMILY: Final = 16
_PREFIX_LENGTH: Final = 17
_TABLE: Final = 20
_PROTOCOL: Final = 21
_LINK: Final = 20
"""`ndm_ifindex`."""
_ATTRIBUTES: Final = 28


class Instruction(NamedTuple):
    """One `struct sock_filter`; jumps name labels until the program is put together."""

    code: int
    k: int = 0
    then: str = ""
    otherwise: str = ""


def program(
    near: Collection[IPNetwork] | None, neighbours_of: Collection[int] | None = None
) -> bytes:
    """The instructions, as the kernel takes them.

    Args:
        near: prefixes in which routes of any program count; `None` if all routes do.
        neighbours_of: indexes of the links whose neighbours and FDB entries count; `None` if all
            do.
    """
    # Numbers are loaded in network order, and the header is in host order.
    lines: list[Instruction | str] = [Instruction(_LOAD_HALF, _KIND)]
    if neighbours_of is not None:
        lines += [
            Instruction(_JUMP_EQUAL, socket.htons(rtnl.RTM_NEWNEIGH), "neighbour", ""),
            Instruction(_JUMP_EQUAL, socket.htons(rtnl.RTM_DELNEIGH), "", "no neighbour"),
            "neighbour",
            Instruction(_LOAD_WORD, _LINK),
        ]
        for index in sorted(neighbours_of):
            lines += [
                Instruction(_JUMP_EQUAL, socket.htonl(index), "", f"not {index}"),
                Instruction(_RETURN, _ALL),
                f"not {index}",
            ]
        lines += [Instruction(_RETURN, 0), "no neighbour"]
    if near is None:
        return _assemble([*lines, Instruction(_RETURN, _ALL)])
    lines += [
        Instruction(_JUMP_EQUAL, socket.htons(rtnl.RTM_NEWROUTE), "route", ""),
        Instruction(_JUMP_EQUAL, socket.htons(rtnl.RTM_DELROUTE), "", "pass"),
        "route",
        Instruction(_LOAD_BYTE, _TABLE),
        Instruction(_JUMP_EQUAL, RT_TABLE_MAIN, "", "drop"),
        Instruction(_LOAD_BYTE, _PROTOCOL),
        Instruction(_JUMP_ABOVE, RTPROT_STATIC, "", "pass"),
        Instruction(_LOAD_BYTE, _PREFIX_LENGTH),
        Instruction(_JUMP_EQUAL, 0, "pass", ""),
    ]
    for number, network in enumerate(near):
        lines += _looks(network, f"next {number}")
    lines += ["drop", Instruction(_RETURN, 0), "pass", Instruction(_RETURN, _ALL)]
    return _assemble(lines)


def _looks(network: IPNetwork, after: str) -> list[Instruction | str]:
    """Passes what leads into a prefix, or has its gateway there."""
    family = rtnl.AF_INET if network.version == 4 else rtnl.AF_INET6
    words = struct.unpack(f"!{network.max_prefixlen // 32}I", network.network_address.packed)
    masks = struct.unpack(f"!{network.max_prefixlen // 32}I", network.netmask.packed)
    lines: list[Instruction | str] = [
        Instruction(_LOAD_BYTE, _FAMILY),
        Instruction(_JUMP_EQUAL, family, "", after),
    ]
    for kind in (RTA_DST, RTA_GATEWAY):
        absent = f"{after} without {kind}"
        lines += [
            Instruction(_LOAD_NUMBER, _ATTRIBUTES),
            Instruction(_LOAD_X, kind),
            Instruction(_LOAD_WORD, _FIND_ATTRIBUTE),
            Instruction(_JUMP_EQUAL, 0, absent, ""),
            Instruction(_TO_X),
        ]
        for place, (word, mask) in enumerate(zip(words, masks, strict=True)):
            if mask:
                lines += [
                    Instruction(_LOAD_WORD_AT_X, 4 + 4 * place),
                    Instruction(_AND, mask),
                    Instruction(_JUMP_EQUAL, word, "", absent),
                ]
        # Jumps to it are too far for the eight bits of a conditional one.
        lines += [Instruction(_RETURN, _ALL), absent]
    return [*lines, after]


def _assemble(lines: Sequence[Instruction | str]) -> bytes:
    labels: dict[str, int] = {}
    instructions: list[Instruction] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(instructions)
        else:
            instructions.append(line)
    return b"".join(
        struct.pack(
            "=HBBI",
            line.code,
            labels[line.then] - at - 1 if line.then else 0,
            labels[line.otherwise] - at - 1 if line.otherwise else 0,
            line.k,
        )
        for at, line in enumerate(instructions)
    )


def attach(
    sock: socket.socket,
    near: Collection[IPNetwork] | None,
    neighbours_of: Collection[int] | None = None,
) -> None:
    """Puts the program on a netlink socket, in place of the one before; what is queued stays.

    If the kernel refuses it there is none, and all is told: dear, but not wrong.
    """
    try:
        attach_filter(sock, program(near, neighbours_of))
    except OSError:
        detach_filter(sock)
