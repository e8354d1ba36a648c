"""Policies of IPsec's database (xfrm): those of others, and one used as a bolt.

The kernel asks this database before it sends what a socket has written, and before a socket gets a
datagram, a socket of the kernel's own included (net/ipv4/udp.c, `udp_queue_rcv_one_skb`). What BPF
programs send and take passes it by.

The *bolt* drops what comes for a UDP port: a policy that blocks needs no IPsec, no firewall and no
process. For a socket that has a policy of its own that one counts instead.

Source: linux/xfrm.h; net/xfrm/xfrm_policy.c, `__xfrm_policy_check`; net/xfrm/xfrm_user.c,
`xfrm_compile_policy`.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from pyflannel.core.errors import KernelError
from pyflannel.kernel.request import listen, query, transact
from pyflannel.kernel.rtnl import (
    AF_INET,
    CREATE_FLAGS,
    DELETE_FLAGS,
    DUMP_FLAGS,
    Request,
    attributes_from,
)
from pyflannel.records import dataclass

NETLINK_XFRM: Final = 6
IP_XFRM_POLICY: Final = 17
"""linux/in.h."""
_NEW_POLICY: Final = 0x13
_DELETE_POLICY: Final = 0x14
_GET_POLICY: Final = 0x15
_IN: Final = 0
"""`XFRM_POLICY_IN`; a socket's own policy is listed with another direction."""
_OUT: Final = 1
_TEMPLATES: Final = 5
_MARK: Final = 21
_INTERFACE: Final = 31
"""`enum xfrm_attr_type_t`: what a policy asks for; the marks of packets, and the interface (of kind
xfrm), that it is for."""
_GROUP_OF_POLICIES: Final = 4
"""`XFRMNLGRP_POLICY`."""
_RECEIVE_BYTES: Final = 1 << 16
_ALLOW: Final = 0
_BLOCK: Final = 1
_SELECTOR: Final = struct.Struct("=16s16s2s2s2s2sHBBB3xiI")
"""`struct xfrm_selector`: addresses of destination and source, their ports with masks in network
byte order, family, prefix lengths, protocol, ifindex, user."""
_LIMITS: Final = struct.pack("=12Q", *(2**64 - 1,) * 4, *(0,) * 8)
"""`struct xfrm_lifetime_cfg`, `xfrm_lifetime_cur`: no end by bytes, packets or time; unused yet."""
_POLICY: Final = struct.Struct("=56s96sIIBBBB4x")
"""`struct xfrm_userpolicy_info`: selector, limits, priority, index, direction, action, flags,
share."""
_POLICY_ID: Final = struct.Struct("=56sIB3x")
_PRIORITY: Final = 0x666C616E
"""\"flan\" in ASCII: by this number a bolt is known as ours."""
_WHOLE: Final = b"\xff\xff"
_ADDRESS_BITS: Final = 32


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy for what comes in."""

    index: int
    """By which it is deleted."""
    selector: bytes
    priority: int
    blocks: bool

    @property
    def bolted(self) -> tuple[IPv4Address, int] | None:
        """Address and port, if it is one that `bolt` adds."""
        if not self.blocks or self.priority != _PRIORITY:
            return None
        to, _, port, *_ = _SELECTOR.unpack(self.selector)
        found = IPv4Address(to[:4]), int.from_bytes(port, "big")
        return found if self.selector == _selector(*found) else None


def _selector(address: IPv4Address, port: int) -> bytes:
    to = address.packed.ljust(16, b"\0")
    ports = (port.to_bytes(2, "big"), _WHOLE, bytes(2), bytes(2))
    return _SELECTOR.pack(
        to, bytes(16), *ports, AF_INET, _ADDRESS_BITS, 0, socket.IPPROTO_UDP, 0, 0
    )


def _packed(address: IPv4Address, port: int, action: int) -> bytes:
    """For datagrams that come in for an address and port."""
    return _POLICY.pack(_selector(address, port), _LIMITS, _PRIORITY, 0, _IN, action, 0, 0)


def _unpack(body: bytes) -> tuple[int, Policy]:
    """Direction and policy."""
    selector, _, priority, index, direction, action, _, _ = _POLICY.unpack_from(body)
    return direction, Policy(index, selector, priority, action == _BLOCK)


def is_loaded() -> bool:
    """Whether the kernel listens to requests for policies; a request loads the module for that.

    It listens with a socket of its own, which is listed with port 0 (net/netlink/af_netlink.c,
    `netlink_native_seq_show`: socket, protocol, port, …).
    """
    lines = Path("/proc/thread-self/net/netlink").read_text("ascii").splitlines()[1:]
    return any(line.split()[1:3] == [str(NETLINK_XFRM), "0"] for line in lines)


def policies() -> list[Policy]:
    """All for what comes in, but for those of single sockets; none where the kernel has no xfrm.

    Raises:
        KernelError: what the kernel answers.
    """
    return [policy for direction, policy in map(_unpack, _listed()) if direction == _IN]


def _listed() -> list[bytes]:
    asking = Request(_GET_POLICY, DUMP_FLAGS, bytes(_POLICY_ID.size))
    try:
        return query(asking, "list", "xfrm policies", protocol=NETLINK_XFRM)
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return []
        raise KernelError("list", "xfrm policies", error.errno or 0) from error


def protected(address: IPv4Address, port: int) -> list[IPv4Network]:
    """The networks to and from which policies protect, or block, a UDP port's datagrams.

    Those of bolts are not among them. Where nothing has loaded xfrm there are none.

    Raises:
        KernelError: what the kernel answers.
    """
    if not is_loaded():
        return []
    return [found for body in _listed() if (found := far_side(body, address, port)) is not None]


def far_side(body: bytes, address: IPv4Address, port: int) -> IPv4Network | None:
    """The other side of a listed policy, if datagrams of an address and port are what it is for.

    A policy of IPv4 that asks for nothing lets everything pass. One for packets with a mark, or of
    an interface of IPsec's own, is for none of a UDP socket's.
    """
    selector, _, _, _, direction, action, _, _ = _POLICY.unpack_from(body)
    to, source, *ports, family, to_bits, source_bits, protocol, _, _ = _SELECTOR.unpack(selector)
    if family != AF_INET or protocol not in (0, socket.IPPROTO_UDP):
        return None
    fits = _fits(port, *ports[:2])
    if direction == _IN:  # a peer's port may be another, behind a NAT
        near, near_bits, far, far_bits = to, to_bits, source, source_bits
    elif direction == _OUT:
        near, near_bits, far, far_bits = source, source_bits, to, to_bits
        fits = fits and _fits(port, *ports[2:])
    else:
        return None
    other = int(address) ^ int.from_bytes(near[:4], "big")
    if not fits or other >> (_ADDRESS_BITS - near_bits):
        return None
    attributes = attributes_from(body, _POLICY.size)
    harmless = action == _ALLOW and _TEMPLATES not in attributes
    elsewhere = any(attributes.get(_INTERFACE, b"")) or any(attributes.get(_MARK, b"")[:4])
    if harmless or elsewhere or _unpack(body)[1].bolted:
        return None
    return IPv4Network((far[:4], far_bits), strict=False)


def _fits(port: int, wanted: bytes, mask: bytes) -> bool:
    """Whether a port is one of a selector's."""
    bits = int.from_bytes(mask, "big")
    return port & bits == int.from_bytes(wanted, "big") & bits


