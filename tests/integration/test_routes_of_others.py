"""Whole daemons among routes of others: none is replaced, and what is left out is said.

What one key in the store can do to every node at once, and what a network that is already in use
does to the node that it is configured on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

SUBNETS = "/coreos.com/network/subnets"
UNDERLAY = "192.0.2.0/24"
DOCKER = "172.17.0.0/16"
WITHIN_S = 5
START_S = 20
"""For a start with every data path, on a busy machine; nothing is claimed about its length here."""


def route(node, dst: str) -> str:
    """The lines of `ip route` for exactly a destination."""
    return node.exec(["ip", "route", "show", "exact", dst]).stdout.strip()


def ignored(node) -> dict[str, str]:
    done = node.exec(["pyflannel", "status", "--json"], check=False)
    if done.returncode not in (0, 1):  # 1: it works, with problems
        return {}
    return (json.loads(done.stdout)["network"] or {}).get("ignored", {})


@pytest.mark.parametrize("datapath", ["python", "native", "ebpf"])
def test_a_connected_network_stays_where_it_is(datapath):
    """docker's own network, as its tutorials have it, and flannel's for one with udp."""
    config = {"Network": DOCKER, "Backend": {"Type": "udp"}}
    spec = LabSpec(
        nodes=1, config=config, name=f"harm-{datapath}", datapath=datapath, start_daemons=False
    )
    with Lab(spec) as lab:
        (node,) = lab.nodes
        node.exec(["ip", "link", "add", "lan0", "type", "bridge"])
        node.exec(["ip", "addr", "add", "172.17.0.1/16", "dev", "lan0"])
        node.exec(["ip", "link", "set", "lan0", "up"])
        before = route(node, DOCKER)
        assert "dev lan0 proto kernel" in before
        node.start_daemon()
        lab.wait(lambda: "this node" in ignored(node), START_S, what="the status to say so")
        assert "172.17.0.1/16 of lan0" in ignored(node)["this node"]
        assert "172.17.0.1/16 of lan0" in node.log()
        assert route(node, DOCKER) == before
        node.stop_daemon()
        assert route(node, DOCKER) == before
        node.start_daemon()
        lab.wait(lambda: "this node" in ignored(node), START_S, what="the same again")
        node.exec(["ip", "link", "del", "lan0"])
        lab.wait(
            lambda: "dev flannel0" in route(node, DOCKER), WITHIN_S, what="the overlay's route"
        )
        assert "this node" not in ignored(node)


@pytest.fixture(scope="module", params=["vxlan", "host-gw"])
def lab(request) -> Iterator[Lab]:
    config = {
        "Network": "192.0.0.0/16",
        "SubnetMin": "192.0.10.0",
        "SubnetMax": "192.0.30.0",
        "Backend": {"Type": request.param},
    }
    with Lab(LabSpec(nodes=2, config=config, name=f"harm-{request.param}")) as lab:
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        yield lab


def lease_of(lab: Lab) -> str:
    """A peer's record, as the backend of this lab wants it."""
    backend = json.loads(lab.etcd.get("/coreos.com/network/config").value)["Backend"]["Type"]
    value = {"PublicIP": "192.0.2.77", "PublicIPv6": None, "BackendType": backend}
    if backend == "vxlan":
        value["BackendData"] = {"VNI": 1, "VtepMAC": "0a:00:00:00:00:77"}
    return json.dumps(value)


@pytest.mark.parametrize("subnet", ["192.0.0.0/22", "192.0.2.0/24", "192.0.2.128/25"])
def test_one_key_does_not_cut_the_nodes_off(lab, subnet):
    """More than the underlay, exactly it, and the half of it that the store is in."""
    before = [node.exec(["ip", "route"]).stdout for node in lab.nodes]
    key = f"{SUBNETS}/{subnet.replace('/', '-')}"
    lab.etcd.put(key, lease_of(lab))
    for node in lab.nodes:
        lab.wait(lambda n=node: subnet in ignored(n), WITHIN_S, what="the status to name it")
    assert [node.exec(["ip", "route"]).stdout for node in lab.nodes] == before
    assert lab.ping_all(count=1).ok
    lab.etcd.delete(key)
    for node in lab.nodes:
        lab.wait(lambda n=node: not ignored(n), WITHIN_S, what="its end to be seen")


def test_half_of_the_own_subnet_is_not_given_away(lab):
    """This node goes on reaching its own pods. (The other nodes follow the longer prefix.)"""
    node = lab.nodes[0]
    own = node.subnet_env()["FLANNEL_SUBNET"]
    half = own.replace(".1/24", ".0/25")
    key = f"{SUBNETS}/{half.replace('/', '-')}"
    lab.etcd.put(key, lease_of(lab))
    try:
        lab.wait(lambda: half in ignored(node), WITHIN_S, what="the status to name it")
        assert route(node, half) == ""
        assert "bytes from" in node.exec(["ping", "-c1", "-W2", node.pod_address()]).stdout
    finally:
        lab.etcd.delete(key)


def test_a_routing_daemons_route_to_a_peer_stays(lab):
    node, peer = lab.nodes
    subnet = peer.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")
    node.exec(["ip", "route", "replace", subnet, "via", peer.address, "proto", "bird"])
    theirs = route(node, subnet)
    lab.wait(lambda: subnet in ignored(node), WITHIN_S, what="the status to name it")
    assert "proto bird" in ignored(node)[subnet]
    assert route(node, subnet) == theirs
    node.exec(["ip", "route", "del", subnet])
    lab.wait(lambda: lab.ping_all(count=1).ok, WITHIN_S, what="our route again")
    assert "proto bird" not in route(node, subnet)
