"""Names of etcd's members, with DNS servers alive and dead: real packets in a node's namespaces."""

from __future__ import annotations

import socket
import sys

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.topology import ETCD_ENDPOINT

pytestmark = [pytest.mark.root, pytest.mark.slow]

SERVER = "127.0.0.53"


@pytest.fixture(scope="module")
def lab():
    """One node, whose daemon each test starts."""
    with Lab(LabSpec(nodes=1, backend="host-gw", name="names", start_daemons=False)) as lab:
        node = lab.node(1)
        node.path("/run/resolv.conf").write_text(f"nameserver {SERVER}\n")
        node.exec(["mount", "--bind", "/run/resolv.conf", "/etc/resolv.conf"])
        yield lab


@pytest.fixture
def dead_server(lab):
    """A DNS server that takes every question and answers none."""
    with lab.node(1).space.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((SERVER, 53))
        yield server


def status(node) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "status"]
    done = node.exec(command, check=False, timeout=10)
    return done.returncode, done.stdout + done.stderr


def test_dead_names_before_a_live_endpoint_do_not_hold_the_start_up(lab, dead_server):
    """A look-up takes glibc half a minute, and each name has one."""
    node = lab.node(1)
    names = [f"http://etcd-{n}.example:2379" for n in range(6)]
    node.start_daemon([f"--etcd-endpoints={','.join([*names, ETCD_ENDPOINT])}"])
    try:
        lab.wait(node.is_ready, 10, what="ready")
        lab.wait(lambda: status(node)[0] == 0, 10, what="all fine")
    finally:
        assert node.stop_daemon() == 0


def test_while_a_name_is_looked_up_the_daemon_answers_and_stops(lab, dead_server):
    node = lab.node(1)
    node.start_daemon(["--etcd-endpoints=http://etcd.example:2379"])
    try:
        lab.wait(lambda: "DNS does not answer" in node.log(), 10, what="the reason in the log")
        code, text = status(node)
        assert code == 3
        assert "waiting for etcd" in text
    finally:
        assert node.stop_daemon(timeout=5) == 0
