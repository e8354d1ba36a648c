"""Another network config and a restart: the device is made to fit, nothing stands in its way."""

from __future__ import annotations

import json

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG_KEY = "/coreos.com/network/config"


def restart(lab: Lab, backend: dict[str, object]) -> None:
    """All nodes with another backend; back when all pods reach each other."""
    for node in lab.nodes:
        node.stop_daemon()
    lab.etcd.put(CONFIG_KEY, json.dumps({"Network": "10.0.0.0/16", "Backend": backend}))
    for node in lab.nodes:
        node.start_daemon()
    for node in lab.nodes:
        lab.wait(node.is_ready, 15, what=node.name)
    lab.wait(lambda: lab.ping_all(count=1).ok, 5, what=f"pings with {backend}")


def peer_routes(node) -> list[str]:
    """What leads into the overlay, but for the pods of the node itself."""
    lines = node.exec(["ip", "route", "show", "root", "10.0.0.0/16"]).stdout.splitlines()
    return sorted(line.strip() for line in lines if "docker0" not in line)


def vxlan(node, device: str) -> tuple[object, ...]:
    (link,) = json.loads(node.exec(["ip", "-j", "-d", "link", "show", device]).stdout)
    data = link["linkinfo"]["info_data"]
    return (link["mtu"], link["address"], data["port"], data["learning"], bool(data.get("gbp")))


def test_each_setting_of_vxlan_reaches_a_device_that_is_there():
    with Lab(LabSpec(nodes=2, backend="vxlan", name="settings")) as lab:
        node, peer = lab.nodes
        _, mac, *_ = vxlan(node, "flannel.1")
        for settings, wanted in (
            ({"Port": 4789}, (1450, mac, 4789, False, False)),
            ({"GBP": True}, (1450, mac, 8472, False, True)),
            ({"Learning": True}, (1450, mac, 8472, True, False)),
            ({"MTU": 1400}, (1350, mac, 8472, False, False)),
        ):
            restart(lab, {"Type": "vxlan", **settings})
            assert vxlan(node, "flannel.1") == wanted
            assert node.subnet_env()["FLANNEL_MTU"] == str(wanted[0])

        # Another VNI is another device. The routes through the former one go, also of peers that
        # left meanwhile; and those of vxlan would overrule that of udp.
        subnet = peer.subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/")
        gone = ["10.0.200.0/24", "via", "10.0.200.0", "dev", "flannel.1", "onlink"]
        node.exec(["ip", "route", "add", *gone])
        restart(lab, {"Type": "vxlan", "VNI": 5})
        wanted_route = f"{subnet} via {subnet.partition('/')[0]} dev flannel.5 onlink"
        lab.wait(lambda: peer_routes(node) == [wanted_route], 5, what="the routes of the new VNI")
        restart(lab, {"Type": "udp"})
        lab.wait(lambda: peer_routes(node) == ["10.0.0.0/16 dev flannel0"], 5, what="udp's route")
        restart(lab, {"Type": "host-gw"})
        lab.wait(
            lambda: peer_routes(node) == [f"{subnet} via {peer.address} dev eth0"],
            5,
            what="the route of host-gw",
        )
        restart(lab, {"Type": "udp"})
        lab.wait(lambda: peer_routes(node) == ["10.0.0.0/16 dev flannel0"], 5, what="udp's route")


@pytest.mark.parametrize("wider", ["10.0.0.0/16", "10.0.0.0/15"])
def test_a_node_that_waits_for_a_subnet_follows_a_wider_config(wider):
    """It needs no restart, whether more of the network may be leased or the network has grown."""
    with Lab(LabSpec(nodes=1, backend="vxlan", name="widened")) as lab:
        only = lab.node(1).subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0")
        full = {"Network": "10.0.0.0/16", "SubnetMin": only, "SubnetMax": only}
        lab.etcd.put(CONFIG_KEY, json.dumps(full | {"Backend": {"Type": "vxlan"}}))
        node = lab.add_node(start=False)
        node.start_daemon()
        lab.wait(lambda: "out of subnets" in node.log(), 10, what="the waiting node")
        config = {"Network": wider, "Backend": {"Type": "vxlan", "VNI": 7}}
        lab.etcd.put(CONFIG_KEY, json.dumps(config))
        # 2 s for the subnet; the rest is for device, rules and files on a busy machine.
        lab.wait(node.is_ready, 4, what="the subnet")
        assert node.subnet_env()["FLANNEL_NETWORK"] == wider
        assert vxlan(node, "flannel.7")


