"""The lab itself, with a stand-in for the daemon, so that what fails here is the lab's fault.

The stand-in gives node K the subnet 10.0.K.0/24, routes to the others over the underlay as host-gw
would, writes subnet.env, and waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyflannel.lab import EtcdError, Lab, LabError, LabExists, LabSpec, NoSuchLab, Underlay
from pyflannel.lab import bench as lab_bench
from pyflannel.lab.processes import marked_with
from pyflannel.lab.state import BASE_VARIABLE, StateDirectory
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow]

DEADLINE_S = 20.0
LAB = [sys.executable, "-m", "pyflannel.cli.lab"]


def stand_in(number, nodes):
    routes = "".join(
        f"ip route replace 10.0.{k}.0/24 via 192.0.2.{k}; "
        f"ip route replace fd00:{k}::/64 via 2001:db8::{k}; "
        for k in range(1, nodes + 1)
        if k != number
    )
    env = f"FLANNEL_NETWORK=10.0.0.0/16 FLANNEL_SUBNET=10.0.{number}.1/24 "
    env += f"FLANNEL_IPV6_SUBNET=fd00:{number}::1/64 FLANNEL_MTU=1400"
    return (
        f"sh -c '{routes} mkdir -p /run/flannel; cd /run/flannel; "
        f'printf "%s\\n" {env} FLANNEL_IPMASQ=false > .new; mv .new subnet.env; '
        "exec sleep infinity'"
    )


def spec(nodes=2, **more):
    commands = {k: stand_in(k, nodes) for k in range(1, nodes + 1)}
    return LabSpec(**{"nodes": nodes, "node_commands": commands, "name": "t", **more})


def cli(base, *arguments, check=None, **more):
    done = subprocess.run(
        [*LAB, *arguments],
        env={**os.environ, BASE_VARIABLE: str(base)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


def cli_up(base, *more, name="default", nodes=2):
    commands = [f"--node-command={k}={stand_in(k, nodes)}" for k in range(1, nodes + 1)]
    return cli(base, "up", "--name", name, "--nodes", str(nodes), *commands, *more, check=0)


@contextlib.contextmanager
def never_ready(base):
    """`up` in the moment when it waits for a daemon that will never be ready."""
    command = [*LAB, "up", "--nodes=1", "--node-command=1=sh -c 'exec sleep 1000'"]
    making = subprocess.Popen(command, env={**os.environ, BASE_VARIABLE: str(base)})
    try:
        directory = StateDirectory("default", base)
        deadline = time.monotonic() + DEADLINE_S
        while not (directory.path.exists() and "daemon1" in directory.load().processes):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield making
    finally:
        making.kill()
        making.wait()


def net_namespaces(pids):
    return {str(Path(f"/proc/{pid}/ns/net").readlink()) for pid in pids}


def users_of(namespaces):
    """Pids of the processes that still live in one of these network namespaces."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str((entry / "ns/net").readlink()) in namespaces:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Traces:
    """What a lab has on the machine, looked at while it is up, and what is left afterwards."""

    def __init__(self, base, name="default"):
        self.directory = StateDirectory(name, base)
        self.state = self.directory.load()
        holders = [ref.pid for role, ref in self.state.processes.items() if "daemon" not in role]
        self.namespaces = net_namespaces(holders)

    def left(self):
        marks = [ref.pid for ref in marked_with(self.state.lab_id)]
        mounts = [
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if str(self.directory.path) in line
        ]
        files = [str(p) for p in (self.directory.path, self.state.etcd_data) if p.exists()]
        return marks + users_of(self.namespaces) + mounts + files


@pytest.fixture
def base(tmp_path):
    """A directory for labs; one that is still in it at the end is taken down, and a failure."""
    yield tmp_path / "labs"
    left = sorted((tmp_path / "labs").glob("*/state.json"))
    for path in left:
        Lab(LabSpec(name=path.parent.name), base=tmp_path / "labs").down()
    assert not left


@pytest.fixture
def lab(base):
    with Lab(spec(), base=base) as lab:
        yield lab


