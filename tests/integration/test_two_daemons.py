"""Two daemons on one node, as upstream documents it: each its prefix, network and files.

Each keeps its own rules in the chains and tables that both use, and neither disturbs the other.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from subprocess import DEVNULL, PIPE, Popen

import pytest

from pyflannel.core.errors import EXIT_UNAVAILABLE
from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node

pytestmark = [pytest.mark.root, pytest.mark.slow]

FIRST, SECOND = "10.0.0.0/16", "10.9.0.0/16"
SOCKET = "/run/pyflannel/two.sock"
OF_ITS_OWN = (
    "-etcd-prefix=/two",
    "-subnet-file=/run/flannel/two.env",
    "--docker-opts-file=/run/flannel/two-docker.env",
    "--state-dir=/var/lib/pyflannel/two",
    f"--status-socket={SOCKET}",
)
OPTIONS = ("--ip-masq",)
TWO_LOOKS_S = 3.0
"""A file that is not as it was written is written again at the second look after that."""
CALM_S = 6.0
"""Three times as long as the shortest time between two looks at the rules."""


def network(cidr: str, backend: str, *, nftables: bool) -> dict[str, object]:
    settings = {"Type": backend, "VNI": 2} if backend == "vxlan" and cidr == SECOND else None
    return {
        "Network": cidr,
        "EnableNFTables": nftables,
        "Backend": settings or {"Type": backend},
    }


@contextlib.contextmanager
def second_daemon(node: Node) -> Iterator[Popen[str]]:
    """Another daemon on a node; ended with SIGTERM."""
    child = node.space.popen(
        [*node.daemon_command(), *OF_ITS_OWN, *OPTIONS], stdout=DEVNULL, stderr=DEVNULL
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(10)


def status(node: Node, *where: str) -> dict:
    done = node.exec(["pyflannel", "status", "--json", *where], check=False)
    return json.loads(done.stdout) if done.returncode in (0, 1) else {}


def is_up(node: Node, *where: str) -> bool:
    found = status(node, *where)
    return bool(found.get("ready")) and "network" in found and not found["problems"]


def rules(node: Node) -> str:
    commands = "iptables -S; iptables -t nat -S; nft list ruleset 2>/dev/null"
    return node.exec(["sh", "-c", commands]).stdout


def count(node: Node) -> dict[str, int]:
    text = rules(node)
    return {cidr: text.count(cidr) for cidr in (FIRST, SECOND)}


def repairs(node: Node) -> tuple[int, int]:
    return (
        status(node)["rules"]["repairs"],
        status(node, f"--status-socket={SOCKET}")["rules"]["repairs"],
    )


@pytest.mark.parametrize(
    ("backends", "managers"),
    [
        (("vxlan", "vxlan"), (False, False)),
        (("vxlan", "vxlan"), (True, True)),
        (("udp", "host-gw"), (False, True)),
        (("host-gw", "vxlan"), (True, False)),
    ],
    ids=lambda pair: "+".join(map(str, pair)),
)
def test_neither_disturbs_the_other(backends, managers):
    config = network(FIRST, backends[0], nftables=managers[0])
    spec = LabSpec(nodes=2, config=config, name="two", daemon_args=OPTIONS)
    with Lab(spec) as lab, contextlib.ExitStack() as stack:
        lab.etcd.put("/two/config", json.dumps(network(SECOND, backends[1], nftables=managers[1])))
        for node in lab.nodes:
            if not managers[0]:  # in nftables no chain can accept what another one drops
                node.exec(["iptables", "-P", "FORWARD", "DROP"])
            stack.enter_context(second_daemon(node))
        (node, peer) = lab.nodes
        for one in lab.nodes:
            lab.wait(lambda n=one: is_up(n), 15, what=f"{one.name}, first")
            lab.wait(
                lambda n=one: is_up(n, f"--status-socket={SOCKET}"), 15, what=f"{one.name}, second"
            )
        lab.wait(lambda: all(count(node).values()), 10, what="the rules of both")
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        time.sleep(CALM_S)
        before, mended = count(node), repairs(node)
        matrix = lab.ping_all(count=30, deadline=3 * CALM_S)
        assert matrix.ok, matrix.failures()
        assert count(node) == before
        assert repairs(node) == mended, "each looks after its own rules and finds them right"

        # The first ends and starts again, and so does the second: the other's rules stay.
        routes = node.exec(["ip", "route"]).stdout
        node.stop_daemon()
        assert count(node) == before
        node.start_daemon()
        lab.wait(lambda: is_up(node), 15, what="the first again")
        stack.close()
        assert count(node) == before
        with second_daemon(node), second_daemon(peer):
            where = f"--status-socket={SOCKET}"
            lab.wait(lambda: is_up(node, where), 15, what="the second again")
            time.sleep(CALM_S)
            assert count(node) == before
            kept = [line for line in routes.splitlines() if "flannel0" not in line]
            assert set(kept) <= set(node.exec(["ip", "route"]).stdout.splitlines())
            assert lab.ping_all(count=1).ok


def test_dockers_options_stay_the_first_ones():
    """Each has a subnet file of its own, as with upstream's daemon, and nothing else was said."""
    spec = LabSpec(nodes=1, config=network(FIRST, "vxlan", nftables=False), name="owner")
    with Lab(spec) as lab:
        (node,) = lab.nodes
        lab.etcd.put("/two/config", json.dumps(network(SECOND, "vxlan", nftables=False)))
        docker = "/run/docker_opts.env"
        before = node.exec(["stat", "-c", "%i %Y", docker]).stdout
        mine = [option for option in OF_ITS_OWN if not option.startswith("--docker-opts-file")]
        second = node.space.popen([*node.daemon_command(), *mine], stderr=PIPE)
        where = f"--status-socket={SOCKET}"
        try:
            lab.wait(lambda: status(node, where).get("ready"), 15, what="the second to be ready")
            (problem,) = status(node, where)["problems"]
            assert problem["subject"] == "docker options"
            assert f"pid {node.pid})" in problem["text"]
            assert "--docker-opts-file" in problem["text"]
            time.sleep(TWO_LOOKS_S)
            assert node.exec(["stat", "-c", "%i %Y", docker]).stdout == before
            assert not status(node)["problems"]
        finally:
            second.terminate()
            second.communicate(timeout=10)


