"""Which files `pyflannel cleanup` removes: those whose content is ours, and nothing else."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import cleanup
from pyflannel.core import subnetenv
from pyflannel.core.config import NetworkConfig
from pyflannel.core.errors import UsageError
from pyflannel.core.ip import SubnetKey
from pyflannel.core.kind import every
from pyflannel.core.lease import Lease, LeaseAttrs
from pyflannel.docker import options
from pyflannel.kernel import unixsocket
from pyflannel.store.record import LeaseRecord

VARIABLES = subnetenv.variables(
    NetworkConfig(network=IPv4Network("10.5.0.0/16")),
    SubnetKey(IPv4Network("10.5.7.0/24"), None),
    mtu=1450,
    ip_masq=True,
)
SUBNET_ENV = "".join(f"{name}={value}\n" for name, value in VARIABLES.items())
DOCKER_ENV = options.render(VARIABLES, ("DOCKER_OPTS", "DOCKER_NETWORK_OPTIONS")).decode()
LEASE = '{"subnet": "10.5.7.0-24", "etcd_lease": 5, "prefix": "/coreos.com/network"}\n'
MACS = '{"public_ip": "192.0.2.1", "macs": {"flannel.1": "02:00:00:00:00:01"}}\n'

PLACES = {
    "subnet_file": "subnet.env",
    "docker_opts_file": "docker_opts.env",
    "lease": "state/lease.json",
    "macs": "state/vtep-mac.json",
}
OURS = {
    "subnet_file": [SUBNET_ENV, SUBNET_ENV[:-20], "# kept\n" + SUBNET_ENV],
    "docker_opts_file": [DOCKER_ENV, 'DOCKER_OPTS=" --bip=10.5.7.1/24 --mtu=1450"\n'],
    "lease": [LEASE],
    "macs": [MACS],
}
FOREIGN = {
    "subnet_file": ["", "127.0.0.1 localhost\n", "PATH=/bin\n", SUBNET_ENV + "PATH=/bin\n"],
    "docker_opts_file": ["", 'DOCKER_OPTS="--log-level=debug"\n', DOCKER_ENV + "HTTP_PROXY=x\n"],
    "lease": ["", "[" * 100_000, '{"lease": "dhcp"}', LEASE + LEASE],
    "macs": ["", LEASE],
}


@pytest.fixture
def given(tmp_path: Path) -> Namespace:
    (tmp_path / "state").mkdir()
    return Namespace(
        subnet_file=str(tmp_path / "subnet.env"),
        docker_opts_file=str(tmp_path / "docker_opts.env"),
        status_socket=str(tmp_path / "pyflannel.sock"),
        state_dir=str(tmp_path / "state"),
    )


def clean(given: Namespace) -> tuple[list[str], dict[str, str]]:
    found, left = cleanup.file_traces(cleanup.own_files(given, list(every(KINDS))))
    for trace in found:
        asyncio.run(trace.remove())
    return [trace.what for trace in found], left


@pytest.mark.parametrize(("place", "text"), [(p, t) for p, texts in OURS.items() for t in texts])
def test_a_file_of_ours_goes(given: Namespace, tmp_path: Path, place: str, text: str) -> None:
    path = tmp_path / PLACES[place]
    path.write_text(text)
    assert clean(given) == ([f"file {path}"], {})
    assert not path.exists()


@pytest.mark.parametrize(("place", "text"), [(p, t) for p, texts in FOREIGN.items() for t in texts])
def test_a_file_that_is_not_stays(given: Namespace, tmp_path: Path, place: str, text: str) -> None:
    path = tmp_path / PLACES[place]
    path.write_text(text)
    assert clean(given) == ([], {f"file {path}": "its content is not flannel's"})
    assert path.read_text() == text


def test_what_is_no_file_stays_with_the_reason(given: Namespace, tmp_path: Path) -> None:
    Path(given.subnet_file).mkdir()
    (tmp_path / "real").write_text(DOCKER_ENV)
    Path(given.docker_opts_file).symlink_to("real")
    os.mkfifo(tmp_path / "state/lease.json")
    Path(given.status_socket).write_text("precious")
    found, left = clean(given)
    assert found == []
    assert set(left.values()) == {"not a regular file", "not a socket"}
    assert len(left) == 4
    assert (tmp_path / "real").read_text() == DOCKER_ENV


def test_a_dead_status_socket_goes_and_a_live_one_stays(given: Namespace) -> None:
    path = given.status_socket
    with unixsocket.listen(path, purpose="status socket", option="--status-socket"):
        found, left = clean(given)
        assert found == []
        assert "listens" in left[f"file {path}"]
    assert clean(given) == ([f"file {path}"], {})
    assert not Path(path).exists()


def test_a_file_that_is_another_one_by_the_time_it_goes_stays(given: Namespace) -> None:
    path = Path(given.subnet_file)
    path.write_text(SUBNET_ENV)
    found, _ = cleanup.file_traces(cleanup.own_files(given, list(every(KINDS))))
    path.write_text("precious")
    asyncio.run(found[0].remove())
    assert path.read_text() == "precious"


def test_the_records_that_this_release_writes_go(given: Namespace, tmp_path: Path) -> None:
    lease = Lease(
        key=SubnetKey(IPv4Network("10.5.7.0/24"), None),
        attrs=LeaseAttrs(public_ip=IPv4Address("192.0.2.1")),
        store_lease=5,
    )
    LeaseRecord(given.state_dir, "/coreos.com/network").save(lease)
    assert clean(given) == ([f"file {tmp_path}/state/lease.json"], {})


def test_the_link_of_the_unit_goes_with_what_it_leads_to(given: Namespace, tmp_path: Path) -> None:
    """Its daemon may not write into /run itself."""
    (tmp_path / "flannel").mkdir()
    target = tmp_path / "flannel/docker_opts.env"
    target.write_text(DOCKER_ENV)
    link = tmp_path / "docker_opts.env"
    link.symlink_to("flannel/docker_opts.env")
    for place in (link, target):
        place.with_name("docker_opts.env.lock").write_text("")
    assert clean(given)[1] == {}
    assert not link.is_symlink()
    assert [str(path) for path in tmp_path.rglob("docker_opts*")] == []


def test_a_link_to_somewhere_else_stays(given: Namespace, tmp_path: Path) -> None:
    (tmp_path / "flannel").mkdir()
    target = tmp_path / "flannel/docker_opts.env"
    target.write_text(DOCKER_ENV)
    link = tmp_path / "docker_opts.env"
    link.symlink_to("other.env")
    found, left = cleanup.file_traces(cleanup.own_files(given, list(every(KINDS))))
    assert found == []
    assert "not a regular file" in left[f"file {link}"]


def test_the_files_of_an_instance_are_its_own_unless_others_are_named() -> None:
    given = cleanup.parse(["--instance", "storage", "--state-dir=/srv/state"])
    assert given.subnet_file == "/run/flannel/storage/subnet.env"
    assert given.status_socket == "/run/flannel/storage/pyflannel.sock"
    assert given.docker_opts_file == "", "docker's options are of the daemon without a name"
    assert given.state_dir == "/srv/state"
    assert cleanup.parse([]).subnet_file == "/run/flannel/subnet.env"


@pytest.mark.parametrize("name", ["../..", "a/b", ".", "x" * 33])
def test_what_is_no_instance_is_no_path(name: str) -> None:
    with pytest.raises(UsageError):
        cleanup.parse(["--instance", name])