class TestLifeOnTheCommandLine:
    def test_a_lab_goes_on_until_it_is_taken_down_and_leaves_nothing(self, base):
        assert "pod 10.0.2.2" in cli_up(base).stdout
        traces = Traces(base)
        assert len(traces.namespaces) == 5  # a switch, two nodes, two pods
        table = cli(base, "ping", check=0).stdout
        assert table.count("ttl=62") == 2
        assert cli(base, "down", check=0).stdout == "lab 'default' is gone\n"
        assert traces.left() == []
        assert not base.exists()

    def test_down_may_be_said_twice(self, base):
        cli_up(base, nodes=1)
        cli(base, "down", check=0)
        assert "no lab named 'default'" in cli(base, "down", check=0).stdout

    def test_up_twice_is_refused_and_changes_nothing(self, base):
        cli_up(base, nodes=1)
        before = Traces(base)
        second = cli(base, "up", check=69)
        assert "is up already" in second.stderr
        assert Traces(base).namespaces == before.namespaces
        cli(base, "down", check=0)

    def test_exec_is_the_command_itself(self, base):
        cli_up(base, nodes=1)
        run = ("exec", "1", "--", "cat", "/run/flannel/subnet.env")
        assert "FLANNEL_SUBNET=10.0.1.1/24" in cli(base, *run, check=0).stdout
        assert cli(base, "exec", "node1", "--", "sh", "-c", "kill -9 $$").returncode == -9
        cli(base, "exec", "1", "--pod", "--", "sh", "-c", "exit 7", check=7)
        assert cli(base, "exec", "1", "--pod", "--", "hostname").stdout == "pod1\n"
        assert cli(base, "exec", "switch", "hostname").stdout == "switch\n"
        assert cli(base, "exec", "1", "cat", input="through", check=0).stdout == "through"
        assert "the lab 'default' has 1 nodes" in cli(base, "exec", "2", "true", check=2).stderr
        cli(base, "down", check=0)

    def test_a_silent_pair_makes_ping_end_1(self, base):
        check_printed("lab-up", cli_up(base, "--json").stdout)
        check_printed("lab-list", cli(base, "list", "--json", check=0).stdout)
        check_printed("lab-status", cli(base, "status", "--json", check=0).stdout)
        cli(base, "exec", "1", "--", "ip", "route", "replace", "blackhole", "10.0.2.0/24")
        done = cli(base, "ping", "--json", "--deadline", "0.5", check=1)
        pairs = {
            (p["from"], p["to"]): p["ok"] for p in check_printed("lab-ping", done.stdout)["pairs"]
        }
        assert pairs == {("pod1", "pod2"): False, ("pod2", "pod1"): False}
        cli(base, "down", check=0)

    def test_processes_left_running_inside_end_with_the_lab(self, base):
        cli_up(base, nodes=1)
        traces = Traces(base)
        cli(base, "exec", "1", "--pod", "--", "sh", "-c", "sleep 1000 >&- 2>&- & exit 0", check=0)
        assert len(users_of(traces.namespaces)) == 6  # three holders, etcd, the daemon, and it
        cli(base, "down", check=0)
        assert traces.left() == []

    def test_commands_without_a_lab_say_how_to_make_one(self, base):
        for command in (["ping"], ["exec", "1", "true"], ["bench"]):
            assert "pyflannel lab up --name default" in cli(base, *command, check=69).stderr


