"""What a reload looks at: all that a start would stumble over, and nothing that a restart frees."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import precheck
from pyflannel.core.configparse import parse_network_config
from pyflannel.core.errors import EXIT_NOT_PERMITTED, EXIT_UNAVAILABLE
from pyflannel.core.options import DaemonOptions
from pyflannel.core.trust import ConfigOrigin
from pyflannel.kernel.base import Address
from pyflannel.testing.fakenetlink import FakeNetlink


@pytest.fixture
def options(tmp_path: Path):
    """Options with all files below a directory of the test."""

    def make(**given: object) -> DaemonOptions:
        places = {
            "subnet_file": str(tmp_path / "run/subnet.env"),
            "docker_opts_file": str(tmp_path / "run/docker_opts.env"),
            "status_socket": str(tmp_path / "run/pyflannel.sock"),
            "state_dir": str(tmp_path / "state"),
            "iface": ("eth0",),
        }
        return DaemonOptions(**(places | given))  # type: ignore[arg-type]

    return make


def machine(options: DaemonOptions) -> list[str]:
    return [str(error) for error in precheck.of_machine(options)]


def node(config: dict[str, object], options: DaemonOptions, mtu: int = 1500) -> list[str]:
    """What is wrong with a config on a node that has eth0 with 192.0.2.1/24."""

    async def go() -> list[str]:
        netlink = FakeNetlink()
        eth0 = netlink.add_link("eth0", mtu=mtu)
        netlink.add_address(Address(index=eth0.index, interface=IPv4Interface("192.0.2.1/24")))
        parsed = parse_network_config(
            json.dumps({"Network": "10.5.0.0/16"} | config).encode(), KINDS
        )
        assert parsed.config is not None
        return [
            str(e)
            for e in await precheck.of_config(parsed.config, options, netlink, ConfigOrigin.ETCD)
        ]

    return asyncio.run(go())


def test_a_node_that_is_fit_is_told_nothing(options, tmp_path) -> None:
    assert machine(options()) == []
    assert not (tmp_path / "run").exists(), "nothing was made"
    for kind in ("udp", "vxlan", "host-gw", "alloc"):
        assert node({"Backend": {"Type": kind}}, options()) == []


def test_an_interface_that_is_not_there_is_named(options) -> None:
    (error,) = node({}, options(iface=("nosuch",)))
    assert "nosuch" in error


def test_what_the_node_does_not_allow_is_named(options) -> None:
    (error,) = node({"Backend": {"Type": "extension"}}, options())
    assert "extension runs commands" in error


def test_what_a_backend_refuses_on_this_interface_is_named(options) -> None:
    (error,) = node({"Backend": {"Type": "udp"}}, options(), mtu=80)
    assert "MTU" in error


def test_a_program_of_extension_that_is_not_there_is_named(options) -> None:
    backend = {"Type": "extension", "SubnetAddCommand": "/no/such -x", "PreStartupCommand": "true"}
    (error,) = node({"Backend": backend}, options(allow_extension=True))
    assert "SubnetAddCommand: no program /no/such" in error


def test_a_data_path_that_this_machine_lacks_is_named(options, monkeypatch) -> None:
    from pyflannel.datapath import select

    missing = select.Implementation("pyflannel.no_such", "X", "install it")
    found = {"native": missing}
    create = select.create
    monkeypatch.setattr(select, "create", lambda kind: create(kind, found))
    (error,) = node({"Backend": {"Type": "udp"}}, options(datapath="native"))
    assert "install it" in error


@pytest.mark.parametrize("flag", ["subnet_file", "docker_opts_file", "status_socket", "state_dir"])
def test_a_path_below_a_file_is_named(options, tmp_path, flag) -> None:
    (tmp_path / "file").write_text("")
    errors = list(precheck.of_machine(options(**{flag: str(tmp_path / "file/x")})))
    assert f"-{flag.replace('_', '-')}: " in str(errors[0])
    assert errors[0].exit_code == EXIT_UNAVAILABLE


def test_a_directory_that_may_not_be_written_is_named_with_the_way_out(
    options, tmp_path, monkeypatch
) -> None:
    """Read-only for the unit alone, as its sandbox makes it."""
    (tmp_path / "run").mkdir()
    real = os.access
    monkeypatch.setattr(
        os,
        "access",
        lambda path, mode: not mode & os.W_OK if "run" in str(path) else real(path, mode),
    )
    errors = list(precheck.of_machine(options()))
    assert len(errors) == 3
    assert all(error.exit_code == EXIT_NOT_PERMITTED for error in errors)
    assert "ReadWritePaths=" in str(errors[0])


def test_a_directory_in_the_place_of_a_file_is_named(options, tmp_path) -> None:
    (tmp_path / "run/subnet.env").mkdir(parents=True)
    (error,) = machine(options())
    assert "subnet.env (-subnet-file)" in error


def test_a_foreign_file_in_the_place_of_the_socket_is_named_and_a_daemon_that_listens_is_not(
    options, tmp_path
) -> None:
    (tmp_path / "run").mkdir()
    place = tmp_path / "run/pyflannel.sock"
    place.write_text("somebody's")
    (error,) = machine(options())
    assert "not a socket" in error
    place.unlink()
    with socket.socket(socket.AF_UNIX) as running:
        running.bind(str(place))
        running.listen()
        assert machine(options()) == []


@pytest.mark.parametrize(
    ("address", "there"),
    [("127.0.0.1", True), ("203.0.113.77", False), ("2001:db8::77", False), ("nohost", False)],
)
def test_a_health_address_of_another_host_is_named(options, address, there) -> None:
    found = machine(options(healthz_ip=address, healthz_port=9999))
    assert (found == []) is there
    assert all("-healthz-ip" in error for error in found)


def test_everything_is_named_and_not_the_first_of_it(options, tmp_path) -> None:
    backend = {"Type": "extension", "SubnetAddCommand": "/no/such"}
    errors = node({"Backend": backend}, options(iface=("nosuch",)))
    assert len(errors) == 3
