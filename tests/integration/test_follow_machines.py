"""Machines that are rebuilt under a running daemon: the overlay goes where its address goes.

A bridge is put over the card, a macvlan takes the address, the card is renamed, DHCP takes the
address away and brings another one. The subnet stays in each case, and so does the daemon.
"""

from __future__ import annotations

import json

import pytest

from pyflannel.lab import Lab, LabSpec, injecting
from pyflannel.lab.spaces import ip_batch
from tests.support.bystander import DUAL_STACK, HEALED_S, Bystander

pytestmark = [pytest.mark.root, pytest.mark.slow]

BACKENDS = ["vxlan", "host-gw", "udp"]

TAKE_OVER = """
address del 192.0.2.1/24 dev {old}
address del 2001:db8::1/64 dev {old}
address add 192.0.2.1/24 dev {new}
address add 2001:db8::1/64 dev {new} nodad
route replace default via 192.0.2.254 dev {new}
route replace ::/0 via 2001:db8::254 dev {new}
"""
TO_BRIDGE = """
link add name br0 type bridge
link set br0 up
link set eth0 master br0
""" + TAKE_OVER.format(old="eth0", new="br0")
FROM_BRIDGE = (
    "link set eth0 nomaster\n" + TAKE_OVER.format(old="br0", new="eth0") + "link del br0\n"
)
TO_MACVLAN = """
link add link eth0 name mac0 type macvlan mode bridge
link set mac0 up
""" + TAKE_OVER.format(old="eth0", new="mac0")
FROM_MACVLAN = TAKE_OVER.format(old="mac0", new="eth0") + "link del mac0\n"


def underlay(bystander: Bystander) -> str:
    """The interface that the status names, also while a problem is there (exit code 1)."""
    shown = bystander.node.exec(["pyflannel", "status", "--json"], check=False).stdout
    return json.loads(shown)["underlay"]["interface"]


def moves_to(bystander: Bystander, batch: str, interface: str) -> None:
    """Rebuilds the machine; the overlay is on that interface soon, and nothing else differs."""
    files, value = bystander.node.subnet_env(), bystander.value()
    ip_batch(bystander.node.space, batch)
    bystander.lab.wait(
        lambda: underlay(bystander) == interface, HEALED_S, what=f"the overlay on {interface}"
    )
    bystander.pings_within(HEALED_S)
    assert bystander.node.subnet_env() == files
    assert bystander.value() == value
    assert bystander.problem() == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interface_made_of_the_card_carries_the_overlay_on(backend):
    """And the card itself again when that is taken down."""
    with Lab(LabSpec(nodes=2, backend=backend, name="madeof")) as lab:
        bystander = Bystander(lab)
        moves_to(bystander, TO_BRIDGE, "br0")
        moves_to(bystander, FROM_BRIDGE, "eth0")
        moves_to(bystander, TO_MACVLAN, "mac0")
        moves_to(bystander, FROM_MACVLAN, "eth0")


