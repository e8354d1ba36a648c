"""Names of etcd's members, with DNS servers alive and dead: real packets in a node's namespaces."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.topology import ETCD_ENDPOINT, ETCD_PORT, SWITCH_HOST, underlay_address
from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdserver import EtcdServer, ServerTLS
from tests.support.dns import DnsServer

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


@pytest.fixture
def dns(lab):
    """A DNS server that answers."""
    bound = lab.node(1).space.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind((SERVER, 53))
    server = DnsServer(bound)
    yield server
    server.close()


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


ETCD_ADDRESS = str(underlay_address(SWITCH_HOST).ip)
NOBODY = str(underlay_address(250).ip)
PLAIN, TLS = "_etcd-client._tcp.etcd.test.", "_etcd-client-ssl._tcp.etcd.test."


def test_a_daemon_finds_its_etcd_by_srv_records_and_finds_it_again(lab, dns):
    """The first that is named does not exist; later the records name another one alone."""
    node = lab.node(1)
    dns.zone = {
        (PLAIN, "SRV"): [f"1 0 {ETCD_PORT} a.etcd.test.", f"2 0 {ETCD_PORT} b.etcd.test."],
        ("a.etcd.test.", "A"): [NOBODY],
        ("b.etcd.test.", "A"): [ETCD_ADDRESS],
    }
    program = str(Path(sys.executable).parent / "pyflanneld")
    with (lab.path / "srv.log").open("w+") as log:
        daemon = node.space.popen(
            [program, "--etcd-discovery-srv=etcd.test", "--iface=eth0"],
            stdout=log.fileno(),
            stderr=log.fileno(),
        )

        def says(text: str) -> bool:
            log.seek(0)
            assert daemon.poll() is None
            return text in log.read()

        try:
            lab.wait(lambda: says("Watching for new subnet leases"), 20, what="running")
            lab.wait(lambda: status(node)[0] == 0, 10, what="all fine")
            dns.zone = {
                (PLAIN, "SRV"): [f"1 0 {ETCD_PORT} c.etcd.test."],
                ("c.etcd.test.", "A"): [ETCD_ADDRESS],
            }
            lab.etcd.kill()
            lab.wait(lambda: says("http://c.etcd.test"), 20, what="the new records")
            lab.etcd.start()
            lab.wait(lambda: says("etcd answers again"), 20, what="etcd again")
        finally:
            daemon.terminate()
            assert daemon.wait(10) == 0


WATCH = """
import asyncio, sys
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd.store import EtcdStore

async def main():
    store = EtcdStore(EtcdOptions(
        discovery_srv="etcd.test", cafile=sys.argv[1], insecure_discovery=sys.argv[2] == "true"))
    async for response in store.watch_prefix(b"/x", 1):
        print("watching", response.header.revision)
        break
    await store.close()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize(
    ("certified", "trusting", "good"),
    [
        ("a.etcd.test", True, True),
        ("etcd.test", True, False),
        ("etcd.test", False, True),
        ("a.etcd.test", False, False),
    ],
)
def test_a_certificate_is_for_the_member_or_for_the_domain(
    lab, dns, ca, certified, trusting, good, tmp_path
):
    node = lab.node(1)
    tls = ServerTLS(certificate=ca.issue(certified, hosts=f"DNS:{certified}"), ca=ca.bundle)
    server = EtcdServer(tmp_path / "etcd", tls=tls)
    node.space.call(server.start)
    try:
        dns.zone = {
            (TLS, "SRV"): [f"0 0 {server.port} a.etcd.test."],
            (PLAIN, "SRV"): [f"0 0 {ETCD_PORT} b.etcd.test."],
            ("a.etcd.test.", "A"): [server.host],
            ("b.etcd.test.", "A"): [ETCD_ADDRESS],
        }
        command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "config", "get"]
        command += ["--etcd-discovery-srv=etcd.test", f"--etcd-cafile={ca.bundle}"]
        command += [f"--etcd-insecure-discovery={str(trusting).lower()}"]
        done = node.exec(command, check=False, timeout=20)
        # Nothing was put there: what a good connection shows is that there is no config.
        text = done.stdout + done.stderr
        assert ("no network config" in text) is good, text
        assert ("another host name" in text) is not good, text
        watch = [sys.executable, "-c", WATCH, str(ca.bundle), str(trusting).lower()]
        assert ("watching" in node.exec(watch, check=False, timeout=20).stdout) is good
    finally:
        server.stop()
