"""Tests in the guests of `make kernels`: other kernels than this machine's, with all their modules.

A test is run there, as well as here, if it is marked:

    pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

A test that needs a kind of device which many machines do not have says so:

    def test_a_vlan_is_followed():
        need_devices("vlan", "bond")

Without it the test is skipped here; in a guest, where there is everything, that is a failure.
"""

from __future__ import annotations

import functools
import os
import subprocess
from typing import Final

import pytest

from pyflannel.kernel import fou

GUEST: Final = os.environ.get("PYFLANNEL_GUEST", "")
"""The series of the guest's kernel (`6.1`); empty outside of guests."""

only_in_guests: Final = pytest.mark.skipif(
    not GUEST, reason="only in the guests of `make kernels`, whose time is a count of instructions"
)


@functools.cache
def has_device(kind: str) -> bool:
    """Whether the kernel has a kind of device (`ip link add … type KIND`).

    Asked in a namespace of its own. A kind that is there and wants more than its name gives another
    error than one that is not.
    """
    done = subprocess.run(
        ["unshare", "--net", "ip", "link", "add", "probe0", "type", kind],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    refusals = ("Unknown device type", "Operation not supported", "Operation not permitted")
    return done.returncode == 0 or not any(words in done.stderr for words in refusals)


def need_devices(*kinds: str) -> None:
    """Skips the test where the kernel has no such devices; in a guest that is a failure."""
    missing = [kind for kind in kinds if not has_device(kind)]
    if not missing:
        return
    reason = f"this kernel has no devices of kind {', '.join(missing)}"
    if GUEST:
        pytest.fail(reason)
    pytest.skip(f"{reason}; `make kernels` runs it where there are")


@functools.cache
def has_fou() -> bool:
    """Whether the kernel has FOU ports. Nobody loads their module by itself; in a guest we do."""
    if GUEST:
        subprocess.run(["modprobe", "-q", "fou"], timeout=30, check=False)
    return fou.is_there()


def need_fou() -> None:
    """Skips the test where the kernel has no FOU ports; in a guest that is a failure."""
    if has_fou():
        return
    if GUEST:
        pytest.fail("this kernel has no FOU")
    pytest.skip("this kernel has no FOU; `make kernels` runs it where there is")
