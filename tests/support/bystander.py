"""A node of a lab whose machine is changed, and what of its overlay must not change with it."""

from __future__ import annotations

import json

from pyflannel.lab import Lab, StoredKey
from pyflannel.lab.ping import ping_all

DUAL_STACK = {
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
        return json.loads(self.stored().value)

    def stored(self) -> StoredKey:
        """The same with its revision and its etcd lease."""
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
        before, mtu = self.devices(), 1500 - self.probes
        for wanted in (mtu, 1500):
            seen = self.followed()
            self.do(f"ip link set dev eth0 mtu {wanted}")
            self.lab.wait(lambda seen=seen: self.followed() > seen, 5, what="a look")
        self.lab.wait(lambda: self.devices() == before, 5, what="the devices as they were")
        assert f"mtu={mtu}" in self.node.log()

    def stays_through(self, script: str) -> None:
        """Does something to the node; all of the overlay is the same afterwards."""
        stored, devices, followed = self.stored(), self.devices(), self.followed()
        self.do(script)
        for version in (4, 6):
            assert self.lab.ping_all(count=10, version=version).ok
        assert self.devices() == devices
        self.has_looked()
        assert self.stored().value == stored.value
        assert self.stored().mod_revision == stored.mod_revision
        assert self.followed() == followed + 2, "nothing but the two looks"
        assert self.problem() == ""

    def problem(self) -> str:
        """What the status says about the underlay."""
        shown = self.node.exec(["pyflannel", "status", "--json"], check=False).stdout
        about = [
            one["text"] for one in json.loads(shown)["problems"] if one["subject"] == "underlay"
        ]
        return " ".join(about)

    def pings_within(self, seconds: float) -> None:
        """All pairs answer so soon, in every family that the overlay has."""
        for version in (4, 6):
            pods = {n.pod.name: (n.pod, n.pod_address(version)) for n in self.lab.nodes}
            if None not in (address for _, address in pods.values()):
                result = ping_all(pods, count=1, deadline_s=seconds)
                assert result.ok, result
