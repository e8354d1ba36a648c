"""`pyflannel leases release` and `reserve`, as commands, beside a node that lives."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pyflannel.core.errors import EXIT_OK, EXIT_UNAVAILABLE, EXIT_USAGE
from pyflannel.store.etcd import codec
from pyflannel.testing.etcdserver import EtcdServer
from tests.integration.etcd_cluster.conftest import CONFIG, PREFIX, Node, running, until
from tests.support.schema import check_printed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
def server(binary, tmp_path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path / "etcd", binary=binary) as running_server:
        running_server.put(codec.config_key(PREFIX), CONFIG)
        yield running_server


def leases(server: EtcdServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable, "-m", "pyflannel.cli.pyflannel", "leases", *arguments,
            f"--etcd-endpoints={server.endpoint}",
        ],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


async def test_a_reservation_is_used_by_its_node_and_a_living_node_is_not_robbed(server, tmp_path):
    done = leases(server, "reserve", "10.0.77.0/24", "--public-ip", "192.0.2.1", "--dry-run")
    assert (done.returncode, done.stdout) == (
        EXIT_OK,
        "would reserve 10.0.77.0/24 for 192.0.2.1\n",
    )
    key = codec.subnets_prefix(PREFIX) + b"10.0.77.0-24"
    assert server.get(key) is None
    done = leases(server, "reserve", "10.0.77.0/24", "--public-ip", "192.0.2.1", "--json")
    assert check_printed("leases-reserve", done.stdout)["lease"]["reservation"] is True
    node = Node(tmp_path / "state", (server.endpoint,), 1)
    async with running(node):
        await until("the snapshot", lambda: node.seen, 5)
        assert node.key == key
        done = await asyncio.to_thread(leases, server, "release", "10.0.77.0/24")
        assert done.returncode == EXIT_UNAVAILABLE
        assert "its node is alive" in done.stderr
        done = await asyncio.to_thread(leases, server, "release", "10.0.77.0/24", "--force")
        assert done.returncode == EXIT_OK, done.stderr
        await until("the key again", lambda: server.get(key) is not None, 10)
    done = await asyncio.to_thread(leases, server, "release", "10.0.77.0/24")
    assert done.returncode == EXIT_OK, done.stderr
    assert server.get(key) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("release",),
        ("release", "nonsense"),
        ("reserve", "10.0.1.0/24"),
        ("reserve", "10.0.1.0/24", "--public-ip", "nonsense"),
        ("release", "10.0.1.0/24", "--public-ip", "192.0.2.1"),
        ("list", "10.0.1.0/24"),
    ],
)
def test_a_wrong_command_line_is_named(server, arguments):
    done = leases(server, *arguments)
    assert done.returncode == EXIT_USAGE
    assert done.stderr.startswith("pyflannel leases: ")
