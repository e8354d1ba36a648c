"""Bonds, VLANs, VRFs and WireGuard over or beside the card that carries the overlay.

Kinds of device that many kernels lack; the guests of `make kernels` have them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.spaces import ip_batch
from tests.integration.test_follow_machines import underlay
from tests.support.bystander import DUAL_STACK, Bystander
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

BESIDE = {
    "vlan": """
ip link add link eth0 name eth0.5 type vlan id 5
ip link set eth0.5 up
ip addr add 203.0.113.1/24 dev eth0.5
ip route add default via 203.0.113.254 dev eth0.5 metric 1
""",
    "vrf": """
ip link add blue type vrf table 10
ip link set blue up
ip link add lan0 type veth peer name lan1
ip link set lan0 master blue
ip link set lan0 up
ip link set lan1 up
ip addr add 203.0.113.1/24 dev lan0
ip route add default via 203.0.113.254 dev lan0 table 10
""",
    "wireguard": """
ip link add wg0 type wireguard
ip link set wg0 up
ip addr add 100.64.9.1/32 dev wg0
ip route add default dev wg0 table 51820
ip rule add pref 32764 not fwmark 0xca6c table 51820
ip rule add pref 32763 table main suppress_prefixlength 0
""",
}
BOND = """
link add name bond0 type bond mode active-backup miimon 100
link set eth0 down
link set eth0 master bond0
link set bond0 up
address flush dev eth0
address add 192.0.2.1/24 dev bond0
address add 2001:db8::1/64 dev bond0 nodad
route replace default via 192.0.2.254 dev bond0
route replace ::/0 via 2001:db8::254 dev bond0
"""
MOVED_S = 20
"""Guests are slow; nothing is claimed here about how fast it is."""


@pytest.fixture
def bystander(request: pytest.FixtureRequest) -> Iterator[Bystander]:
    need_devices(request.param)
    with Lab(LabSpec(nodes=2, config=DUAL_STACK, name=f"stack-{request.param}")) as lab:
        yield Bystander(lab)


@pytest.mark.parametrize(
    ("bystander", "script"), BESIDE.items(), ids=list(BESIDE), indirect=["bystander"]
)
def test_one_beside_the_card_changes_nothing(bystander, script):
    bystander.stays_through(script)


@pytest.mark.parametrize("bystander", ["bond"], indirect=True)
def test_a_bond_made_of_the_card_is_followed(bystander):
    files, value = bystander.node.subnet_env(), bystander.value()
    ip_batch(bystander.node.space, BOND)
    bystander.lab.wait(lambda: underlay(bystander) == "bond0", MOVED_S, what="the overlay on it")
    bystander.pings_within(MOVED_S)
    assert bystander.node.subnet_env() == files
    assert bystander.value() == value
    assert bystander.problem() == ""