def open_events() -> socket.socket:
    """A non-blocking socket that becomes readable when policies change in this namespace.

    Raises:
        KernelError: there is no xfrm, or CAP_NET_ADMIN is missing.
    """
    return listen(NETLINK_XFRM, _GROUP_OF_POLICIES, "xfrm policies")


def drain(events: socket.socket) -> None:
    """Reads all that `open_events` has to say; what is lost was a change as well."""
    while True:
        try:
            events.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                return


def bolt(address: IPv4Address, port: int) -> None:
    """Has datagrams for an address and port dropped, whichever socket is bound there.

    Raises:
        NotPermitted: CAP_NET_ADMIN is missing.
        KernelError: EEXIST if there is a policy for just these; EPROTONOSUPPORT without xfrm.
    """
    request = Request(_NEW_POLICY, CREATE_FLAGS, _packed(address, port, _BLOCK))
    _change(request, "add", f"xfrm policy for {address} udp port {port}")


def delete(policy: Policy) -> None:
    """Deletes a policy; one that is not there counts as deleted.

    Raises:
        KernelError: anything else.
    """
    body = _POLICY_ID.pack(policy.selector, policy.index, _IN)
    try:
        _change(Request(_DELETE_POLICY, DELETE_FLAGS, body), "delete", "xfrm policy")
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise


def exempt(sock: socket.socket, address: IPv4Address, port: int) -> None:
    """Has a socket get datagrams for an address and port, whatever the policies are.

    Raises:
        KernelError: EPERM without CAP_NET_ADMIN, ENOPROTOOPT without xfrm.
    """
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_XFRM_POLICY, _packed(address, port, _ALLOW))
    except OSError as error:
        raise KernelError("set", "xfrm policy of a socket", error.errno or 0) from error


def submit(sock: socket.socket) -> None:
    """Takes an exemption back, in both directions; nothing is left of it if there is none.

    Raises:
        KernelError: EPERM without CAP_NET_ADMIN, ENOPROTOOPT without xfrm.
    """
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_XFRM_POLICY, None, 0)
    except OSError as error:
        raise KernelError("take back", "xfrm policy of a socket", error.errno or 0) from error


def _change(request: Request, operation: str, subject: str) -> None:
    try:
        transact(request, operation, subject, protocol=NETLINK_XFRM)
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0) from error
