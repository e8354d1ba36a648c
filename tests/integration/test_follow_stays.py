"""The node stays where it is: what comes beside its underlay is no reason to leave it.

What a machine gets while a daemon runs (a VPN with a better default route, a second address, a
bridge, a virtual address) is done to one node of two; the lease, the tunnel and the packets must
not notice. And what the overlay had to leave, it goes back to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.ping import ping_all

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {
    "Network": "10.0.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10::/48",
    "Backend": {"Type": "vxlan"},
}
FOLLOWING = "external interface changed, following it"
HEALED_S = 2.0
"""Within this time a node whose underlay has really gone is reached again."""


class Bystander:
    """A lab of two dual-stack nodes; sees what must not change on the first one."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.node = lab, lab.node(1)
        lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
        self.probes = 0

    def do(self, script: str) -> None:
        """Runs shell lines on the node, in one shell."""
        self.node.exec(["sh", "-e", "-s"], stdin=script + "\ntrue\n")

    def value(self) -> dict[str, object]:
        """The node's lease."""
        return json.loads(self._stored().value)

    def _stored(self):
        subnet = self.node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24")
        (found,) = [one for one in self.lab.etcd.leases() if f"/{subnet}" in one.key]
        return found

    def devices(self) -> list[tuple[object, ...]]:
        """The overlay's devices: made anew they have other numbers."""
        found = json.loads(
            self.node.exec(["ip", "-j", "-d", "link", "show", "type", "vxlan"]).stdout
        )
        keys = ("id", "link", "local", "local6", "port")
        return [
            (
                link["ifname"],
                link["ifindex"],
                link["mtu"],
                *(link["linkinfo"]["info_data"].get(key) for key in keys),
            )
            for link in found
        ]

    def followed(self) -> int:
        """How often the daemon has moved the overlay."""
        return self.node.log().count(FOLLOWING)

    def has_looked(self) -> None:
        """Returns when the daemon has looked at its underlay after all that was done before.

        A new MTU is followed in any case, so it tells that the look is over.
        """
        self.probes += 1
        mtu = 1500 - self.probes
        before = self.followed()
        self.do(f"ip link set dev eth0 mtu {mtu}")
        self.lab.wait(lambda: f"mtu={mtu}" in self.node.log() and self.followed() > before, 5,
                      what="a look at the underlay")  # fmt: skip
        self.do("ip link set dev eth0 mtu 1500")
        self.lab.wait(lambda: self.followed() == before + 2, 5, what="the MTU as it was")
        assert "interface=eth0" in self.node.log(last=60)

    def stays_through(self, script: str) -> None:
        """Does something to the node; all of the overlay is the same afterwards."""
        stored, devices, followed = self._stored(), self.devices(), self.followed()
        self.do(script)
        for version in (4, 6):
            assert self.lab.ping_all(count=20, deadline=5, version=version).ok
        self.has_looked()
        assert self._stored().value == stored.value
        assert self._stored().mod_revision == stored.mod_revision
        assert self.devices() == devices
        assert self.followed() == followed + 2, "nothing but the two looks"
        assert self.problem() == ""

    def problem(self) -> str:
        """What the status says about the underlay."""
        shown = self.node.exec(["pyflannel", "status", "--json"], check=False).stdout
        return json.loads(shown)["problems"].get("underlay", "")

    def pings_within(self, seconds: float) -> None:
        """All pairs answer so soon, in both families."""
        for version in (4, 6):
            pods = {n.pod.name: (n.pod, n.pod_address(version)) for n in self.lab.nodes}
            result = ping_all(pods, count=1, deadline_s=seconds)
            assert result.ok, result


@pytest.fixture(scope="module")
def shared() -> Iterator[Bystander]:
    with Lab(LabSpec(nodes=2, config=CONFIG, name="stays")) as lab:
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
        from pyflannel.lab.spaces import ip_batch

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
