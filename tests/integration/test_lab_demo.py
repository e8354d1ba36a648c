"""The walk-through from its first line to its last, with the real daemon on every node."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.processes import marked_with
from pyflannel.lab.state import BASE_VARIABLE, StateDirectory, all_labs

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

DEADLINE_S = 240
"""For a whole demo, on an emulated machine too: it is there to end one that hangs."""
DEMO = [sys.executable, "-m", "pyflannel.cli.lab", "demo"]


def environment(base):
    return {**os.environ, BASE_VARIABLE: str(base)}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What the demo printed."""
    base = tmp_path_factory.mktemp("demo") / "labs"
    done = subprocess.run(
        DEMO, env=environment(base), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert not base.exists()
    return done.stdout


class TestDemo:
    def test_it_fits_on_a_screen_and_is_plain_in_a_file(self, shown):
        assert len(shown.splitlines()) <= 80
        assert max(map(len, shown.splitlines())) <= 80
        assert "\x1b" not in shown

    def test_a_route_is_deleted_and_back_at_once(self, shown):
        took = re.search(r"ip route del 10\.0\.0\.0/16; sleep ([0-9.]+);", shown)
        assert float(took[1]) < 5
        assert "repaired what had been changed by others" in shown

    def test_a_daemon_is_killed_and_comes_back_with_its_subnet(self, shown):
        assert re.search(r"^ +node3\$ kill -9 \d+$", shown, re.MULTILINE)
        assert re.search(r"ready again after \d+\.\d\d s, with the same subnet; 6 of 6", shown)

    def test_without_etcd_packets_flow_and_the_node_says_what_is_wrong(self, shown):
        assert re.search(r"^ +WARNING PF102 etcd, since ", shown, re.MULTILINE)
        said = r"6 of 6 pairs answer\. etcd is started, and found again after \d+\.\d\d s"
        assert re.search(said, shown)

    def test_its_last_lines_can_be_pasted(self, shown):
        commands = re.findall(r"^ +(\S*pyflannel) lab (\w+)", shown, re.MULTILINE)[-4:]
        assert [command for _, command in commands] == ["up", "exec", "break", "down"]
        subprocess.run([*commands[0][:1], "--version"], check=True)

    def test_every_pair_answers_after_four_hops(self, shown):
        assert "6 of 6 pairs answered" in shown
        assert len(re.findall(r"ttl=60 \d", shown)) == 6

    def test_each_node_has_a_lease_in_the_range_that_the_config_allows(self, shown):
        subnets = re.findall(r"^ +10\.0\.(\d+)\.0/24 +192\.0\.2\.[123] ", shown, re.MULTILINE)
        assert len(set(subnets)) == 3
        assert all(1 <= int(third) <= 20 for third in subnets)

    def test_the_files_are_those_of_one_lease(self, shown):
        subnet = re.search(r"FLANNEL_SUBNET=(10\.0\.\d+\.1/24)", shown)[1]
        assert "FLANNEL_NETWORK=10.0.0.0/16\n" in shown
        assert f'DOCKER_OPTS=" --bip={subnet} --ip-masq=true --mtu=1472"' in shown
        assert "10.0.0.0/16 dev flannel0" in shown
        assert re.search(rf"flannel0 +UNKNOWN +{subnet.replace('.1/24', '.0/32')}", shown)

    def test_bulk_traffic_arrives_from_the_pods_own_address(self, shown):
        pod1 = re.search(r"FLANNEL_SUBNET=(10\.0\.\d+\.)1/24", shown)[1] + "2"
        assert re.search(r"pod2 sees it come from (.*)$", shown, re.MULTILINE)[1] == pod1

    def test_throughput_stands_beside_other_ways_in_one_line(self, shown):
        rate = r"(\d+\.\d\d)"
        line = rf"^ +TCP, Gbit/s: udp \(\w+\) {rate}, kernel vxlan {rate}, plain routing {rate}$"
        found = re.search(line, shown, re.MULTILINE)
        assert all(float(each) > 0 for each in found.groups())

    def test_each_step_says_how_long_it_took(self, shown):
        assert len(re.findall(r"^\d  .* \d+\.\d\d s$", shown, re.MULTILINE)) == 9


@contextlib.contextmanager
def half_way(base):
    """A demo in the moment when it has started a daemon, and the state of its lab."""
    demo = subprocess.Popen(DEMO, env=environment(base), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while "daemon1" not in (state := _state(base)).processes:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield demo, state
    finally:
        demo.kill()
        demo.wait()


def _state(base):
    deadline = time.monotonic() + 20
    while not (names := all_labs(base)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return StateDirectory(names[0], base).load()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path, signum):
    base = tmp_path / "labs"
    with half_way(base) as (demo, state):
        demo.send_signal(signum)
        assert demo.wait(timeout=20) == 130
    assert marked_with(state.lab_id) == []
    assert not any(ref.alive() for ref in state.processes.values())
    assert not state.etcd_data.exists()
    assert not base.exists()


def test_a_demo_that_was_killed_is_cleared_up_by_the_next_one(tmp_path):
    base = tmp_path / "labs"
    with half_way(base) as (demo, state):
        demo.kill()
        demo.wait()
        assert marked_with(state.lab_id) != []
    subprocess.run(DEMO, env=environment(base), check=True, timeout=DEADLINE_S, capture_output=True)
    assert marked_with(state.lab_id) == []
    assert not base.exists()


def test_a_daemon_that_is_started_again_has_the_same_subnet(tmp_path):
    with Lab(LabSpec(nodes=2, name="t"), base=tmp_path / "labs") as lab:
        node = lab.node(1)
        before = node.subnet_env()
        assert node.stop_daemon() == 0
        node.start_daemon()
        lab.wait(node.is_ready, what="subnet.env, written again")
        assert node.subnet_env() == before
        node.kill()
        node.start_daemon()
        lab.wait(node.is_ready, what="subnet.env, written again")
        node.attach_pod()
        assert node.subnet_env() == before
        assert lab.ping_all().ok