class TestAccidents:
    def test_a_lab_whose_making_was_killed_half_way_can_be_taken_down(self, base):
        with never_ready(base) as making:
            making.kill()
            making.wait()
            traces = Traces(base)
            assert users_of(traces.namespaces)
            cli(base, "down", check=0)
        assert traces.left() == []

    def test_a_lab_that_has_no_more_than_its_name_can_be_taken_down(self, base):
        Lab(spec(), base=base).create()
        with pytest.raises(LabError, match="only half made"):
            Lab.open("t", base=base)
        Lab(spec(), base=base).down()
        assert not base.exists()

    def test_a_lab_whose_directory_was_removed_by_others_ends_all_the_same(self, base):
        lab = Lab(spec(), base=base)
        lab.up()
        traces = Traces(base, "t")
        shutil.rmtree(base)
        lab.down()
        assert traces.left() == []

    def test_an_up_that_is_interrupted_cleans_up(self, base):
        with never_ready(base) as making:
            traces = Traces(base)
            making.send_signal(signal.SIGINT)
            assert making.wait(timeout=DEADLINE_S) == 130
        assert traces.left() == []

    def test_a_daemon_that_ends_at_once_is_reported_with_its_last_words(self, base):
        wrong = spec(1, node_commands={1: "sh -c 'echo cannot, sorry; exit 3'"})
        with pytest.raises(LabError, match=r"(?s)ended with code 3.*cannot, sorry"):
            Lab(wrong, base=base).up()
        assert not base.exists()

    def test_a_daemon_that_cannot_be_found_is_reported(self, base):
        with pytest.raises(LabError, match="no-such-daemon"):
            Lab(spec(1, node_commands={1: "/no-such-daemon"}), base=base).up()

    def test_a_lab_without_etcd_is_reported(self, base):
        with pytest.raises(LabError, match="no-such-etcd"):
            Lab(spec(1, etcd="/no-such-etcd"), base=base).up()
        with pytest.raises(LabError, match="etcd ended at once"):
            Lab(spec(1, etcd="/bin/false"), base=base).up()
        assert not base.exists()

    def test_a_killed_holder_does_not_keep_the_lab_from_going(self, base):
        lab = Lab(spec(1), base=base)
        lab.up()
        traces = Traces(base, "t")
        lab.node(1).space.holder.send(signal.SIGKILL)
        lab.down()
        assert traces.left() == []


class TestTwoLabs:
    def test_side_by_side_they_do_not_know_of_each_other(self, base):
        with Lab(spec(name="a"), base=base) as one:
            with Lab(spec(name="b"), base=base) as other:
                assert one.ping_all().ok
                assert other.ping_all().ok
                one.etcd.put("/only/here", "x")
                assert other.etcd.get("/only/here") is None
            assert one.ping_all().ok

    def test_one_name_is_one_lab(self, lab, base):
        with pytest.raises(LabExists):
            Lab(spec(), base=base).up()
        assert lab.ping_all().ok

    def test_another_process_finds_the_same_lab(self, lab, base):
        seen = Lab.open("t", base=base)
        assert [node.pod_address() for node in seen.nodes] == ["10.0.1.2", "10.0.2.2"]
        assert seen.node(1).pid == lab.node(1).pid
        assert seen.ping_all().ok
        with pytest.raises(NoSuchLab):
            Lab.open("other", base=base)


