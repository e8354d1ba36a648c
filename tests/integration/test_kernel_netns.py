"""Going from one network namespace into another."""

import os
import subprocess
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, NotPermitted
from pyflannel.kernel import netns
from tests.support.netns import in_new_netns

pytestmark = pytest.mark.root
NOBODY = 65534


def test_a_new_namespace_is_another_one() -> None:
    """With a loopback and nothing else; the parent stays where it was."""
    here = netns.current()

    def body() -> tuple[int, int]:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
        return netns.current(), len(lines) - 2

    there, links = in_new_netns(body)
    assert there != here
    assert links == 1
    assert netns.current() == here


def test_a_namespace_can_be_entered_by_process_path_and_name() -> None:
    """All three name the same one."""
    name = f"pyflannel-test-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        path = f"/run/netns/{name}"
        inode = Path(path).stat().st_ino

        def body() -> list[int]:
            own = netns.current()
            seen = []
            for target in (path, name):
                netns.enter(target)
                seen.append(netns.current())
            netns.enter(os.getppid())
            assert netns.current() not in (own, inode)
            return seen

        assert in_new_netns(body) == [inode, inode]
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_namespace_that_is_not_there_is_unavailable() -> None:
    """By name and by process."""
    for target in ("no-such-namespace", "/nonexistent/net", 2**22 + 1):
        with pytest.raises(DeviceUnavailable, match="no such namespace"):
            netns.enter(target)


def test_entering_needs_a_capability() -> None:
    """Which one is said."""

    def body() -> None:
        os.setgroups([])
        os.setuid(NOBODY)
        with pytest.raises(NotPermitted, match="CAP_SYS_ADMIN"):
            netns.enter_new()

    in_new_netns(body)


def test_what_goes_wrong_in_a_namespace_is_seen_outside() -> None:
    """The helper of these tests: exceptions, lost warnings, and deaths."""

    def fails() -> None:
        raise ValueError("as it should")

    with pytest.raises(ValueError, match="as it should") as failure:
        in_new_netns(fails)
    assert "in the namespace" in failure.value.__notes__[0]

    def dies() -> None:
        os._exit(3)

    with pytest.raises(RuntimeError, match="died"):
        in_new_netns(dies)

    def leaks() -> None:
        import socket

        socket.socket()

    with pytest.raises(AssertionError, match="unclosed"):
        in_new_netns(leaks)
