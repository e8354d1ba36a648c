"""Reads and writes kernel settings under /proc/sys, those of this network namespace included."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted

ROOT: Final = Path("/proc/sys")


def sysctl_path(name: str, *, root: Path = ROOT) -> Path:
    """The file behind a name, by the rule of sysctl(8): the first separator decides.

    `net/ipv6/conf/flannel.1/accept_ra` and `net.ipv6.conf.flannel/1.accept_ra` are the same. Prefer
    the first form wherever an interface name is part of it.
    """
    dot, slash = name.find("."), name.find("/")
    if dot >= 0 and (slash < 0 or dot < slash):
        name = name.translate({ord("."): "/", ord("/"): "."})
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"{name!r} is not the name of a kernel setting")
    return root.joinpath(*parts)


def read_sysctl(name: str, *, root: Path = ROOT) -> str:
    """The value, without the newline.

    Raises:
        DeviceUnavailable: there is no such setting (a module or interface is missing).
        NotPermitted: it may not be read.
        KernelError: anything else.
    """
    try:
        return sysctl_path(name, root=root).read_text().strip()
    except OSError as error:
        raise _refused("read", name, error) from error


def write_sysctl(name: str, value: str, *, root: Path = ROOT) -> None:
    """Sets the value; one that is set already is not written, so a read-only /proc/sys will do.

    Raises:
        DeviceUnavailable: there is no such setting, or /proc/sys is mounted read-only.
        NotPermitted: it may not be written.
        KernelError: the kernel refuses the value (EINVAL).
    """
    path = sysctl_path(name, root=root)
    try:
        if path.read_text().strip() == value:
            return
    except OSError:
        pass  # some can only be written; the rest is told by writing
    try:
        # Not write_text(): that would create a file where there is none.
        with path.open("r+") as file:
            file.write(value)
    except OSError as error:
        raise _refused("write", name, error) from error


def try_write_sysctl(name: str, value: str, *, root: Path = ROOT) -> bool:
    """Sets the value if that can be done; whether it could."""
    try:
        write_sysctl(name, value, root=root)
    except KernelError:
        return False
    return True


def _refused(operation: str, name: str, error: OSError) -> KernelError:
    subject, code = f"sysctl {name}", error.errno or 0
    if isinstance(error, PermissionError):
        return NotPermitted(operation, subject, code, "needs root, or CAP_NET_ADMIN for net/")
    if isinstance(error, FileNotFoundError):
        hint = "no such setting: is a kernel module or the interface missing?"
        return DeviceUnavailable(operation, subject, code, hint)
    if code == errno.EROFS:
        return DeviceUnavailable(operation, subject, code, "/proc/sys is mounted read-only")
    return KernelError(operation, subject, code)