class TestNodes:
    def test_the_default_paths_are_each_nodes_own(self, lab):
        outside = Path("/run/flannel/subnet.env"), Path("/var/lib/pyflannel")
        before = [path.exists() for path in outside]
        lab.node(1).exec(["sh", "-c", "echo mine > /var/lib/pyflannel/x"])
        assert lab.node(1).path("/var/lib/pyflannel/x").read_text() == "mine\n"
        assert lab.node(2).exec(["ls", "/var/lib/pyflannel"]).stdout == ""
        assert lab.node(2).subnet_env()["FLANNEL_SUBNET"] == "10.0.2.1/24"
        assert [path.exists() for path in outside] == before
        assert not Path("/var/lib/pyflannel/x").exists()

    def test_the_bridge_is_as_docker_opts_says(self, lab):
        bridge = lab.node(1).exec(["ip", "address", "show", "dev", "docker0"]).stdout
        assert "mtu 1400" in bridge
        assert "inet 10.0.1.1/24" in bridge
        pod = lab.node(1).exec(["ip", "address", "show", "dev", "eth0"], pod=True).stdout
        assert "mtu 1400" in pod
        assert "inet 10.0.1.2/24" in pod

    def test_pods_have_ipv6_where_the_daemon_gives_a_subnet(self, lab):
        matrix = lab.ping_all(version=6)
        assert matrix.ok
        assert matrix.ttls == {62}
        assert matrix.between("pod1", "pod2").address == "fd00:2::2"

    def test_an_interface_is_chosen_by_the_default_route(self, lab):
        for family, gateway in (("-4", "192.0.2.254"), ("-6", "2001:db8::254")):
            route = lab.node(2).exec(["ip", family, "route", "get", gateway]).stdout
            assert "dev eth0" in route
        assert lab.node(2).address == "192.0.2.2"

    def test_a_rewritten_source_address_is_noticed(self, lab):
        rule = "add table ip t; add chain ip t c { type nat hook postrouting priority 100; }; "
        lab.node(1).exec(["nft", rule + "add rule ip t c oifname eth0 masquerade"])
        matrix = lab.ping_all()
        assert not matrix.failures()
        assert not matrix.ok
        assert matrix.foreign_sources == {"pod2": ("192.0.2.1",)}

    def test_an_unplugged_node_is_silent_until_it_is_plugged_in(self, lab):
        lab.node(2).unplug()
        assert len(lab.ping_all(count=1, deadline=0.3).failures()) == 2
        lab.node(2).plug_in()
        assert lab.ping_all().ok

    def test_a_daemon_can_be_stopped_killed_and_started_again(self, lab):
        node = lab.node(1)
        first = node.pid
        assert node.stop_daemon() == -signal.SIGTERM
        assert node.daemon is None
        node.start_daemon()
        lab.wait(node.is_ready, what="the stand-in")
        assert node.pid != first
        node.kill()
        assert node.daemon is None
        with pytest.raises(LabError, match="does not run"):
            node.kill()

    def test_a_node_can_be_added(self, lab):
        node = lab.add_node(command=stand_in(3, 3))
        for other in (1, 2):
            lab.node(other).exec(["ip", "route", "add", "10.0.3.0/24", "via", node.address])
        assert lab.ping_all().ok
        assert Lab.open("t", base=lab.path.parent).node(3).pod_address() == "10.0.3.2"

    def test_the_dump_shows_what_one_needs_after_a_failure(self, lab):
        dump = lab.dump()
        assert "10.0.2.0/24 via 192.0.2.2" in dump
        assert "docker0" in dump

    def test_sockets_can_be_opened_inside(self, lab):
        with lab.node(1).space.socket(2, 1) as here, lab.node(2).space.socket(2, 1) as there:
            there.bind(("192.0.2.2", 7))
            there.listen()
            here.connect(("192.0.2.2", 7))
            connection, peer = there.accept()
            connection.close()
        assert peer[0] == "192.0.2.1"
        # This very process has not moved.
        assert net_namespaces(["self"]) != net_namespaces([lab.node(1).space.holder.pid])


class TestEtcd:
    def test_keys_come_back_as_they_were_put(self, lab):
        lab.etcd.put("/a/1", "ä {}")
        lease = lab.etcd.put("/a/2", "two", ttl=600)
        one, two = lab.etcd.get_prefix("/a/")
        assert (one.key, one.value, one.lease_id, one.ttl) == ("/a/1", "ä {}", 0, None)
        assert two.lease_id == lease
        assert 590 <= two.ttl <= 600
        lab.etcd.revoke(lease)
        assert lab.etcd.get("/a/2") is None
        assert lab.etcd.delete_prefix("/a/") == 1

    def test_data_outlive_a_kill_but_not_a_wipe(self, lab):
        lab.etcd.put("/a", "1")
        lab.etcd.kill()
        with pytest.raises(ConnectionRefusedError):
            lab.etcd.get("/a")
        lab.etcd.start()
        assert lab.etcd.get("/a").value == "1"
        lab.etcd.restart(wipe=True)
        assert lab.etcd.get("/a") is None
        assert lab.etcd.revision() == 1

    def test_a_frozen_server_answers_when_it_goes_on(self, lab, monkeypatch):
        monkeypatch.setattr("pyflannel.lab.etcd._REQUEST_TIMEOUT_S", 0.2)
        lab.etcd.pause()
        with pytest.raises(TimeoutError):
            lab.etcd.revision()
        lab.etcd.resume()
        lab.etcd.wait_healthy()

    def test_compaction_forgets_old_revisions(self, lab):
        lab.etcd.put("/a", "1")
        lab.etcd.put("/a", "2")
        at = lab.etcd.compact()
        with pytest.raises(EtcdError, match="compacted"):
            lab.etcd.post("/v3/kv/range", {"key": "L2E=", "revision": str(at - 1)})

    def test_the_systems_own_etcd_will_do_as_well(self, base):
        with Lab(spec(1, etcd="/usr/bin/etcd", start_daemons=False), base=base) as lab:
            lab.etcd.put("/a", "1")
            assert lab.etcd.get("/a").value == "1"


