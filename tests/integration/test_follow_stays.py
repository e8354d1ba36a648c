"""The node stays where it is: what comes beside its underlay is no reason to leave it.

What a machine gets while a daemon runs (a VPN with a better default route, a second address, a
bridge, a virtual address) is done to one node of two; the lease, the tunnel and the packets must
not notice. And what the overlay had to leave, it goes back to.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.ping import ping_all
from pyflannel.lab.spaces import ip_batch
from tests.support.bystander import DUAL_STACK, HEALED_S, Bystander

pytestmark = [pytest.mark.root, pytest.mark.slow]


@pytest.fixture(scope="module")
def shared() -> Iterator[Bystander]:
    with Lab(LabSpec(nodes=2, config=DUAL_STACK, name="stays")) as lab:
        yield Bystander(lab)


VPN = """
ip link add tun7 type veth peer name t7p
ip link set tun7 up
ip link set t7p up
ip addr add 172.16.9.1/32 dev tun7
ip addr add fd99::1/128 dev tun7 nodad
ip route add default dev tun7 metric 1
ip -6 route add ::/0 dev tun7 metric 1
"""

TUN = """
ip tuntap add mode tun name tun7
ip link set tun7 up
ip addr add 100.64.9.1/32 dev tun7
"""

BESIDE = {
    "a VPN takes the default route": (
        f"""
ip route replace default via 192.0.2.254 dev eth0 metric 100
ip route del default via 192.0.2.254 dev eth0 metric 0
{VPN}
""",
        """
ip link del tun7
ip route replace default via 192.0.2.254 dev eth0
ip route del default via 192.0.2.254 dev eth0 metric 100
""",
    ),
    "the default route goes": (
        "ip route del default; ip -6 route del ::/0",
        "ip route add default via 192.0.2.254; ip -6 route add ::/0 via 2001:db8::254",
    ),
    "a second IPv6 address, which the kernel lists first": (
        "ip addr add 2001:db8::5:1/64 dev eth0 nodad",
        "ip addr del 2001:db8::5:1/64 dev eth0",
    ),
    "the address is dynamic and a permanent one comes": (
        """
ip addr change 192.0.2.1/24 dev eth0 valid_lft 600 preferred_lft 600
ip addr add 192.0.2.200/24 dev eth0
""",
        """
ip addr del 192.0.2.200/24 dev eth0
ip addr change 192.0.2.1/24 dev eth0 valid_lft forever preferred_lft forever
""",
    ),
    "a virtual address of keepalived": (
        "ip addr add 192.0.2.200/32 dev eth0",
        "ip addr del 192.0.2.200/32 dev eth0",
    ),
    "a virtual address of kube-vip, on loopback": (
        "ip addr add 192.0.2.201/32 dev lo",
        "ip addr del 192.0.2.201/32 dev lo",
    ),
    "the address is renewed": (
        "ip addr change 192.0.2.1/24 dev eth0 valid_lft 3600 preferred_lft 1800",
        "ip addr change 192.0.2.1/24 dev eth0 valid_lft forever preferred_lft forever",
    ),
    "the address is taken away and set again": (
        """
ip -batch - <<END
addr del 192.0.2.1/24 dev eth0
addr add 192.0.2.1/24 dev eth0 valid_lft 3600 preferred_lft 1800
route add default via 192.0.2.254
END
""",
        "ip addr change 192.0.2.1/24 dev eth0 valid_lft forever preferred_lft forever",
    ),
    "a VPN covers everything with two halves": (
        f"""
{TUN}
ip route add 192.0.2.254/32 dev eth0
ip route add 0.0.0.0/1 dev tun7
ip route add 128.0.0.0/1 dev tun7
""",
        "ip link del tun7; ip route del 192.0.2.254/32 dev eth0",
    ),
    "a VPN with policy routes and a table of its own": (
        f"""
{TUN}
ip rule add pref 5210 fwmark 0x80000/0xff0000 table main
ip rule add pref 5230 fwmark 0x80000/0xff0000 table default
ip rule add pref 5250 fwmark 0x80000/0xff0000 type unreachable
ip rule add pref 5270 table 52
ip route add 100.64.0.0/10 dev tun7 table 52
ip route add 198.51.100.0/24 dev tun7 table 52
""",
        """
for pref in 5210 5230 5250 5270; do ip rule del pref $pref; done
ip link del tun7
""",
    ),
    "a VPN that takes all but what is near": (
        f"""
{TUN}
ip route add default dev tun7 table 51820
ip rule add pref 32764 not fwmark 0xca6c table 51820
ip rule add pref 32763 table main suppress_prefixlength 0
""",
        "ip rule del pref 32763; ip rule del pref 32764; ip link del tun7",
    ),
    "a macvlan with an address and the default route": (
        """
