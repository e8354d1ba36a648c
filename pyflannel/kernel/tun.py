"""Opens TUN devices: layer-3 interfaces whose other end is a file descriptor.

A TUN lives as long as a descriptor (a *queue*) is attached to it, unless it was made persistent.
Opening a name that exists attaches to it, if it is a TUN and has no queue yet; that is how a device
which outlived a restart is taken over. Failures are worded for the operator who must
provide it: the kernel module, the device node, the capability.

Source: linux/if_tun.h, Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted

TUN_PATH: Final = "/dev/net/tun"

IFF_TUN: Final = 0x0001
IFF_MULTI_QUEUE: Final = 0x0100
IFF_NO_PI: Final = 0x1000
"""No 4 bytes of protocol information before each packet."""
IFF_VNET_HDR: Final = 0x4000
"""A virtio-net header before each packet, which is what offloads are described in."""

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
"""_IOW('T', 202..208, int) and _IOR('T', 210, unsigned int); 'T' is 0x54. The same on x86 and ARM
(asm-generic/ioctl.h)."""

_IFREQ: Final = struct.Struct("16sH22x")
"""struct ifreq: name and flags, 40 bytes on 64-bit machines."""
_NAME_LIMIT: Final = 15
"""IFNAMSIZ less the terminating zero."""


class TunDevice:
    """An open TUN. Owns its descriptors until `close`."""

    __slots__ = ("_fds", "flags", "name")

    def __init__(self, name: str, fds: tuple[int, ...], flags: int) -> None:
        self.name = name
        """As the kernel named it; for a template this is where the number is."""
        self.flags = flags
        """IFF_* that the kernel granted, as TUNGETIFF tells them."""
        self._fds = fds

    @property
    def fd(self) -> int:
        """The first queue."""
        return self._fds[0]

    @property
    def fds(self) -> tuple[int, ...]:
        """One non-blocking, close-on-exec descriptor a queue; empty once closed."""
        return self._fds

    @property
    def vnet_hdr(self) -> bool:
        """Whether each packet is preceded by a virtio-net header (10 bytes)."""
        return bool(self.flags & IFF_VNET_HDR)

    @property
    def multi_queue(self) -> bool:
        """Whether further queues can be attached."""
        return bool(self.flags & IFF_MULTI_QUEUE)

    def set_persistent(self, persistent: bool) -> None:  # noqa: FBT001  the one thing it takes
        """Whether the device stays when its last descriptor is closed.

        Raises:
            KernelError: refused.
        """
        try:
            fcntl.ioctl(self.fd, _TUNSETPERSIST, int(persistent))
        except OSError as error:
            raise _refused("TUNSETPERSIST", self.name, error) from error

    def close(self) -> None:
        """Closes all queues; unless persistent, the device is gone then. May be called twice."""
        fds, self._fds = self._fds, ()
        for fd in fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def open_tun(
    name: str,
    *,
    vnet_hdr: bool = False,
    multi_queue: bool = False,
    queues: int = 1,
    path: str = TUN_PATH,
) -> TunDevice:
    """Makes a TUN device, or takes over one that no process has open.

    Args:
        name: exactly this one, or with `%d` in it the first one that is free.
        vnet_hdr: ask for virtio-net headers.
        multi_queue: make a device that can have several queues. Unlike a plain one it does not keep
            a second process from attaching to it.
        queues: how many descriptors to open; more than one needs `multi_queue`.
        path: the clone device.

    Raises:
        DeviceUnavailable: there is no TUN driver or device node, or the name is taken.
        NotPermitted: CAP_NET_ADMIN is missing, or the device node is out of bounds.
        KernelError: anything else.
        ValueError: the name is no interface name, or several queues without `multi_queue`.
    """
    if not 0 < len(name.encode()) <= _NAME_LIMIT or "/" in name:
        raise ValueError(f"{name!r} is not an interface name")
    if queues < 1 or (queues > 1 and not multi_queue):
        raise ValueError(f"{queues} queues, multi_queue={multi_queue}")
    flags = IFF_TUN | IFF_NO_PI
    if vnet_hdr:
        flags |= IFF_VNET_HDR
    if multi_queue:
        flags |= IFF_MULTI_QUEUE
    fds: list[int] = []
    try:
        for _ in range(queues):
            fds.append(_open(path))
            # The first queue of a template decides the name that the others attach to.
            name = _attach(fds[-1], name, flags)
        granted = _granted(fds[0], name)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    return TunDevice(name, tuple(fds), granted)


def adopt_tun(fd: int, name: str, *, vnet_hdr: bool = False) -> TunDevice | None:
    """Takes over a descriptor that an earlier process opened; closes it if it does not fit.

    Args:
        fd: the caller's no more.
        name: that the device must have.
        vnet_hdr: as it would be opened with.

    Returns:
        `None` if it is no TUN (any more), another one, or has other packets in it.
    """
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, _IFREQ.pack(b"", 0))
    except OSError:
        answer = b""
    found, flags = _IFREQ.unpack(answer) if answer else (b"", 0)
    wanted = IFF_TUN | (IFF_VNET_HDR if vnet_hdr else 0)
    if found.rstrip(b"\0") != name.encode() or flags & (IFF_TUN | IFF_VNET_HDR) != wanted:
        os.close(fd)
        return None
    os.set_blocking(fd, False)
    return TunDevice(name, (fd,), flags)


def set_offload(fd: int, flags: int) -> None:
    """Says which kinds of unfinished packets (TUN_F_*) may come out of the TUN.

    Raises:
        KernelError: EINVAL if the kernel does not know one of them; then try with fewer.
    """
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, flags)
    except OSError as error:
        raise KernelError("TUNSETOFFLOAD", f"{flags:#x}", error.errno or 0) from error


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        code = error.errno or 0
        if code == errno.ENOENT:
            hint = "no device node; try: modprobe tun, or mknod /dev/net/tun c 10 200"
            raise DeviceUnavailable("open", path, code, hint) from error
        if code in (errno.ENODEV, errno.ENXIO):
            raise DeviceUnavailable("open", path, code, "no driver; try: modprobe tun") from error
        if code in (errno.EPERM, errno.EACCES):
            hint = "needs CAP_NET_ADMIN, and read and write access to the device node"
            raise NotPermitted("open", path, code, hint) from error
        raise KernelError("open", path, code) from error


def _attach(fd: int, name: str, flags: int) -> str:
    try:
        answer = fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
    except OSError as error:
        raise _refused("TUNSETIFF", name, error) from error
    return str(_IFREQ.unpack(answer)[0].rstrip(b"\0").decode())


def _granted(fd: int, name: str) -> int:
    try:
        answer = fcntl.ioctl(fd, _TUNGETIFF, _IFREQ.pack(b"", 0))
    except OSError as error:
        raise _refused("TUNGETIFF", name, error) from error
    return int(_IFREQ.unpack(answer)[1])


def _refused(operation: str, name: str, error: OSError) -> KernelError:
    code = error.errno or 0
    if code in (errno.EPERM, errno.EACCES):
        return NotPermitted(operation, name, code, "needs CAP_NET_ADMIN")
    if code == errno.EBUSY:
        holder = find_holder(name) or "another process, another flannel daemon perhaps,"
        hint = f"{holder} has it open"
        return DeviceUnavailable(operation, name, code, hint)
    if code == errno.EINVAL and operation == "TUNSETIFF":
        hint = f"an interface of this name exists and is another kind of device: ip link del {name}"
        return DeviceUnavailable(operation, name, code, hint)
    return KernelError(operation, name, code)


def find_holder(name: str) -> str:
    """Who has a TUN device of this network namespace open: `pyflanneld (pid 4711)`; "" if unknown.

    Best effort: looking into other users' processes needs root. Source: Linux drivers/net/tun.c,
    `tun_chr_show_fdinfo`.
    """
    wanted = f"iff:\t{name}"
    with contextlib.suppress(OSError):
        ours = Path("/proc/thread-self/ns/net").stat().st_ino
        for process in Path("/proc").iterdir():
            if process.name.isdecimal() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if (process / "ns/net").stat().st_ino == ours and _has_open(process, wanted):
                        return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return ""


def _has_open(process: Path, wanted: str) -> bool:
    return any(wanted in info.read_text().split("\n") for info in (process / "fdinfo").iterdir())
