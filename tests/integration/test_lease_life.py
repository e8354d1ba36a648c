"""A lease's life over a real etcd: kept, lost, taken back; etcd restarted, emptied, littered."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.testing.certs import Authority
from pyflannel.testing.etcdserver import EtcdServer, ServerTLS

pytestmark = [pytest.mark.root, pytest.mark.slow]

PREFIX = "/coreos.com/network"


@pytest.fixture(scope="module")
def lab():
    """Three nodes with host-gw: every peer is a route that can be seen."""
    with Lab(LabSpec(nodes=3, backend="host-gw", name="leaselife")) as lab:
        yield lab


def lease_key(node) -> str:
    return f"{PREFIX}/subnets/{subnet(node).replace('/', '-')}"


def subnet(node) -> str:
    return node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")


def routes(node) -> set[str]:
    listed = json.loads(node.exec(["ip", "-j", "route", "show", "proto", "boot"]).stdout)
    return {route["dst"] for route in listed if route["dst"] != "default"}


def test_a_deleted_lease_is_written_again_and_no_packet_is_lost_after_it(lab):
    """The peers' routes go with the key and come back with it; the subnet is the same."""
    node, peer = lab.node(1), lab.node(2)
    key, mine = lease_key(node), subnet(node)
    lab.etcd.delete(key)
    lab.wait(lambda: lab.etcd.get(key) is not None, 5, what="the key again")
    lab.wait(lambda: mine in routes(peer), 5, what="the peer's route again")
    assert subnet(node) == mine
    assert lab.ping_all().ok


def test_a_subnet_that_was_taken_over_is_left_to_the_other(lab):
    """The node moves: new subnet, new files, the peers follow; the thief's key is not touched."""
    node, peer = lab.node(1), lab.node(2)
    key, former = lease_key(node), subnet(node)
    stolen = '{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"host-gw"}'
    lab.etcd.put(key, stolen)
    lab.wait(lambda: subnet(node) != former, 10, what="another subnet in subnet.env")
    assert lab.etcd.get(key).value == stolen
    assert node.daemon is not None
    lab.wait(lambda: subnet(node) in routes(peer), 5, what="the peer's route to the new subnet")
    bip, opts = f"--bip={node.subnet_env()['FLANNEL_SUBNET']}", node.path("/run/docker_opts.env")
    lab.wait(lambda: bip in opts.read_text(), 5, what="docker's options after subnet.env")
    lab.etcd.delete(key)
    node.attach_pod()
    assert lab.ping_all().ok


def test_a_kill_and_a_restart_bring_the_same_subnet_and_no_further_etcd_lease(lab):
    node = lab.node(3)
    mine = subnet(node)
    before = len(lab.etcd.post("/v3/lease/leases", {})["leases"])
    for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        if how == signal.SIGTERM:
            assert node.stop_daemon() == 0
        else:
            node.kill()
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="ready again")
        assert subnet(node) == mine
    assert len(lab.etcd.post("/v3/lease/leases", {})["leases"]) == before


def test_a_node_that_is_thrown_away_gives_its_subnet_back(lab):
    """When it is asked to stop, but not when it is killed; and it leases for as long as it says."""
    node = lab.add_node(command="pyflanneld --release-on-exit --lease-ttl=600")
    key = lease_key(node)
    (granted,) = [
        status["grantedTTL"]
        for lease in lab.etcd.post("/v3/lease/leases", {})["leases"]
        if "keys" in (status := lab.etcd.post("/v3/lease/timetolive", {**lease, "keys": True}))
        and base64.b64encode(key.encode()).decode() in status["keys"]
    ]
    assert granted == "600"
    node.kill()
    assert lab.etcd.get(key) is not None
    node.start_daemon()
    lab.wait(node.is_ready, 10, what="ready again")
    assert node.stop_daemon() == 0
    assert lab.etcd.get(key) is None


