"""Opens the UDP socket of an overlay: bound, non-blocking, with room for bursts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import IPAddress
from pyflannel.kernel import fou
from pyflannel.kernel.sockopts import (
    IP_MTU_DISCOVER,
    IPV6_MTU_DISCOVER,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
)

BUFFER_BYTES: Final = 8 << 20
"""Asked for in each direction. A reader that is kept away for 5 ms (a dump, a garbage collection,
another process) at 10 Gbit/s finds 6.25 MB of payload; what the kernel's bookkeeping adds is
covered by its doubling the number. The default (212,992 bytes) is three aggregated datagrams, and
its overflow was where nearly all losses of upstream's udp backend came from."""

IP_PMTUDISC_WANT: Final = 1
IP_PMTUDISC_DO: Final = 2
IP_PMTUDISC_PROBE: Final = 3
"""linux/in.h; the values of IPv6 are the same."""

_UDP_GRO: Final = 104
"""linux/udp.h. Not in `socket`."""

_SIOCGIFHWADDR: Final = 0x8927
_ARPHRD_ETHER: Final = 1
_ARPHRD_LOOPBACK: Final = 772
"""linux/sockios.h, linux/if_arp.h."""

_WORD_STEP: Final = -1 if sys.byteorder == "little" else 1
"""How to walk the bytes of a 32-bit word so that they come out in network order."""


def open_udp(
    address: IPAddress,
    port: int,
    *,
    buffer_bytes: int = BUFFER_BYTES,
    mtu_discover: int | None = None,
    beside_fou: bool = False,
) -> socket.socket:
    """A non-blocking UDP socket bound to one address and port.

    Args:
        address: of the external interface.
        port: in host order.
        buffer_bytes: for each direction; what the kernel grants without CAP_NET_ADMIN is less.
        mtu_discover: IP_PMTUDISC_*; with `IP_PMTUDISC_DO` every datagram carries DF, and one that
            is too long is refused with EMSGSIZE; with `IP_PMTUDISC_PROBE` too long means longer
            than the interface's MTU, whatever is known about the path. `None` leaves the system's
            default.
        beside_fou: whether there is a FOU port at this address and port, bound to a device; else it
            would be in the way. What comes in by that device is the FOU port's.

    Raises:
        DeviceUnavailable: the port is in use (by whom, if /proc tells), or the address is not here.
        NotPermitted: a port below 1024 without the right to it.
        KernelError: anything else.
    """
    v4 = address.version == 4
    try:
        sock = socket.socket(
            socket.AF_INET if v4 else socket.AF_INET6,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
    except OSError as error:
        raise KernelError("socket", "udp", error.errno or 0) from error
    try:
        if not v4:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        _enlarge(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, buffer_bytes)
        _enlarge(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, buffer_bytes)
        if mtu_discover is not None:
            if v4:
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mtu_discover)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, mtu_discover)
        with aside(sock) if beside_fou else contextlib.nullcontext():
            sock.bind((str(address), port))
    except OSError as error:
        sock.close()
        raise _refused(address, port, error.errno or 0) from error
    return sock


@contextlib.contextmanager
def aside(sock: socket.socket) -> Iterator[None]:
    """Has a socket be in the way of none that is bound to another device than `lo`.

    The kernel looks for conflicts of an address and port when a socket is bound to them, and not
    when it is bound to a device or to none.

    Raises:
        OSError: EPERM, without CAP_NET_RAW, when the socket is to be bound to no device again.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
    try:
        yield
    finally:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"\0")


def can_step_aside() -> bool:
    """Whether `aside` has the right to what it does; tried with a socket of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trying:
        try:
            with aside(trying):
                pass
        except OSError:
            return False
    return True


def adopt_udp(fd: int, address: IPAddress, port: int, *, mtu_discover: int) -> socket.socket | None:
    """Takes over a socket of `open_udp` from an earlier process; closes it if it does not fit.

    Args:
        fd: the caller's no more.
        address: that it must be bound to.
        port: likewise.
        mtu_discover: as in `open_udp`; another release may have had another.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None
    try:
        fits = sock.type == socket.SOCK_DGRAM and sock.getsockname()[:2] == (str(address), port)
        if fits:
            sock.setblocking(False)  # noqa: FBT003
            # Of a process that was killed; who wants it switches it on.
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_GRO, 0)
            sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, mtu_discover)
    except OSError:
        fits = False
    if not fits:
        sock.close()
        return None
    return sock


def _enlarge(sock: socket.socket, forced: int, plain: int, size: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, plain, size)


def _refused(address: IPAddress, port: int, code: int) -> KernelError:
    where = f"udp port {port} on {address}"
    if code == errno.EADDRINUSE:
        holder = find_holder(address, port) or _find_fou_port(address, port)
        hint = f"{where} is in use" + (f" by {holder}" if holder else "")
        return DeviceUnavailable("bind", where, code, hint)
    if code == errno.EADDRNOTAVAIL:
        return DeviceUnavailable("bind", where, code, f"{address} is not an address of this host")
    if code in (errno.EACCES, errno.EPERM):
        return NotPermitted("bind", where, code, "ports below 1024 need CAP_NET_BIND_SERVICE")
    return KernelError("bind", where, code)


def find_holder(address: IPAddress, port: int) -> str:
    """Who holds a UDP port in this network namespace: `flanneld (pid 4711)`, or "" if unknown.

    Best effort: looking into other users' processes needs root.
    """
    inodes: set[int] = set()
    for table in ("udp", "udp6"):
        # Of the thread, not of the process: they may be in different network namespaces.
        with contextlib.suppress(OSError):
            text = Path(f"/proc/thread-self/net/{table}").read_text("ascii")
            inodes |= socket_inodes(text, address, port)
    links = {f"socket:[{inode}]" for inode in inodes if inode}
    if not links:
        return ""
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _has_open(process, links):
            with contextlib.suppress(OSError):
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _find_fou_port(address: IPAddress, port: int) -> str:
    """In words, if one is in the way: such a port is no process's, and /proc does not list it."""
    with contextlib.suppress(KernelError):
        if any(each.port == port and each.local in (None, address) for each in fou.ports()):
            return f"a FOU port of the kernel's (ip fou show; ip fou del port {port} ...)"
    return ""


def socket_inodes(table: str, address: IPAddress, port: int) -> set[int]:
    """The sockets in a /proc/net/udp or udp6 that are in the way of this address and port.

    A line is `slot: local_address:port remote … inode …`; addresses are hexadecimal, 32 bits at a
    time in host order, ports as usual.
    """
    found: set[int] = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        local, _, local_port = fields[1].partition(":")
        if int(local_port, 16) != port:
            continue
        words = bytes.fromhex(local)
        packed = b"".join(words[i : i + 4][::_WORD_STEP] for i in range(0, len(words), 4))
        if packed == address.packed or not any(packed):
            found.add(int(fields[9]))
    return found


def _has_open(process: Path, links: set[str]) -> bool:
    try:
        return any(str(entry.readlink()) in links for entry in (process / "fd").iterdir())
    except OSError:
        return False


def has_ethernet_header(interface: str) -> bool:
    """Whether an interface's packets have an Ethernet header; an unknown one's are taken to.

    Tunnels of layer 3 (TUN, WireGuard, IP in IP) and PPP have none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            answer = fcntl.ioctl(asking, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
        except OSError:
            return True
    (kind,) = struct.unpack_from("=H", answer, 16)
    return kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)
