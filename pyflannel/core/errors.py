"""Everything that can go wrong, as one tree of exceptions.

Each class carries the exit code with which the commands end when it reaches them (the table is in
`docs/differences.md` and in every `--help`). A message names the operation, the object, the answer
and, where it is known, the way out. Rooms at the edge translate foreign exceptions into these with
`raise … from`; inside there are no exceptions of libraries, and no texts are compared.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Mapping
from typing import ClassVar

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 69
"""`EX_UNAVAILABLE` of sysexits.h: a needed service or device is not available."""
EXIT_DEFECT = 70
"""`EX_SOFTWARE` of sysexits.h: a defect of ours."""
EXIT_NOT_PERMITTED = 77
"""`EX_NOPERM` of sysexits.h: the kernel or etcd refused for lack of rights."""
EXIT_CONFIG = 78
"""`EX_CONFIG` of sysexits.h: the configuration is wrong, and starting again will not help."""


class FlannelError(Exception):
    """Root of all expected failures; `str()` is a sentence for the operator."""

    exit_code: ClassVar[int] = EXIT_DEFECT


class UsageError(FlannelError):
    """The command line itself is wrong: unknown flag, missing or malformed value."""

    exit_code = EXIT_USAGE


class ConfigError(FlannelError):
    """A configuration (network config, option, file) has a wrong value."""

    exit_code = EXIT_CONFIG


class LeaseError(FlannelError):
    """A subnet lease could not be had or kept."""

    exit_code = EXIT_UNAVAILABLE


class SubnetsExhausted(LeaseError):
    """No free subnet is left between SubnetMin and SubnetMax.

    The message starts with upstream's text `out of subnets`, for those who grep for it.
    """

    def __init__(self, taken: int, total: int, where: str, others: str = "") -> None:
        self.taken = taken
        self.total = total
        super().__init__(
            f"out of subnets: {taken} of {total} subnets in {where} are taken{others}; "
            "widen SubnetMin..SubnetMax, or remove leases of nodes that are gone"
        )


class SubnetsOverlap(LeaseError):
    """Every subnet that this node could have is in the way of what the node is connected to."""

    exit_code = EXIT_CONFIG


class PublicIPInUse(LeaseError):
    """Another live node holds a lease under the public IP that this node would publish."""


class NetworkConfigChanged(LeaseError):
    """The store has another valid network config than the one a subnet is waited for under.

    What was derived from the former one (backend, external interface, rules) has to be made anew.
    """


class StoreError(FlannelError):
    """etcd (or another store) answered with an error or not at all.

    Args:
        kind: what tells one kind of failure from another: the cause without the operation that met
            it. The whole message if not given.
    """

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, message: str = "", *, kind: str = "") -> None:
        self.kind = kind or message
        super().__init__(message)


class StoreUnavailable(StoreError):
    """No endpoint gave an answer. Waiting and trying again is right."""

    silent = False
    """Whether one of them was there and said nothing in time."""


class StoreConflict(StoreError):
    """A condition of a transaction did not hold. Read again, then decide."""


class StoreCompacted(StoreError):
    """The asked revision has been compacted; list again and watch from there."""

    def __init__(self, message: str, compact_revision: int) -> None:
        self.compact_revision = compact_revision
        super().__init__(message, kind="compacted")


class StoreLeaseNotFound(StoreError):
    """The etcd lease (not the subnet lease) named in the request does not exist any more."""


class StoreDenied(StoreError):
    """etcd knows us not or does not allow it: wrong user, password, certificate or role."""

    exit_code = EXIT_NOT_PERMITTED


class StoreConfigError(StoreError):
    """The way to etcd is configured wrongly: unreadable certificate, bad endpoint, TLS mismatch."""

    exit_code = EXIT_CONFIG


class KernelError(FlannelError):
    """The kernel refused an operation.

    Args:
        operation: what was tried, in the kernel's words: `route replace`, `TUNSETIFF`.
        subject: on what: `10.5.9.0/24 via 192.0.2.7 dev eth0`.
        errno: positive errno, 0 when there is none.
        hint: the way out, if known.
    """

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, operation: str, subject: str, errno: int, hint: str = "") -> None:
        self.operation = operation
        self.subject = subject
        self.errno = errno
        if not hint and errno in (_errno.EPERM, _errno.EACCES):
            hint = "is CAP_NET_ADMIN missing?"
        self.hint = hint
        name = _errno.errorcode.get(errno, str(errno)) if errno else ""
        text = f"{operation} {subject}".rstrip()
        if errno:
            text += f": {name}, {os.strerror(errno)}"
        if hint:
            text += f" ({hint})"
        super().__init__(text)


class NotPermitted(KernelError):
    """As `KernelError`, when what is missing is a capability or a file permission."""

    exit_code = EXIT_NOT_PERMITTED


class DeviceUnavailable(KernelError):
    """A device, port or file that we cannot do without is missing or taken."""


class InterfaceError(FlannelError):
    """No interface matches what the operator asked for."""

    exit_code = EXIT_CONFIG


class DatapathError(FlannelError):
    """A data path is not available, or died."""

    exit_code = EXIT_UNAVAILABLE


class CommandError(FlannelError):
    """A child process failed, or did not end in time."""

    exit_code = EXIT_UNAVAILABLE


class ApplyError(FlannelError):
    """Some objects could not be brought into the desired state; the others were.

    Args:
        failures: what failed (a peer, a route, a rule), each with its reason.
    """

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, failures: Mapping[str, FlannelError]) -> None:
        self.failures = dict(failures)
        first = next(iter(self.failures.items()), ("", ""))
        more = f" (and {len(self.failures) - 1} more)" if len(self.failures) > 1 else ""
        super().__init__(f"{first[0]}: {first[1]}{more}")
