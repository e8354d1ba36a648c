"""What is read of docker: its unit with drop-ins, the leased subnet, bridges."""

from __future__ import annotations

import os
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from pyflannel.docker import facts
from pyflannel.docker.model import AGENT, DROP_IN
from pyflannel.kernel.base import Address, Set
from pyflannel.testing.fakenetlink import FakeNetlink

UNIT = "[Service]\nExecStart=/usr/bin/dockerd -H fd://\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A machine's tree with docker's unit."""
    put(tmp_path, "usr/lib/systemd/system/docker.service", UNIT)
    return tmp_path


def put(tree: Path, name: str, text: str) -> None:
    path = tree / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def drop_in(tree: Path, name: str, command: str, directory: str = "etc/systemd/system") -> None:
    text = f"[Service]\nExecStart=\nExecStart={command}\n"
    put(tree, f"{directory}/docker.service.d/{name}", text)


def command_line(tree: Path, *, without_ours: bool = False) -> str:
    unit = facts.read_unit(tree, without_ours=without_ours)
    assert unit is not None
    return unit.command_line


def test_without_a_unit_there_is_none(tmp_path: Path) -> None:
    assert facts.read_unit(tmp_path) is None
    assert facts.is_enabled(tmp_path, "docker.service") is None


def test_drop_ins_count_by_name_over_all_directories(tree: Path) -> None:
    drop_in(tree, "20-late.conf", "dockerd late")
    drop_in(tree, "10-early.conf", "dockerd early", "usr/lib/systemd/system")
    assert command_line(tree) == "dockerd late"


def test_a_drop_in_that_is_a_link_to_dev_null_is_switched_off(tree: Path) -> None:
    drop_in(tree, "10-mine.conf", "dockerd mine", "usr/lib/systemd/system")
    link = tree / "etc/systemd/system/docker.service.d/10-mine.conf"
    link.parent.mkdir(parents=True)
    link.symlink_to("/dev/null")
    assert command_line(tree) == "/usr/bin/dockerd -H fd://"


def test_our_own_drop_in_can_be_left_out(tree: Path) -> None:
    drop_in(tree, DROP_IN, "dockerd ours")
    assert command_line(tree) == "dockerd ours"
    assert command_line(tree, without_ours=True) == "/usr/bin/dockerd -H fd://"


def test_a_unit_is_enabled_by_a_link_that_wants_it(tmp_path: Path) -> None:
    put(tmp_path, f"usr/lib/systemd/system/{AGENT}", "[Service]\n")
    assert facts.is_enabled(tmp_path) is False
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / AGENT).symlink_to(f"/usr/lib/systemd/system/{AGENT}")
    assert facts.is_enabled(tmp_path) is True


async def test_the_bridges_with_an_address_of_the_leased_subnet_are_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: str) -> tuple[str, ...]:
        return ()

    monkeypatch.setattr(facts, "_printed", nothing)
    put(tree, "run/flannel/subnet.env", "FLANNEL_SUBNET=10.5.34.1/24\nFLANNEL_MTU=1472\n")
    netlink = FakeNetlink()
    for name, interface in (
        ("docker0", "10.5.34.1/24"),
        ("cni0", "10.5.34.1/24"),
        ("br1", "10.9.0.1/24"),
    ):
        link = netlink.add_link(name, kind="bridge", mtu=1472)
        await netlink.apply([Set(Address(index=link.index, interface=IPv4Interface(interface)))])
    found = await facts.gather(netlink, tree)
    assert found.bridge == (IPv4Interface("10.5.34.1/24"),)
    assert found.bridge_mtu == 1472
    assert sorted(found.bridges) == ["cni0", "docker0"]


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert facts.read_text(tmp_path / "fifo") is None