ip link add link eth0 name mac0 type macvlan mode bridge
ip link set mac0 up
ip addr add 192.0.2.111/24 dev mac0 metric 500
ip route add default via 192.0.2.253 dev mac0 metric 5 onlink
ip route add ::/0 dev mac0 metric 5
""",
        "ip link del mac0",
    ),
    "a bridge of somebody's virtual machines": (
        """
ip link add name virbr0 type bridge
ip addr add 192.168.122.1/24 dev virbr0
ip link set virbr0 up
""",
        "ip link del virbr0",
    ),
    "the default route is a next-hop object": (
        """
ip nexthop add id 5 via 192.0.2.254 dev eth0
ip route replace default nhid 5
""",
        "ip route replace default via 192.0.2.254 dev eth0; ip nexthop del id 5",
    ),
    "the default route has two next hops, and the better one leads elsewhere": (
        """
ip link add tun7 type veth peer name t7p
ip link set tun7 up
ip link set t7p up
ip route replace default nexthop via 192.0.2.254 dev eth0 nexthop dev tun7 weight 9
ip nexthop add id 8 dev tun7
ip nexthop add id 9 via 192.0.2.254 dev eth0
ip nexthop add id 10 group 8,9/9,1
ip route add default nhid 10 metric 50
""",
        """
ip link del tun7
ip route del default metric 50 2>/dev/null || true
ip nexthop flush
ip route replace default via 192.0.2.254 dev eth0
""",
    ),
    "the IPv6 address is deprecated": (
        "ip addr change 2001:db8::1/64 dev eth0 valid_lft forever preferred_lft 0",
        "ip addr change 2001:db8::1/64 dev eth0 valid_lft forever preferred_lft forever",
    ),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_comes_beside_the_underlay_changes_nothing(shared, what):
    done, undone = BESIDE[what]
    shared.stays_through(done)
    shared.stays_through(undone)


SECOND_CARD = """
link add name n1b type veth peer name eth1 netns {pid}
link set dev n1b master underlay
link set dev n1b up
"""


@pytest.mark.parametrize("broken", ["set dev eth0 down", "carrier"])
def test_what_is_really_gone_is_left_and_gone_back_to(broken):
    """eth1 leads to the same switch, with an address and a default route of its own."""
    with Lab(LabSpec(nodes=2, backend="vxlan", name="comesback")) as lab:
        node = lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        ip_batch(lab.switch, SECOND_CARD.format(pid=node.space.holder.pid))
        ip_batch(
            node.space,
            "link set dev eth1 up\naddress add 192.0.2.101/24 dev eth1 metric 500\n"
            "route add default via 192.0.2.254 dev eth1 metric 500\n",
        )
        bystander = Bystander(lab)
        assert bystander.value()["PublicIP"] == node.address
        subnet = node.subnet_env()

        if broken == "carrier":
            # The kernel keeps the routes of an interface without carrier.
            node.unplug()
            node.exec(["ip", "route", "del", "192.0.2.0/24", "dev", "eth0"])
        else:
            node.exec(["ip", "link", *broken.split()])
        lab.wait(lambda: bystander.value()["PublicIP"] == "192.0.2.101", 5, what="eth1 taken")
        assert ping_all(_pods(lab), count=2, deadline_s=HEALED_S).ok
        assert bystander.problem() == ""

        if broken == "carrier":
            node.exec(["ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "src", node.address])
            node.plug_in()
        else:
            node.exec(["ip", "link", "set", "dev", "eth0", "up"])
        lab.wait(lambda: bystander.value()["PublicIP"] == node.address, 5, what="eth0 again")
        assert ping_all(_pods(lab), count=2, deadline_s=HEALED_S).ok
        assert node.subnet_env() == subnet


def _pods(lab: Lab):
    return {n.pod.name: (n.pod, n.pod_address()) for n in lab.nodes}


def test_without_anywhere_to_go_it_waits_and_says_what_is_wrong():
    with Lab(LabSpec(nodes=2, backend="vxlan", name="unplugged")) as lab:
        bystander = Bystander(lab)
        before = bystander.value()
        bystander.node.unplug()
        lab.wait(lambda: "eth0 has no carrier" in bystander.problem(), 3, what="the problem")
        bystander.node.plug_in()
        lab.wait(lambda: not bystander.problem(), 3, what="all well again")
        assert lab.ping_all().ok
        assert bystander.value() == before
        assert bystander.followed() == 0
