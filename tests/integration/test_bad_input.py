"""Wrong input and missing parts: a clear last line, the right exit code or a patient wait, and
nothing lost. One node with a real etcd; each case is a daemon of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

GOOD = '{"Network":"10.0.0.0/16","Backend":{"Type":"udp"}}'
CONFIG_KEY = "/coreos.com/network/config"


@pytest.fixture(scope="module")
def lab():
    with Lab(LabSpec(nodes=2, config=GOOD, name="badinput", start_daemons=False)) as lab:
        yield lab


@pytest.fixture
def node(lab):
    """Node 1, clean again afterwards."""
    yield lab.node(1)
    with contextlib.suppress(Exception):
        lab.node(1).stop_daemon()
    lab.etcd.put(CONFIG_KEY, GOOD)


def run(node, *arguments, wrapper=(), timeout=15):
    """Runs a daemon that is expected to end by itself; exit code and last line on stderr."""
    done = node.exec([*wrapper, *node.daemon_command(arguments)], check=False, timeout=timeout)
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, lines[-1] if lines else ""


def subnet_keys(lab):
    return [lease.key for lease in lab.etcd.get_prefix("/coreos.com/network/subnets/")]


class TestItEnds:
    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (["-nope"], 2, "-nope"),
            (["-healthz-port=x"], 2, "healthz-port"),
            (["-subnet-lease-renew-margin=0"], 78, "renew-margin"),
            (["-kube-subnet-mgr"], 78, "POD_NAME"),
            (["-kube-subnet-mgr", "-node-name=n1"], 78, "KUBERNETES_SERVICE_HOST"),
            (["-kube-subnet-mgr", "-node-name=n1", "-kubeconfig-file=/nope"], 78, "/nope"),
            (["-iface=nosuch0"], 78, "nosuch0"),
            (["-public-ip=203.0.113.9", "-iface="], 78, "203.0.113.9"),
            (
                [
                    "-etcd-certfile=/nonexistent.pem",
                    "-etcd-keyfile=/nonexistent.key",
                    "-etcd-endpoints=https://192.0.2.254:2379",
                ],
                78,
                "/nonexistent",
            ),
        ],
    )
    def test_with_a_code_of_its_own_and_the_reason(self, node, arguments, code, words):
        if "-iface=" in arguments:
            command = [a for a in node.daemon_command() if not a.startswith("-iface")]
            done = node.exec([*command, arguments[0]], check=False, timeout=15)
            assert done.returncode == code
            assert words in done.stderr.strip().splitlines()[-1]
            return
        ended, last = run(node, *arguments)
        assert (ended, words in last) == (code, True), last

    def test_without_the_right_to_a_tun_it_names_the_capability(self, node):
        drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        code, last = run(node, wrapper=drop)
        assert code == 77
        assert "CAP_NET_ADMIN" in last

    def test_without_a_tun_driver_it_says_how_to_get_one(self, node):
        hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
        code, last = run(node, wrapper=hide)
        assert code == 69
        assert "/dev/net/tun" in last
        assert "modprobe tun" in last

    def test_with_its_port_taken_it_names_who_has_it(self, node):
        holder = node.space.popen(
            [
                "python3",
                "-c",
                (
                    "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
                    "s.bind(('0.0.0.0',8285)); print('ready',flush=True); time.sleep(60)"
                ),
            ]
        )
        try:
            assert holder.stdout.readline().strip() == "ready"
            code, last = run(node)
            assert code == 69
            assert "8285" in last
            assert str(holder.pid) in last
        finally:
            holder.kill()
            holder.communicate()

    def test_with_its_health_port_taken(self, node):
        holder = node.space.popen(
            [
                "python3",
                "-c",
                (
                    "import socket,time; s=socket.socket(); s.bind(('0.0.0.0',8471));"
                    "s.listen(); print('ready',flush=True); time.sleep(60)"
                ),
            ]
        )
        try:
            assert holder.stdout.readline().strip() == "ready"
            code, last = run(node, "-healthz-port=8471")
            assert code == 69
            assert "8471" in last
        finally:
            holder.kill()
            holder.communicate()

    def test_where_another_daemon_runs_already(self, lab, node):
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="the first daemon")
        before = subnet_keys(lab)
        code, last = run(node)
        assert code == 69
        assert f"pid {node.pid}" in last
        assert subnet_keys(lab) == before
        assert node.is_ready()


class TestItWaits:
    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ("garbage", "not JSON"),
            ('{"Netwrok":"10.0.0.0/16"}', "Network"),
            ('{"Network":"10.0.0.0/16","SubnetLen":"24"}', "SubnetLen"),
            (None, "config not found"),
        ],
    )
    def test_for_a_config_that_is_right(self, lab, node, config, words):
        """It says what is wrong, once, and goes on as soon as the key is corrected."""
        if config is None:
            lab.etcd.delete(CONFIG_KEY)
        else:
            lab.etcd.put(CONFIG_KEY, config)
        skip = len(node.log())
        node.start_daemon()
        lab.wait(lambda: words in node.log()[skip:], 5, what="the reason in the log")
        time.sleep(2.2)  # two more looks, which must not say it again
        assert node.log()[skip:].count("fetch network config") <= 1
        assert not node.is_ready()
        lab.etcd.put(CONFIG_KEY, GOOD)
        lab.wait(node.is_ready, 5, what="the daemon is ready")

    def test_for_etcd_and_says_which_endpoint(self, lab, node):
        command = [a for a in node.daemon_command() if not a.startswith("-etcd-endpoints")]
        child = node.space.popen(
            [*command, "-etcd-endpoints=http://192.0.2.253:2379,http://127.0.0.1:9"],
            stderr=subprocess.STDOUT,
        )
        try:
            line = ""
            deadline = time.monotonic() + 15
            while "etcd does not answer" not in line and time.monotonic() < deadline:
                line = child.stdout.readline()
            assert "192.0.2.253:2379" in line
            assert "/coreos.com/network/config" in line
            asked = node.exec(["pyflannel", "status", "--json"], check=False)
            assert asked.returncode == 3
            status = json.loads(asked.stdout)
            assert "192.0.2.253:2379" in status["waiting_for"]
            assert not status["ready"]
            start = time.monotonic()
            child.send_signal(signal.SIGTERM)
            assert child.wait(timeout=5) == 0
            assert time.monotonic() - start < 2
        finally:
            if child.poll() is None:
                child.kill()
            child.communicate()


class TestItGoesOn:
    def test_when_the_config_becomes_garbage(self, lab, node):
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="the daemon")
        skip = len(node.log())
        lab.etcd.put(CONFIG_KEY, "garbage")
        lab.wait(lambda: "wrong now" in node.log()[skip:], 5, what="the complaint")
        assert node.daemon is not None
        (line,) = node.exec(["ip", "-o", "link", "show", "flannel0"]).stdout.splitlines()
        assert "UP" in line

    @pytest.mark.parametrize(
        "content", [b"FLANNEL_SUB", b"\x00\xff\x00", b"FLANNEL_SUBNET=nonsense\n"]
    )
    def test_with_a_subnet_env_that_is_torn(self, lab, node, content):
        path = node.path("/run/flannel/subnet.env")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        before = subnet_keys(lab)
        node.start_daemon()
        lab.wait(lambda: path.read_bytes().startswith(b"FLANNEL_NETWORK="), 10, what="the file")
        assert len(subnet_keys(lab)) == max(1, len(before))

    def test_when_subnet_env_cannot_be_written(self, lab, node):
        """Packets flow, the node is not ready; it is as soon as the disk is writable again."""
        run_dir = "/run/flannel"
        node.exec(["sh", "-c", f"rm -f {run_dir}/*; mkdir -p {run_dir}"])
        node.exec(["mount", "-t", "tmpfs", "-o", "ro", "none", run_dir])
        try:
            skip = len(node.log())
            node.start_daemon(["--healthz-port=8099", "--healthz-ip=127.0.0.1"])
            lab.wait(lambda: "read-only" in node.log()[skip:], 10, what="the reason in the log")
            lab.wait(lambda: probe(node, "/readyz")[0] == 503, 5, what="/readyz says no")
            assert probe(node, "/healthz") == (200, "flanneld is running")
            node.exec(["mount", "-o", "remount,rw", run_dir])
            lab.wait(lambda: probe(node, "/readyz")[0] == 200, 10, what="/readyz says yes")
            assert probe(node, "/readyz")[1] == "flanneld is ready"
            assert probe(node, "/nope") == (404, "404 page not found\n")
        finally:
            node.stop_daemon()
            node.exec(["umount", run_dir])

    def test_when_its_files_are_deleted_they_come_back(self, lab, node):
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="the daemon")
        for inside in ("/run/flannel/subnet.env", "/run/docker_opts.env"):
            path = node.path(inside)
            before = path.read_bytes()
            path.unlink()
            lab.wait(path.exists, 5, what=f"{inside} again")
            assert path.read_bytes() == before

    def test_a_second_node_with_the_same_address_is_told(self, lab, node):
        """And the first one keeps what it has."""
        node.start_daemon()
        lab.wait(node.is_ready, 10, what="the first")
        before = subnet_keys(lab)
        second = lab.node(2)
        skip = len(second.log())
        second.start_daemon(["-iface=eth0", f"-public-ip={node.address}"])
        try:
            words = f"public IP {node.address} is in use by another live node"
            lab.wait(lambda: words in second.log()[skip:], 10, what="the second is told")
            assert subnet_keys(lab) == before
            assert not second.is_ready()
        finally:
            assert second.stop_daemon() == 0


def probe(node, path):
    """Status and body of a health request; 0 while nothing listens."""

    def ask():
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", 8099, timeout=3)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except OSError:
            return 0, ""
        finally:
            connection.close()

    return node.space.call(ask)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal (proc(5), SigCgt)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


class TestStopping:
    def test_at_any_moment_it_ends_with_0_within_two_seconds(self, lab, node):
        """Twenty moments from the very start to well after ready, the instant of READY included.

        The very start is where we have the first word: until the interpreter has read our first
        lines the signal ends it, as it ends any program.
        """
        slow = []
        for step in range(20):
            pid = node.start_daemon().pid
            lab.wait(lambda pid=pid: catches(pid, signal.SIGTERM), 5, what="our handler")
            time.sleep(0.035 * step)
            start = time.monotonic()
            code = node.stop_daemon(timeout=5)
            slow.append((round(time.monotonic() - start, 2), code))
        assert [code for _, code in slow] == [0] * 20, slow
        assert max(took for took, _ in slow) < 2, slow

    @pytest.mark.parametrize("when", ["started", "files"])
    def test_a_full_disk_and_the_service_manager(self, lab, node, tmp_path, when):
        """Told as upstream tells it, or not before subnet.env is there; why in the status line."""
        path = str(tmp_path / "notify")
        run = node.path("/run/flannel")
        run.mkdir(exist_ok=True)
        node.exec(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/run/flannel"])
        node.exec(["sh", "-c", "head -c 4096 /dev/zero >/run/flannel/filler"])
        seen: list[str] = []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.settimeout(10)

            def hear(what: str) -> None:
                while what not in "\n".join(seen):
                    seen.append(manager.recv(4096).decode())

            try:
                node.start_daemon([f"-ready-when={when}"], env={"NOTIFY_SOCKET": path})
                hear("ENOSPC")
                if when == "started":
                    hear("READY=1")
                assert ("READY=1" in "\n".join(seen)) == (when == "started")
                node.exec(["rm", "/run/flannel/filler"])
                hear("READY=1")
                show = ["cat", "/run/flannel/subnet.env"]
                lab.wait(
                    lambda: "FLANNEL_SUBNET" in node.exec(show, check=False).stdout,
                    10,
                    what="the file",
                )
            finally:
                node.stop_daemon()
                node.exec(["umount", "/run/flannel"])

    def test_on_the_instant_of_becoming_ready(self, lab, node, tmp_path):
        """A service manager that stops what has just said READY=1, and what it has been told."""
        path = str(tmp_path / "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(path)
            manager.settimeout(10)
            for _ in range(5):
                ref = node.start_daemon(env={"NOTIFY_SOCKET": path})
                seen = []
                while not any("READY=1" in message for message in seen):
                    seen.append(manager.recv(4096).decode())
                assert node.path("/run/flannel/subnet.env").exists()
                start = time.monotonic()
                ref.send(signal.SIGTERM)
                assert node.wait_exit(timeout=5) == 0
                assert time.monotonic() - start < 2
                while not any("STOPPING=1" in message for message in seen):
                    seen.append(manager.recv(4096).decode())
                assert any("STATUS=" in message for message in seen)