def test_a_hundred_leases_in_one_transaction_are_a_hundred_routes(lab):
    """Older releases of upstream programmed one of them."""
    node = lab.node(1)
    before = routes(node)
    value = '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"host-gw"}'
    puts = [
        {
            "requestPut": {
                "key": base64.b64encode(f"{PREFIX}/subnets/10.0.{n}.0-24".encode()).decode(),
                "value": base64.b64encode(value.encode()).decode(),
            }
        }
        for n in range(120, 220)
    ]
    lab.etcd.post("/v3/kv/txn", {"success": puts})
    lab.wait(lambda: len(routes(node) - before) == 100, 5, what="100 routes")
    for n in range(120, 220):
        lab.etcd.delete(f"{PREFIX}/subnets/10.0.{n}.0-24")
    lab.wait(lambda: routes(node) == before, 5, what="no route of them")


def test_rubbish_in_etcd_gets_no_route_and_takes_none_away(lab):
    node = lab.node(1)
    before = routes(node)
    good = '{"PublicIP":"192.0.2.2","PublicIPv6":null,"BackendType":"host-gw"}'
    skip = len(node.log())
    rubbish = {
        f"{PREFIX}/subnets/garbage": "x",
        f"{PREFIX}/subnets/10.0.230.0-24": "not json",
        f"{PREFIX}/subnets/10.99.1.0-24": good,
        f"{PREFIX}/subnets/deeper/10.0.231.0-24": good,
        f"{PREFIX}/subnets-old/10.0.232.0-24": good,
        f"{PREFIX}/subnets/10.0.233.0-24": '{"PublicIP":""}',
    }
    for key, value in rubbish.items():
        lab.etcd.put(key, value)
    lab.etcd.put(f"{PREFIX}/subnets/10.0.240.0-24", good)
    lab.wait(lambda: "10.0.240.0/24" in routes(node), 5, what="the good one")
    assert routes(node) == before | {"10.0.240.0/24"}
    log = node.log()[skip:]
    assert "garbage" in log
    assert "outside the network" in log
    for key in (*rubbish, f"{PREFIX}/subnets/10.0.240.0-24"):
        lab.etcd.delete(key)
    lab.wait(lambda: routes(node) == before, 5, what="all as before")


def test_an_etcd_that_restarts_is_followed_again(lab):
    """What happened while it was away is not lost."""
    node = lab.node(1)
    before = routes(node)
    lab.etcd.kill()
    time.sleep(0.5)
    lab.etcd.start()
    value = '{"PublicIP":"192.0.2.3","PublicIPv6":null,"BackendType":"host-gw"}'
    lab.etcd.put(f"{PREFIX}/subnets/10.0.241.0-24", value)
    lab.wait(lambda: "10.0.241.0/24" in routes(node), 15, what="the new lease")
    lab.etcd.delete(f"{PREFIX}/subnets/10.0.241.0-24")
    lab.wait(lambda: routes(node) == before, 5, what="its end")


def test_an_etcd_that_comes_back_empty_gets_all_leases_again(lab):
    """With the same subnets, and without a packet lost on the way."""
    nodes = [lab.node(n) for n in (1, 2, 3)]
    subnets = [subnet(node) for node in nodes]
    pinging = nodes[0].pod.popen(
        ["ping", "-q", "-i", "0.02", "-c", "600", nodes[1].pod_address()], stdout=subprocess.PIPE
    )
    lab.etcd.restart(wipe=True)
    for node in nodes:
        lab.wait(lambda node=node: lab.etcd.get(lease_key(node)) is not None, 20, what="the keys")
    assert [subnet(node) for node in nodes] == subnets
    out, _ = pinging.communicate(timeout=30)
    assert " 0% packet loss" in out, out


