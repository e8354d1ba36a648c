"""Whether segments can be joined at the card, and whose a FOU port is."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from pyflannel.datapath.ebpf import cardplan
from pyflannel.datapath.ebpf.cardplan import Surroundings, wanted_port
from pyflannel.kernel import xfrm
from pyflannel.kernel.fou import FouPort
from pyflannel.kernel.xfrm import Policy

HERE = IPv4Address("192.0.2.1")
OURS = wanted_port(HERE, 8285, 3)
BOLT = Policy(8, xfrm._selector(HERE, 8285), xfrm._PRIORITY, blocks=True)
IPSEC = Policy(16, xfrm._selector(HERE, 8285), 200_000, blocks=True)
FINE = Surroundings(linux=(6, 12), has_fou=True, kind="", can_step_aside=True)


def test_a_port_is_ours_by_its_bolt_and_by_nothing_else() -> None:
    assert cardplan.is_ours(OURS, [IPSEC, BOLT])
    assert not cardplan.is_ours(OURS, [])
    assert not cardplan.is_ours(OURS, [IPSEC])
    assert not cardplan.is_ours(OURS, [replace(BOLT, blocks=False)])
    assert not cardplan.is_ours(None, [BOLT])


@pytest.mark.parametrize(
    "other",
    [
        replace(OURS, port=8286),
        replace(OURS, protocol=47),
        replace(OURS, local=IPv4Address("192.0.2.2")),
        replace(OURS, local=None),
        replace(OURS, ifindex=0),
        replace(OURS, plain=False),
    ],
    ids=str,
)
def test_one_that_differs_is_not(other: FouPort) -> None:
    assert not cardplan.is_ours(other, [BOLT])


def test_only_ours_goes_and_what_is_kept_keeps_its_bolt() -> None:
    others = replace(OURS, port=5555)
    former = wanted_port(HERE, 8285, 2)
    left = ([others, former, OURS], [IPSEC, BOLT])
    assert cardplan.superfluous(*left, None) == ([former, OURS], [BOLT])
    assert cardplan.superfluous(*left, OURS) == ([former], [])
    assert cardplan.superfluous([others], [BOLT], None) == ([], [BOLT])


def test_nothing_is_in_the_way_on_a_card_or_beside_our_own_port() -> None:
    assert cardplan.obstacle(OURS, FINE) == ""
    assert cardplan.obstacle(OURS, replace(FINE, ports=(OURS,), policies=(BOLT,))) == ""
    assert cardplan.obstacle(OURS, replace(FINE, linux=(7, 3), kind="veth")) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"linux": (6, 11)}, "needs Linux 6.12"),
        ({"has_fou": False}, "modprobe fou"),
        ({"kind": "vlan"}, "below the external interface, a vlan"),
        ({"kind": "bond"}, "below the external interface, a bond"),
        ({"can_step_aside": False}, "CAP_NET_RAW"),
        ({"unchecked": ("net/ipv4/conf/all/disable_policy",)}, "all/disable_policy is set"),
        ({"policies": (BOLT, IPSEC)}, "IPsec"),
        ({"ports": (OURS,)}, "not ours"),
        ({"ports": (replace(OURS, local=None),), "policies": (BOLT,)}, "not ours"),
        ({"ports": (replace(OURS, ifindex=0),), "policies": (BOLT,)}, "not ours"),
        ({"ports": (replace(OURS, local=IPv4Address("192.0.2.2")),)}, "not ours"),
    ],
)
def test_what_is_in_the_way_is_said(changes: dict[str, object], says: str) -> None:
    assert says in cardplan.obstacle(OURS, replace(FINE, **changes))


def test_a_port_of_another_number_is_not() -> None:
    assert cardplan.obstacle(OURS, replace(FINE, ports=(replace(OURS, port=5555),))) == ""