DUAL = {"EnableIPv6": True, "IPv6Network": "fd00:10::/48", "Backend": {"Type": "vxlan"}}
NFTABLES = {"EnableNFTables": True}
OVERLAYS = {
    "vxlan dual": DUAL,
    "vxlan dual nftables": DUAL | NFTABLES,
    "host-gw to nftables": {"Backend": {"Type": "host-gw"}},
    "udp ebpf from nftables": {"Backend": {"Type": "udp"}} | NFTABLES,
    "udp native nftables": {"Backend": {"Type": "udp"}} | NFTABLES,
    "ipip": {"Backend": {"Type": "ipip"}},
}
MANAGER_LATER = {"host-gw to nftables": True, "udp ebpf from nftables": False}
"""Where the manager of the rules changes together with the network: whether it is nftables."""


def everywhere(node) -> str:
    """All that could name a network."""
    commands = (
        "ip address; ip -6 address; ip route; ip -6 route; ip neigh show nud all;"
        "ip -6 neigh show nud all; bridge fdb show; iptables-save; ip6tables-save;"
        "nft list ruleset;"
        "cat /run/flannel/subnet.env /run/docker_opts.env"
    )
    return node.exec(["sh", "-c", commands]).stdout


def vteps(node) -> list[str]:
    """The MACs of its VTEPs, which are in the other nodes' FDBs."""
    listed = json.loads(node.exec(["ip", "-j", "-d", "link"]).stdout)
    return [
        link["address"] for link in listed if link.get("linkinfo", {}).get("info_kind") == "vxlan"
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.guest] if name == "ipip" else []) for name in OVERLAYS],
)
def test_of_a_former_network_nothing_stays(name):
    """Also of one peer that is not started again, whose lease lives on."""
    if name == "ipip":
        need_devices("ipip")
    former = {"Network": "192.168.0.0/16", **OVERLAYS[name]}
    present = {**former, "Network": "172.16.0.0/16"}
    if name in MANAGER_LATER:
        present["EnableNFTables"] = MANAGER_LATER[name]
    if "IPv6Network" in former:
        present["IPv6Network"] = "fd00:20::/48"
    spec = LabSpec(
        nodes=3,
        config=former,
        name=f"former-{name.replace(' ', '-')}",
        datapath=name.split()[1] if name.startswith("udp") else "",
        daemon_args=("--ip-masq", "--ip-blackhole-route", "--iptables-resync=1"),
    )
    with Lab(spec) as lab:
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        nodes, gone = lab.nodes[:2], ["192.168.", "fd00:10:", *vteps(lab.nodes[2])]
        for node in nodes:
            assert all(mac in everywhere(node) for mac in gone[2:])
        # The containers' bridge is not ours: what made it gives it another address, or none.
        for node in lab.nodes:
            node.exec(["ip", "link", "del", "docker0"])
        for node in nodes:
            lab.wait(lambda n=node: "blackhole" in everywhere(n), 5, what="the blackhole route")
        for node in lab.nodes:
            node.stop_daemon()
        lab.etcd.put(CONFIG_KEY, json.dumps(present))
        for node in nodes:
            node.start_daemon()
        for node in nodes:
            lab.wait(node.is_ready, 15, what=node.name)
            lab.wait(lambda n=node: "172.16." in everywhere(n), 5, what="the present network")
            for text in gone:
                lab.wait(lambda n=node, t=text: t not in everywhere(n), 5, what=f"no {text}")
