"""Giving up rights for good, as far as there are any."""

from __future__ import annotations

import ctypes
import os
from typing import Final

NOBODY: Final = 65534
"""User and group without files of their own, on every distribution; the kernel's overflow uid."""
_PR_SET_NO_NEW_PRIVS: Final = 38
"""linux/prctl.h"""


def drop() -> str:
    """Becomes user and group nobody, if this process is root; no program started gains rights.

    From then on files are opened as nobody: what is needed must be imported and read before. With
    the user id go all capabilities (capabilities(7), "Effect of user ID changes").

    Returns:
        Which rights of root it keeps, and why, for people; empty if none.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.geteuid() != 0:
        return ""
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError as error:
        # A user namespace that has no such user, or a sandbox without CAP_SETUID.
        return f"it cannot become the user nobody: {error.strerror}"
    return ""