@pytest.mark.parametrize("args", [(), ("--iface=eth0",)], ids=["default route", "--iface"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_card_that_is_renamed_is_the_same_card(backend, args):
    spec = LabSpec(nodes=2, backend=backend, name="renamed", daemon_args=args)
    with Lab(spec) as lab:
        bystander = Bystander(lab)
        moves_to(bystander, "link set dev eth0 name lan0\n", "lan0")
        moves_to(bystander, "link set dev lan0 name eth0\n", "eth0")


def test_a_new_card_under_the_old_name_and_the_renamed_one_are_told_apart():
    """`--iface` names eth0; what is called that now has neither the cable nor the address."""
    spec = LabSpec(nodes=2, backend="vxlan", name="nameswap", daemon_args=("--iface=eth0",))
    with Lab(spec) as lab:
        bystander = Bystander(lab)
        moves_to(
            bystander,
            "link set dev eth0 name lan0\nlink add name eth0 type veth peer name nowhere\n"
            "link set eth0 up\nlink set nowhere up\naddress add 203.0.113.5/24 dev eth0\n",
            "lan0",
        )


def test_an_address_that_dhcp_takes_away_is_waited_for_or_its_successor_followed():
    with Lab(LabSpec(nodes=2, backend="vxlan", name="dhcp")) as lab:
        bystander = Bystander(lab)
        node = bystander.node
        subnet = node.subnet_env()
        bystander.do("ip addr del 192.0.2.1/24 dev eth0")
        lab.wait(lambda: "eth0 has lost its address 192.0.2.1" in bystander.problem(), 3)
        bystander.do("ip addr add 192.0.2.1/24 dev eth0 valid_lft 600 preferred_lft 300")
        bystander.do("ip route add default via 192.0.2.254")
        lab.wait(lambda: bystander.problem() == "", 3, what="the address again")
        bystander.pings_within(HEALED_S)
        assert bystander.value()["PublicIP"] == "192.0.2.1"
        assert bystander.followed() == 0

        bystander.do(
            "ip addr del 192.0.2.1/24 dev eth0\nip addr add 192.0.2.66/24 dev eth0\n"
            "ip route add default via 192.0.2.254"
        )
        lab.wait(lambda: bystander.value()["PublicIP"] == "192.0.2.66", 3, what="its successor")
        bystander.pings_within(HEALED_S)
        assert node.subnet_env() == subnet

        # The lease of the old one is given again.
        bystander.do(
            "ip addr del 192.0.2.66/24 dev eth0\nip addr add 192.0.2.1/24 dev eth0\n"
            "ip route replace default via 192.0.2.254"
        )
        lab.wait(lambda: bystander.value()["PublicIP"] == "192.0.2.1", 3, what="the first again")
        bystander.pings_within(HEALED_S)


BESIDE = {
    "a next-hop object": """
route del default
nexthop add id 5 via 192.0.2.254 dev eth0
route add default nhid 5
""",
    "two default routes": """
link add name eth1 type veth peer name nowhere
link set eth1 up
link set nowhere up
address add 198.51.100.9/24 dev eth1
route add default via 198.51.100.254 dev eth1 metric 700
""",
    "policy routes": """
tuntap add mode tun name tun7
link set tun7 up
address add 100.64.9.1/32 dev tun7
route add default dev tun7 table 52
rule add pref 5270 to 198.51.100.0/24 table 52
""",
    "a default route through flannel0": """
tuntap add mode tun name flannel0
link set flannel0 up
address add 10.0.77.0/32 dev flannel0
route add default dev flannel0 metric 1
route replace default via 192.0.2.254 dev eth0 metric 100
route del default via 192.0.2.254 dev eth0 metric 0
""",
}


@pytest.mark.parametrize("what", BESIDE)
def test_the_start_finds_the_card_beside_other_devices(what):
    spec = LabSpec(nodes=2, backend="vxlan", name="startbeside", start_daemons=False)
    with Lab(spec) as lab:
        ip_batch(lab.node(1).space, BESIDE[what])
        for node in lab.nodes:
            node.start_daemon()
        lab.wait_ready()
        for node in lab.nodes:
            node.attach_pod()
        bystander = Bystander(lab)
        assert bystander.value()["PublicIP"] == "192.0.2.1"
        assert bystander.followed() == 0


def test_flannels_own_device_is_refused_as_an_underlay():
    spec = LabSpec(nodes=1, backend="vxlan", name="ownunderlay", start_daemons=False)
    with Lab(spec) as lab:
        node = lab.node(1)
        ip_batch(
            node.space,
            "tuntap add mode tun name flannel0\nlink set flannel0 up\n"
            "address add 10.0.77.0/32 dev flannel0\n",
        )
        node.start_daemon(["--iface=flannel0"])
        assert node.wait_exit(timeout=10) == 78
        assert "flannel0 is a device of flannel's own" in node.log()


@pytest.mark.parametrize("what", ["another card", "another MAC"])
@pytest.mark.parametrize("backend", ["host-gw", "vxlan"])
def test_neighbours_learn_of_another_mac_of_the_ipv6_address_at_once(backend, what):
    """They believe the one they know for half a minute, and as long the node would be dead."""
    config = {**DUAL_STACK, "Backend": {"Type": backend}}
    with Lab(LabSpec(nodes=3, config=config, name="newmac")) as lab:
        bystander = Bystander(lab)
        assert lab.ping_all(version=6).ok
        reachable = lab.node(2).exec(["ip", "-6", "neigh", "show", "2001:db8::1"]).stdout
        assert "lladdr" in reachable
        if what == "another card":
            injecting.replace_underlay(bystander.node, lab.switch)
        else:
            bystander.do("ip link set dev eth0 address 02:00:00:00:00:77")
            bystander.do("ip -6 route replace ::/0 via 2001:db8::254 dev eth0")
        # The new card's own first question to a peer goes unheard now and then, and the kernel puts
        # the next after a second or two.
        bystander.pings_within(HEALED_S + 4)
