"""A BPF program as a filter of tc (`cls_bpf`, direct action), synchronously.

Filters hang on a qdisc that queues nothing: `clsact`, one for each device, which all programs
share; or `ingress`, which has the receiving side alone. There they are asked in the order of their
*preference*, the smallest first, until one answers with something else than TC_ACT_UNSPEC. Among
those with one preference (all of one kind and protocol) each has its *handle*.

Source: net/sched/sch_ingress.c, cls_api.c, cls_bpf.c; include/uapi/linux/pkt_sched.h, pkt_cls.h,
rtnetlink.h.
"""

from __future__ import annotations

import enum
import errno
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.kernel.request import query, transact
from pyflannel.kernel.rtnl import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    Request,
    attribute,
    attribute_u32,
    nested_attributes,
)
from pyflannel.records import dataclass

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
RTM_GETQDISC: Final = 38
RTM_NEWTFILTER: Final = 44
RTM_DELTFILTER: Final = 45
RTM_GETTFILTER: Final = 46
TC_H_CLSACT: Final = 0xFFFFFFF1
_CLSACT_HANDLE: Final = 0xFFFF0000
_ROOT: Final = 0xFFFFFFFF
"""`TC_H_ROOT`."""
TCA_KIND: Final = 1
TCA_OPTIONS: Final = 2
TCA_BPF_FD: Final = 6
TCA_BPF_NAME: Final = 7
TCA_BPF_FLAGS: Final = 8
TCA_BPF_ID: Final = 11
TCA_BPF_FLAG_ACT_DIRECT: Final = 1
_ETH_P_ALL: Final = 3
_TCMSG: Final = struct.Struct("=BxxxiIII")
"""`struct tcmsg`: family, ifindex, handle, parent, info."""


class Side(enum.IntEnum):
    """Which way packets pass the device; the values are the parents of its filters."""

    INGRESS = 0xFFFFFFF2
    EGRESS = 0xFFFFFFF3


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter of a device."""

    kind: str
    """`bpf`, or any other."""
    preference: int
    handle: int
    name: str = ""
    """Of a BPF filter; its maker chooses it."""
    program: int = 0
    """The BPF program's id."""


def add_clsact(ifindex: int) -> bool:
    """Gives a device the qdisc for filters; whether it had none.

    Raises:
        KernelError: ENODEV without the device, ENOENT without sch_ingress.
    """
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _CLSACT_HANDLE, TC_H_CLSACT, 0)
    body += attribute(TCA_KIND, b"clsact\0")
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
    try:
        transact(Request(RTM_NEWQDISC, flags, body), "qdisc add", f"clsact to interface {ifindex}")
    except KernelError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def hooks() -> dict[int, str]:
    """Kinds (`clsact` or `ingress`) by ifindex, of all devices here that have such a qdisc.

    Raises:
        KernelError: the kernel does not say.
    """
    return {ifindex: kind for ifindex, handle, _, kind in _qdiscs() if handle == _CLSACT_HANDLE}


def qdiscs_of(ifindex: int) -> tuple[str, str]:
    """Kinds of the root qdisc that somebody has given a device, and of the one for filters.

    Empty if it has none. The root qdisc that a device has of itself has no handle, and is none
    (net/sched/sch_generic.c, `attach_one_default_qdisc`).

    Raises:
        KernelError: the kernel does not say.
    """
    root = hook = ""
    for at, handle, parent, kind in _qdiscs():
        if at == ifindex and handle == _CLSACT_HANDLE:
            hook = kind
        elif (at, parent) == (ifindex, _ROOT) and handle:
            root = kind
    return root, hook


def _qdiscs() -> Iterator[tuple[int, int, int, str]]:
    """Ifindex, handle, parent and kind of each."""
    body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    request = Request(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, body)
    try:
        answers = query(request, "qdisc list", "all interfaces")
    except KernelError as error:
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    for answer in answers:
        _, ifindex, handle, parent, _ = _TCMSG.unpack_from(answer)
        yield ifindex, handle, parent, _text(nested_attributes(answer[_TCMSG.size :]), TCA_KIND)


def delete_clsact(ifindex: int) -> None:
    """Takes the qdisc away with all filters, also those of others; one that is not there is gone.

    Raises:
        KernelError: anything else.
    """
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, _CLSACT_HANDLE, TC_H_CLSACT, 0)
    subject = f"clsact of interface {ifindex}"
    _delete(Request(RTM_DELQDISC, NLM_F_REQUEST | NLM_F_ACK, body), "qdisc delete", subject)


def filters(ifindex: int, side: Side) -> list[Filter]:
    """All filters of a side of a device, those with a handle; none if it has no qdisc for them.

    Raises:
        KernelError: the kernel does not say.
    """
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, side, 0)
    request = Request(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, body)
    try:
        answers = query(request, "filter list", f"interface {ifindex}")
    except KernelError as error:
        # A kernel without packet classifiers; a qdisc without that side.
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return []
        raise
    return [found for found in map(_decode, answers) if found.handle]


def put_filter(ifindex: int, side: Side, wanted: Filter, program: int) -> None:
    """Has a program asked for a device's packets, in the place of the filter that is there.

    Args:
        ifindex: the device, which has the qdisc.
        side: of the device.
        wanted: preference, handle and name; the rest does not matter.
        program: its descriptor; the filter keeps it loaded.

    Raises:
        KernelError: EINVAL where the preference is another kind's or protocol's, or without a
            qdisc; ENOENT without cls_bpf; EOPNOTSUPP where the filters are shared with other
            devices. Not where the qdisc is `ingress`: then the program is asked at that side,
            whichever one was given.
    """
    options = attribute_u32(TCA_BPF_FD, program)
    options += attribute(TCA_BPF_NAME, wanted.name.encode() + b"\0")
    options += attribute_u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
    body = _key(ifindex, side, wanted)
    body += attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS, options)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE
    subject = f"{wanted.name} to interface {ifindex}"
    transact(Request(RTM_NEWTFILTER, flags, body), "filter add", subject)


def delete_filter(ifindex: int, side: Side, wanted: Filter) -> None:
    """Takes one BPF filter away; one that is not there is gone.

    Raises:
        KernelError: anything else.
    """
    body = _key(ifindex, side, wanted) + attribute(TCA_KIND, b"bpf\0")
    subject = f"{wanted.name} of interface {ifindex}"
    _delete(Request(RTM_DELTFILTER, NLM_F_REQUEST | NLM_F_ACK, body), "filter delete", subject)


def _key(ifindex: int, side: Side, wanted: Filter) -> bytes:
    info = wanted.preference << 16 | socket.htons(_ETH_P_ALL)
    return _TCMSG.pack(socket.AF_UNSPEC, ifindex, wanted.handle, side, info)


def _delete(request: Request, operation: str, subject: str) -> None:
    try:
        transact(request, operation, subject)
    except KernelError as error:
        # EINVAL: the device has no qdisc, or the qdisc no filter of this preference.
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise


def _decode(body: bytes) -> Filter:
    _, _, handle, _, info = _TCMSG.unpack_from(body)
    found = nested_attributes(body[_TCMSG.size :])
    kind = _text(found, TCA_KIND)
    if kind != "bpf":
        return Filter(kind, info >> 16, handle)
    options = nested_attributes(found.get(TCA_OPTIONS, b""))
    program = int.from_bytes(options.get(TCA_BPF_ID, b""), sys.byteorder)
    return Filter(kind, info >> 16, handle, _text(options, TCA_BPF_NAME), program)


def _text(attributes: Mapping[int, bytes], which: int) -> str:
    return attributes.get(which, b"").rstrip(b"\0").decode(errors="replace")
