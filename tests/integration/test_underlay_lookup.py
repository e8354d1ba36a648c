"""The external interface, chosen in a network namespace with real links, addresses and routes."""

from __future__ import annotations

import asyncio
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.errors import InterfaceError
from pyflannel.core.ip import Family
from pyflannel.core.options import DaemonOptions
from pyflannel.kernel import lookup, netns
from pyflannel.kernel.netlink import KernelNetlink

pytestmark = pytest.mark.root

V4 = (Family.V4,)
V6 = (Family.V6,)
DUAL = (Family.V4, Family.V6)

LINKS = """
link set lo up
link add eth0 type veth peer name far0
link add eth1 mtu 9000 type veth peer name far1
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
addr add 192.0.2.1/24 dev eth0
addr add 192.0.2.7/24 dev eth0 valid_lft 600 preferred_lft 600
addr add 198.51.100.1/24 dev eth1
addr add 198.51.100.2/24 dev eth1
addr add 2001:db8::1/64 dev eth0 nodad
addr add 2001:db8::9/64 dev eth0 nodad valid_lft 600 preferred_lft 0
addr add 2001:db8:1::1/64 dev eth1 nodad
"""
DEFAULTS = """
route add default via 192.0.2.254
route add default via 2001:db8::fe
route add 203.0.113.0/24 via 198.51.100.254 src 198.51.100.2
"""


class Node:
    """A thread that lives in a network namespace of its own, which ends with it."""

    def __init__(self, commands):
        self._commands = commands

    def find(self, families, **options):
        """Chooses there; every call has a fresh namespace, so tests cannot disturb each other."""

        def live():
            netns.enter_new()
            subprocess.run(["ip", "-batch", "-"], input=self._commands, text=True, check=True)
            return asyncio.run(self._find(families, DaemonOptions(**options)))

        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(live).result(timeout=30)

    @staticmethod
    async def _find(families, options):
        netlink = KernelNetlink()
        try:
            return await lookup.find_interface(netlink, options, families, ours=KINDS.is_device)
        finally:
            await netlink.close()


@pytest.fixture
def node():
    return Node(LINKS + DEFAULTS)


@pytest.mark.parametrize(
    ("families", "options", "name", "address", "address6"),
    [
        (V4, {}, "eth0", "192.0.2.1", None),
        (V6, {}, "eth0", None, "2001:db8::1"),
        (DUAL, {}, "eth0", "192.0.2.1", "2001:db8::1"),
        (V4, {"iface": ("eth1",)}, "eth1", "198.51.100.1", None),
        (V4, {"iface": ("gone0", "198.51.100.2")}, "eth1", "198.51.100.2", None),
        (V4, {"iface_regex": (r"^198\.51\.100\.2$",)}, "eth1", "198.51.100.2", None),
        (DUAL, {"iface_regex": (r"th1$",)}, "eth1", "198.51.100.1", "2001:db8:1::1"),
        (V4, {"iface_can_reach": "203.0.113.5"}, "eth1", "198.51.100.2", None),
        (V6, {"iface_can_reach": "2001:db8:1::77"}, "eth1", None, "2001:db8:1::1"),
        (V4, {"public_ip": "198.51.100.1"}, "eth1", "198.51.100.1", None),
        (V6, {"public_ipv6": "2001:db8:1::1"}, "eth1", None, "2001:db8:1::1"),
    ],
)
def test_the_kernels_answers_lead_to_the_interface(
    node, families, options, name, address, address6
):
    found = node.find(families, **options).interface
    got = [str(a) if a is not None else None for a in (found.address, found.address6)]
    assert (found.name, *got) == (name, address, address6)
    assert found.mtu == (9000 if name == "eth1" else 1500)
    assert found.index > 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"iface": ("gone0",)}, "there is no such interface"),
        ({"iface_can_reach": "192.0.2.1"}, "this node itself"),
        ({"public_ip": "203.0.113.9"}, "no interface has the address 203.0.113.9"),
    ],
)
def test_what_leads_nowhere_lists_what_is_there(node, options, reason):
    with pytest.raises(InterfaceError, match=reason) as raised:
        node.find(V4, **options)
    assert "eth1 (198.51.100.1, 198.51.100.2" in str(raised.value)


def test_without_a_default_route_the_way_out_is_told():
    with pytest.raises(InterfaceError, match="unable to find an IPv4 default route"):
        Node(LINKS).find(V4)


def test_without_a_way_there_can_reach_says_so():
    with pytest.raises(InterfaceError, match="there is no route to it"):
        Node(LINKS).find(V4, iface_can_reach="203.0.113.5")


def test_a_default_route_with_several_next_hops_has_no_interface():
    hops = "route add default nexthop via 192.0.2.253 nexthop via 198.51.100.253\n"
    with pytest.raises(InterfaceError, match="could not determine interface"):
        Node(LINKS + hops).find(V4)


def test_of_two_default_routes_the_one_with_the_better_metric_counts():
    routes = (
        "route add default via 192.0.2.254 metric 200\n"
        "route add default via 198.51.100.254 metric 100\n"
    )
    assert Node(LINKS + routes).find(V4).interface.name == "eth1"
