"""Kernel settings, on a directory that stands for /proc/sys."""

import errno
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.kernel.sysctl import (
    read_sysctl,
    sysctl_path,
    try_write_sysctl,
    write_sysctl,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, value in (
        ("net/ipv4/ip_forward", "0\n"),
        ("net/ipv6/conf/flannel.1/accept_ra", "1\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(value)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
        ("net/ipv6/conf/flannel.1/accept_ra", "net/ipv6/conf/flannel.1/accept_ra"),
        ("net.ipv6.conf.flannel/1.accept_ra", "net/ipv6/conf/flannel.1/accept_ra"),
        ("kernel", "kernel"),
    ],
)
def test_the_first_separator_decides(name: str, file: str) -> None:
    """As in sysctl(8), so that names of interfaces may have dots."""
    assert sysctl_path(name) == Path("/proc/sys") / file


@pytest.mark.parametrize("name", ["", "net/../../etc/passwd", "/etc/passwd", "net..ipv4", "a//b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    """Nothing outside /proc/sys can be named."""
    with pytest.raises(ValueError, match="not the name"):
        sysctl_path(name)


def test_a_setting_is_read_and_written(root: Path) -> None:
    """Without the newline."""
    assert read_sysctl("net.ipv4.ip_forward", root=root) == "0"
    write_sysctl("net.ipv4.ip_forward", "1", root=root)
    assert read_sysctl("net/ipv4/ip_forward", root=root) == "1"


def test_a_missing_setting_is_unavailable_and_not_made(root: Path) -> None:
    """The hint speaks of a module or interface."""
    name = "net/bridge/bridge-nf-call-iptables"
    for attempt in (
        lambda: read_sysctl(name, root=root),
        lambda: write_sysctl(name, "1", root=root),
    ):
        with pytest.raises(DeviceUnavailable, match="module") as refusal:
            attempt()
        assert refusal.value.errno == errno.ENOENT
    (root / "net/bridge").mkdir()
    assert try_write_sysctl(name, "1", root=root) is False
    assert not (root / name).exists()


def test_trying_tells_whether_it_worked(root: Path) -> None:
    """For settings that are nice to have."""
    assert try_write_sysctl("net/ipv6/conf/flannel.1/accept_ra", "0", root=root) is True
    assert read_sysctl("net/ipv6/conf/flannel.1/accept_ra", root=root) == "0"


def test_what_is_set_already_is_not_written(root: Path) -> None:
    """A read-only /proc/sys is no problem then."""
    path = root / "net/ipv4/ip_forward"
    before = path.stat().st_mtime_ns
    write_sysctl("net/ipv4/ip_forward", "0", root=root)
    assert path.stat().st_mtime_ns == before