SLIPS = {
    # Another prefix and network, and what both have by default.
    "the same VNI": ("vxlan", {}, "flannel.1"),
    "the same TUN": ("udp", {"Port": 8299}, "flannel0"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_second_one_with_the_same_device_is_refused_and_the_first_loses_nothing(slip):
    backend, settings, device = SLIPS[slip]
    spec = LabSpec(nodes=2, config=network(FIRST, backend, nftables=False), name="same-device")
    shown = f"ip link; ip -4 addr show {device}; bridge fdb show dev {device}"
    with Lab(spec) as lab:
        node, peer = lab.nodes
        second = {"Network": SECOND, "Backend": {"Type": backend, **settings}}
        lab.etcd.put("/two/config", json.dumps(second))
        lab.wait(lambda: lab.ping_all(count=1).ok, 15, what="all pods")
        before = node.exec(["sh", "-c", shown]).stdout
        ping = node.pod.popen(["ping", "-q", "-i", "0.01", peer.pod_address()])
        done = node.exec([*node.daemon_command(), *OF_ITS_OWN], check=False, timeout=30)
        ping.send_signal(signal.SIGINT)
        answers = ping.communicate(timeout=10)[0]
        assert done.returncode == EXIT_UNAVAILABLE, done.stderr
        assert f"pyflanneld (pid {node.pid}) keeps this device" in done.stderr
        assert " 0% packet loss" in answers, answers
        assert node.exec(["sh", "-c", shown]).stdout == before
        assert not lab.etcd.get_prefix("/two/subnets/"), "no subnet is taken for nothing"
