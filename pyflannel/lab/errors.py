"""What can go wrong in the lab, as part of the tree of `pyflannel.core.errors`."""

from __future__ import annotations

from pyflannel.core.errors import EXIT_NOT_PERMITTED, EXIT_UNAVAILABLE, FlannelError


class LabError(FlannelError):
    """The lab could not do what was requested."""

    exit_code = EXIT_UNAVAILABLE


class LabExists(LabError):
    """A lab of this name is there already; nothing was changed."""


class NoSuchLab(LabError):
    """No lab of this name is there."""


class LabNotPermitted(LabError):
    """We are not root, and this system does not allow us a user namespace."""

    exit_code = EXIT_NOT_PERMITTED


class LabTimeout(LabError):
    """A condition did not become true in time."""