class TestSecrets:
    """Password and TLS, with a daemon that has no network to join: it never gets that far."""

    def run(self, *arguments, timeout=20):
        return subprocess.run(
            [sys.executable, "-m", "pyflannel.cli.pyflanneld", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @pytest.fixture
    def paths(self, tmp_path):
        return [
            f"--subnet-file={tmp_path}/subnet.env",
            f"--status-socket={tmp_path}/s.sock",
            f"--state-dir={tmp_path}/state",
            "--docker-opts-file=",
        ]

    def test_a_wrong_password_ends_it_and_is_in_no_log(self, tmp_path, paths):
        with EtcdServer(tmp_path / "etcd") as server:
            server.enable_auth(root_password="right-secret")
            done = self.run(
                f"--etcd-endpoints={server.endpoint}",
                "--etcd-username=root",
                "--etcd-password=wrong-secret",
                *paths,
            )
        assert done.returncode == 77, done.stderr
        assert "wrong-secret" not in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
        assert "password" in done.stderr.strip().splitlines()[-1]

    def until(self, arguments, words):
        """The log of a daemon up to certain words; then it is stopped, which must give 0."""
        command = [sys.executable, "-m", "pyflannel.cli.pyflanneld", *arguments]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                seen = ""
                for line in daemon.stderr:
                    seen += line
                    if words in line:
                        break
                assert words in seen, seen
                daemon.send_signal(signal.SIGTERM)
                assert daemon.wait(timeout=5) == 0
            finally:
                if daemon.poll() is None:
                    daemon.kill()
        return seen

    def test_a_password_that_is_right_and_a_ca_alone_get_through(self, tmp_path, paths):
        """As far as the config, which is not there: that is what it then waits for."""
        authority = Authority(tmp_path / "pki")
        tls = ServerTLS(certificate=authority.issue("server"), ca=authority.bundle)
        with EtcdServer(tmp_path / "etcd", tls=tls) as server:
            server.enable_auth(root_password="right-secret")
            seen = self.until(
                [
                    f"--etcd-endpoints={server.endpoint}",
                    f"--etcd-cafile={authority.bundle}",
                    "--etcd-username=root",
                    "--etcd-password=right-secret",
                    *paths,
                ],
                "flannel config not found in etcd store",
            )
        assert "right-secret" not in seen

    @pytest.mark.parametrize("scheme", ["http", "https"])
    def test_tls_on_one_side_only_is_named_and_waited_out(self, tmp_path, paths, scheme):
        """It may be the server that is set right next."""
        authority = Authority(tmp_path / "pki")
        tls = ServerTLS(certificate=authority.issue("server"), ca=authority.bundle)
        with EtcdServer(tmp_path / "etcd", tls=tls if scheme == "http" else None) as server:
            wrong = f"{scheme}://{server.endpoint.partition('://')[2]}"
            seen = self.until(
                [f"--etcd-endpoints={wrong}", f"--etcd-cafile={authority.bundle}", *paths],
                "etcd does not answer",
            )
        assert wrong in seen
        assert "TLS" in seen or "https" in seen


def test_a_subnet_that_was_taken_in_a_full_network_is_named_nowhere_as_ours():
    """Not ready, and no files that a container could be started by, until it is free again."""
    network = {"Network": "10.0.0.0/16", "SubnetMin": "10.0.1.0", "SubnetMax": "10.0.1.0"}
    config = {**network, "Backend": {"Type": "host-gw"}}
    with Lab(
        LabSpec(nodes=1, config=config, name="taken", daemon_args=("--healthz-port=8471",))
    ) as lab:
        node = lab.node(1)
        ask = [
            "curl",
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://127.0.0.1:8471/readyz",
        ]

        def status() -> int:
            command = [sys.executable, "-m", "pyflannel.cli.pyflannel", "status"]
            return node.exec(command, check=False).returncode

        lab.wait(lambda: node.exec(ask, check=False).stdout == "200", 10, what="ready")
        lab.wait(lambda: status() == 0, 10, what="all fine")
        key = lease_key(node)
        lab.etcd.put(key, '{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"host-gw"}')
        lab.wait(lambda: node.exec(ask, check=False).stdout == "503", 15, what="not ready")
        assert not node.path("/run/flannel/subnet.env").exists()
        assert status() == 3
        lab.etcd.delete(key)
        lab.wait(lambda: node.exec(ask, check=False).stdout == "200", 10, what="ready again")
        assert lease_key(node) == key
        lab.wait(lambda: status() == 0, 10, what="all fine again")
        # Taken while the daemon is away; the bridge of the containers is in the subnet.
        node.kill()
        lab.etcd.put(key, '{"PublicIP":"192.0.2.99","PublicIPv6":null,"BackendType":"host-gw"}')
        assert node.path("/run/flannel/subnet.env").exists()
        node.start_daemon()
        lab.wait(lambda: not node.path("/run/flannel/subnet.env").exists(), 15, what="no file")
        assert node.docker_options() is None
        lab.etcd.delete(key)
        lab.wait(lambda: node.exec(ask, check=False).stdout == "200", 10, what="ready once more")
        assert lease_key(node) == key
