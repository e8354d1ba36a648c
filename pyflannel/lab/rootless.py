"""The lab without root: a user namespace in which we are root over the lab only.

Making network namespaces takes CAP_SYS_ADMIN. A user without it can make a *user* namespace and has
it there, over all that belongs to that namespace: exactly the lab. `up` starts itself again inside
a new one; the other commands start themselves again inside that of the lab's switch. The rest of
the code sees no difference.

Two limits remain: for the backend udp `/dev/net/tun` must be open to all users, as it is on Debian
(0666), and kernel modules must be loaded already.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from pyflannel.lab.errors import LabNotPermitted
from pyflannel.lab.processes import ProcessRef
from pyflannel.lab.state import BASE_VARIABLE, base_directory

_INSIDE: Final = "PYFLANNEL_LAB_USERNS"
"""Environment variable that tells the command that it was started inside; ends the recursion."""

_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21
"""Numbers of linux/capability.h."""

_KNOBS: Final[Mapping[str, str]] = {
    "/proc/sys/kernel/unprivileged_userns_clone": "1",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "0",
}
"""Switches of distributions (Debian, Ubuntu) and the value that allows user namespaces."""
_LIMIT: Final = Path("/proc/sys/user/max_user_namespaces")


def has_rights() -> bool:
    """Whether this process may make namespaces and configure networks."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            capabilities = int(line.split()[1], 16)
            return bool(capabilities >> _CAP_NET_ADMIN & capabilities >> _CAP_SYS_ADMIN & 1)
    return False


def require_rights() -> None:
    """Does nothing if this process may make a lab.

    Raises:
        LabNotPermitted: otherwise; with what to do.
    """
    if not has_rights():
        raise LabNotPermitted(
            "making network namespaces needs CAP_SYS_ADMIN and CAP_NET_ADMIN: run as root, or as "
            "`pyflannel lab`, which makes a user namespace for it, or under "
            "`unshare --user --map-root-user --net --mount`"
        )


def enter_new(module: str, argv: Sequence[str]) -> NoReturn:
    """Starts `python -m module argv` in the place of this process, inside a new user namespace.

    Raises:
        LabNotPermitted: if this system does not allow one; with the reason.
    """
    trial = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", "--mount", "true"],
        check=False,
        capture_output=True,
        text=True,
    )
    if trial.returncode != 0:
        raise LabNotPermitted(f"not root, and no user namespace: {trial.stderr.strip()}{reason()}")
    command = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    _become([*command, "--", sys.executable, "-m", module, *argv])


def enter_of(holder: ProcessRef, module: str, argv: Sequence[str]) -> NoReturn:
    """As `enter_new`, but inside the user namespace that a lab was made in."""
    # The credentials stay: the mapping has only our own uid, as 0.
    command = ["nsenter", "--target", str(holder.pid), "--user", "--preserve-credentials"]
    _become([*command, "--", sys.executable, "-m", module, *argv])


def is_inside() -> bool:
    """Whether this process was started by `enter_new` or `enter_of`."""
    return _INSIDE in os.environ


def _become(command: Sequence[str]) -> NoReturn:
    environment = {**os.environ, _INSIDE: "1", BASE_VARIABLE: str(base_directory())}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvpe(command[0], list(command), environment)  # noqa: S606 - no shell is wanted


def reason() -> str:
    """Why there is no user namespace for us, in parentheses; empty if unknown."""
    for knob, wanted in _KNOBS.items():
        path = Path(knob)
        if path.exists() and (found := path.read_text(encoding="ascii").strip()) != wanted:
            return f" ({knob} is {found}, not {wanted})"
    if _LIMIT.exists() and _LIMIT.read_text(encoding="ascii").strip() == "0":
        return f" ({_LIMIT} is 0)"
    return ""
