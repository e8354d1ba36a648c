"""A node's own subnet among what the node is connected to, and `config check --node` beside it."""

from __future__ import annotations

import json

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

SUBNETS = "/coreos.com/network/subnets"
CONFIG = {
    # The underlay is 192.0.2.0/24, so one of the two subnets is it.
    "Network": "192.0.0.0/16",
    "SubnetMin": "192.0.2.0",
    "SubnetMax": "192.0.3.0",
    "Backend": {"Type": "host-gw"},
}
ONLY_THE_UNDERLAY = CONFIG | {"SubnetMax": "192.0.2.0"}
START_S = 20


def problems(lab, node, config: dict[str, object]) -> tuple[int, list[dict[str, str]]]:
    """What `config check --node` says there, with its exit code."""
    done = node.exec(
        [
            *("pyflannel", "config", "check", "-", "--node", "--json"),
            f"--etcd-endpoints={lab.etcd.endpoint}",
        ],
        stdin=json.dumps(config),
        check=False,
    )
    return done.returncode, json.loads(done.stdout)["problems"]


def lease(address: str) -> str:
    return json.dumps({"PublicIP": address, "PublicIPv6": None, "BackendType": "host-gw"})


def test_a_subnet_that_is_the_underlay_is_given_back_and_never_taken():
    spec = LabSpec(nodes=1, config=CONFIG, name="own-overlap", start_daemons=False)
    with Lab(spec) as lab:
        (node,) = lab.nodes
        wrong = f"{SUBNETS}/192.0.2.0-24"
        lab.etcd.put(wrong, lease(node.address))
        lab.etcd.put(f"{SUBNETS}/192.0.0.0-22", lease("192.0.2.77"))
        before = node.exec(["ip", "route"]).stdout

        code, found = problems(
            lab, node, CONFIG | {"SubnetMin": "192.0.1.0", "SubnetMax": "192.0.9.0"}
        )
        assert code == 0
        said = "\n".join(f"{one['severity']} {one['message']}" for one in found)
        assert f"192.0.2.0/24 equals or contains the connected prefix {node.address}/24" in said
        assert "this node's reservation is not used" in said
        assert "the peer 192.0.2.77 is left out: 192.0.0.0/22" in said
        assert "warning 192.0.0.0/16 equals or contains the connected prefix" in said
        assert all(one["remedy"] for one in found)
        code, found = problems(lab, node, ONLY_THE_UNDERLAY)
        assert code == 78
        assert any("of eth0" in one["message"] for one in found if one["severity"] == "error")

        lab.etcd.delete(f"{SUBNETS}/192.0.0.0-22")
        node.start_daemon()
        lab.wait(node.is_ready, START_S, what="the node to be ready")
        assert node.subnet_env()["FLANNEL_SUBNET"] == "192.0.3.1/24"
        assert before in node.exec(["ip", "route"]).stdout
        assert lab.etcd.get(wrong) is not None, "a reservation is its author's"

        # While it runs the containers keep their subnet; it is said.
        node.exec(["ip", "link", "add", "link", "eth0", "name", "lan0", "type", "macvlan"])
        node.exec(["ip", "addr", "add", "192.0.3.9/25", "dev", "lan0"])
        node.exec(["ip", "link", "set", "lan0", "up"])

        def codes() -> set[str]:
            shown = node.exec(["pyflannel", "status", "--json"], check=False).stdout
            return {one["code"] for one in json.loads(shown)["problems"]}

        lab.wait(lambda: "PF136" in codes(), 15, what="the status to say so")
        assert node.subnet_env()["FLANNEL_SUBNET"] == "192.0.3.1/24"
        node.stop_daemon()

        # Then nothing is left for it.
        node.start_daemon()
        assert node.wait_exit(timeout=START_S) == 78
        assert "192.0.3.9/25 of lan0" in node.log()
        assert lab.etcd.get(f"{SUBNETS}/192.0.3.0-24") is not None, "nothing better was to be had"


USES = """
ip link add link docker0 name shim type macvlan mode bridge
ip addr add {net}.254/24 dev shim
ip addr add {net}.249/32 dev lo
ip link add router type veth peer name router-pod
ip addr add {net}.253/24 dev router
for device in shim router; do ip link set $device up; done
"""
"""What people put beside docker's bridge: the host's way to containers of a macvlan network, a
service for all containers on `lo`, a router for some."""


def test_a_restart_keeps_the_subnet_even_if_it_is_in_use():
    spec = LabSpec(nodes=2, backend="vxlan", name="own-uses")
    with Lab(spec) as lab:
        node = lab.node(1)
        subnet = node.subnet_env()["FLANNEL_SUBNET"]
        node.exec(["sh", "-ec", USES.format(net=subnet.rpartition(".")[0])])
        for end in (node.stop_daemon, node.kill):
            end()
            node.start_daemon()
            lab.wait(node.is_ready, START_S, what="the node to be ready again")
            assert node.subnet_env()["FLANNEL_SUBNET"] == subnet
        found = json.loads(node.exec(["pyflannel", "status", "--json"], check=False).stdout)
        assert not [one for one in found["problems"] if one["code"] == "PF136"]
        lab.wait(lambda: lab.ping_all(count=1).ok, 15, what="all pods")


def test_a_peer_in_the_way_takes_another_subnet_as_its_problem_says():
    with Lab(LabSpec(nodes=2, backend="host-gw", name="peer-overlap")) as lab:
        first, second = lab.nodes
        former = second.subnet_env()["FLANNEL_SUBNET"]
        network = former.replace(".1/24", ".0/24")
        first.exec(["ip", "link", "add", "lan0", "type", "bridge"])
        first.exec(["ip", "addr", "add", former.replace(".1/24", ".77/25"), "dev", "lan0"])
        first.exec(["ip", "link", "set", "lan0", "up"])

        def problem() -> str:
            shown = first.exec(["pyflannel", "status", "--json"], check=False).stdout
            found = [one for one in json.loads(shown)["problems"] if one["code"] == "PF133"]
            return found[0]["text"] if found else ""

        lab.wait(problem, 20, what="a peer that is left out")
        way = "stop pyflanneld there, `pyflannel cleanup`, delete its lease, start it again"
        assert way in problem()
        second.stop_daemon()
        second.exec(["pyflannel", "cleanup"])
        lab.etcd.delete(f"{SUBNETS}/{network.replace('/', '-')}")
        second.start_daemon()
        lab.wait(second.is_ready, START_S, what="the peer to be ready")
        assert second.subnet_env()["FLANNEL_SUBNET"] != former
        lab.wait(lambda: not problem(), 20, what="the end of the problem")