class TestUnderlay:
    def test_plain_is_a_card_that_joins_what_it_receives_and_cuts_nothing(self, base):
        with Lab(spec(underlay=Underlay.PLAIN), base=base) as lab:
            features = lab.node(1).exec(["ethtool", "-k", "eth0"]).stdout
            assert "generic-receive-offload: on" in features
            for name in ("tcp-segmentation-offload", "generic-segmentation-offload"):
                assert f"{name}: off" in features
            port = lab.switch.run(["ethtool", "-k", "node1"]).stdout
            assert "generic-receive-offload: off" in port
            assert lab.ping_all().ok

    def test_bare_means_that_nothing_is_helped(self, base):
        wanted = spec(underlay=Underlay.BARE, underlay_mtu=1450, tx_checksums=False)
        with Lab(wanted, base=base) as lab:
            features = lab.node(1).exec(["ethtool", "-k", "eth0"]).stdout
            for name in (
                *("tcp-segmentation-offload", "generic-segmentation-offload"),
                *("generic-receive-offload", "tx-udp-segmentation", "tx-checksumming"),
            ):
                assert f"{name}: off" in features
            assert "mtu 1450" in lab.node(1).exec(["ip", "link", "show", "dev", "eth0"]).stdout
            assert lab.ping_all().ok


def test_the_bench_measures_all_four(lab):
    result = lab_bench.run(lab.node(1), lab.node(2), seconds=0.2)
    assert result.tcp_1.seen_as == ("10.0.1.2",)
    assert result.tcp_1.gbit_per_s > 0.01
    assert result.tcp_4.gbit_per_s > 0.01
    assert 1 < result.latency.p50_us <= result.latency.p99_us
    assert result.packets.received_kpps > 1
    assert len(result.lines()) == 5
    check_printed("lab-bench", json.dumps(result.to_json()))


def test_a_sink_that_is_not_reached_is_an_error_not_a_number(lab):
    lab.node(1).exec(["ip", "route", "replace", "unreachable", "10.0.2.0/24"])
    with pytest.raises(LabError, match="traffic"):
        lab_bench.tcp(lab.node(1), lab.node(2), seconds=0.2)


def test_where_user_namespaces_are_not_allowed_it_says_what_forbids_them(tmp_path):
    """In a user namespace that may have none below it, and without capabilities."""
    forbid = (
        "echo 0 > /proc/sys/user/max_user_namespaces; "
        'exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", *LAB, "up"],
        env={**os.environ, BASE_VARIABLE: str(tmp_path / "labs")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert "(/proc/sys/user/max_user_namespaces is 0)" in done.stderr


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_no_root_is_needed_where_user_namespaces_are_allowed(tmp_path):
    """As `nobody`, who has nothing: the whole life of a lab."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    base = tmp_path / "labs"
    base.mkdir()
    os.chown(base, 65534, 65534)
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    def run(*arguments):
        return subprocess.run(
            [*nobody, *LAB, *arguments],
            env={**os.environ, BASE_VARIABLE: str(base), "HOME": str(base)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    commands = [f"--node-command={k}={stand_in(k, 2)}" for k in (1, 2)]
    try:
        up = run("up", "--nodes=2", *commands)
        assert up.returncode == 0, up.stderr
        traces = Traces(base)
        assert json.loads(run("ping", "--json").stdout)["ok"]
        inside = run("exec", "1", "--", "cat", "/run/flannel/subnet.env")
        assert "10.0.1.1/24" in inside.stdout
        assert run("up").returncode == 69
    finally:
        down = run("down")
    assert down.returncode == 0, down.stderr
    assert traces.left() == []
