"""Who is a peer: each way in which flannel v0.28.9 gets it wrong is here once."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network

import pytest

from pyflannel.core.ip import Family, SubnetKey
from pyflannel.core.kube.nodes import KubeNode, NodeTable
from pyflannel.core.lease import Changes, Identity, LeaseDeleted, LeasePut, LeaseTable, Snapshot

V4, V6 = Family.V4, Family.V6
NETWORK = IPv4Network("10.244.0.0/16")
NETWORKS = {V4: NETWORK, V6: IPv6Network("fd00:10::/32")}


def vtep(last: int) -> str:
    return f'{{"VNI":1,"VtepMAC":"02:00:00:00:00:{last:02x}"}}'


def node(number: int, *cidrs: str, uid: str = "", created: str = "", **changed) -> KubeNode:
    """A managed vxlan node; `changed` sets annotations (`_` for `-`), `None` leaves one out."""
    annotations = {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": vtep(number),
        "public-ip": f"192.0.2.{number}",
    }
    for key, value in changed.items():
        annotations.pop(key.replace("_", "-"), None)
        if value is not None:
            annotations[key.replace("_", "-")] = value
    return KubeNode(
        name=f"n{number}",
        uid=uid or f"uid-{number}",
        version=str(random.random()),
        created=created or f"2026-01-{number:02}T00:00:00Z",
        pod_cidrs=cidrs or (f"10.244.{number}.0/24",),
        annotations=annotations,
    )


class Peers:
    """What the agent makes of it: a node table with a lease table behind."""

    def __init__(self, *nodes: KubeNode, families=(V4,)) -> None:
        self.nodes = NodeTable("n1", {family: NETWORKS[family] for family in families})
        self.leases = LeaseTable(network=NETWORK, network6=NETWORKS[V6])
        self.leases.apply(self.nodes.replace(nodes))

    def put(self, changed: KubeNode) -> Changes:
        update = self.nodes.put(changed)
        self.leases.apply(update)
        return update

    def delete(self, name: str) -> None:
        self.leases.apply(self.nodes.delete(name))

    def list(self, *nodes: KubeNode) -> None:
        self.leases.apply(self.nodes.replace(nodes))

    @property
    def now(self) -> dict[str, str]:
        return {str(k.v4 or k.v6): str(v.attrs.public_ip) for k, v in self.leases.peers.items()}


def test_managed_nodes_with_a_podcidr_are_peers():
    peers = Peers(node(2), node(3, kube_subnet_manager="True"), node(4, kube_subnet_manager=None))
    assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
    assert dict(peers.nodes.troubles()) == {}


def test_a_heartbeat_changes_nothing():
    peers = Peers(node(2))
    assert peers.put(node(2)) == Changes((), 0)


def test_a_node_needs_neither_a_kubelet_nor_a_vni_to_be_a_peer():
    """As the dummy nodes of load balancers."""
    peers = Peers(node(2, backend_data='{"VtepMAC":"02:00:00:00:00:02"}'))
    assert peers.now == {"10.244.2.0/24": "192.0.2.2"}


def test_a_podcidr_that_comes_late_is_followed_though_no_annotation_changes():
    late = node(2)
    peers = Peers(KubeNode(name=late.name, uid=late.uid, annotations=late.annotations))
    assert "no podCIDR" in peers.nodes.trouble("n2")
    peers.put(late)
    assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
    assert peers.nodes.trouble("n2") == ""


def test_a_node_that_was_created_again_unseen_is_another_one():
    """Same name, same annotations, another podCIDR: flannel keeps the old route for good."""
    peers = Peers(node(2))
    peers.list(node(2, "10.244.9.0/24", uid="another"))
    assert peers.now == {"10.244.9.0/24": "192.0.2.2"}


def test_a_node_that_is_gone_from_a_list_is_no_peer_any_more():
    peers = Peers(node(2), node(3))
    peers.list(node(3))
    assert peers.now == {"10.244.3.0/24": "192.0.2.3"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kube_subnet_manager": None}, "kube-subnet-manager"),
        ({"kube_subnet_manager": "True"}, "kube-subnet-manager"),
        ({"public_ip": "not an ip"}, "public-ip"),
        ({"public_ip": None}, "public-ip"),
        ({"backend_data": "{"}, "backend-data"),
        ({"backend_data": "null"}, "backend-data"),
        ({"backend_data": None}, "backend-data"),
        ({"backend_data": "{}"}, "backend-data"),
    ],
)
def test_a_node_that_turns_bad_is_followed_as_it_was_until_its_object_is_gone(change, reason):
    peers = Peers(node(2), node(3))
    peers.put(node(2, **change))
    assert peers.now == {"10.244.2.0/24": "192.0.2.2", "10.244.3.0/24": "192.0.2.3"}
    assert reason in peers.nodes.trouble("n2")
    peers.list(node(2, **change), node(3))
    assert "10.244.2.0/24" in peers.now
    peers.delete("n2")
    assert peers.now == {"10.244.3.0/24": "192.0.2.3"}


@pytest.mark.parametrize("change", [{"public_ip": "x"}, {"kube_subnet_manager": None}])
def test_a_bad_node_of_a_new_object_is_no_peer(change):
    """Neither at a fresh start, nor when the node was created again."""
    peers = Peers(node(2, **change))
    assert peers.now == {}
    peers = Peers(node(2))
    peers.put(node(2, uid="another", **change))
    assert peers.now == {}


def test_a_node_that_changes_its_backend_is_followed():
    peers = Peers(node(2))
    peers.put(node(2, backend_type="host-gw", backend_data="null"))
    (lease,) = peers.leases.peers.values()
    assert lease.attrs.backend_type == "host-gw"


@pytest.mark.parametrize("cidr", ["192.0.2.0/24", "0.0.0.0/0", "10.0.0.0/8", "10.244.0.0/16"])
def test_nothing_outside_the_network_is_ever_routed(cidr):
    peers = Peers(node(2, cidr))
    assert peers.now == {}
    if cidr != str(NETWORK):  # which the lease table refuses
        assert "outside the network" in peers.nodes.trouble("n2")


@pytest.mark.parametrize("address", ["192.0.2.1", "198.51.100.7"])
def test_our_own_node_with_another_podcidr_is_no_peer_before_we_follow(address):
    peers = Peers(node(1), node(2))
    peers.leases.set_own(Identity.of(peers.leases._stored[SubnetKey(IPv4Network("10.244.1.0/24"))]))
    peers.delete("n1")
    peers.put(node(1, "10.244.9.0/24", uid="another", public_ip=address, backend_data=vtep(9)))
    assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
    assert peers.leases.new_rejections() == []
    peers.list(node(2), node(1, "10.244.9.0/24", uid="another", public_ip=address))
    assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
    assert peers.leases.new_rejections() == []


class TestOverlaps:
    def test_our_own_podcidr_is_no_peers(self):
        for cidr in ("10.244.1.0/24", "10.244.1.64/26", "10.244.0.0/23"):
            peers = Peers(node(2, cidr, created="2020"), node(1))
            own = peers.nodes.node("n1")
            assert own is not None
            assert [lease.key.v4 for lease in peers.nodes.snapshot().leases] == [
                IPv4Network("10.244.1.0/24")
            ]
            assert "this node's own" in peers.nodes.trouble("n2")

    def test_of_two_nodes_with_one_podcidr_the_older_has_it(self):
        for order in ((2, 3), (3, 2)):
            both = {2: node(2), 3: node(3, "10.244.2.0/24")}
            peers = Peers(*(both[number] for number in order))
            assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
            assert "overlaps that of n2" in peers.nodes.trouble("n3")

    def test_when_the_first_goes_the_second_has_it(self):
        """flannel takes the route of the second away."""
        peers = Peers(node(2), node(3, "10.244.2.0/24"))
        peers.delete("n2")
        assert peers.now == {"10.244.2.0/24": "192.0.2.3"}
        assert peers.nodes.trouble("n3") == ""

    def test_when_the_second_goes_nothing_changes(self):
        peers = Peers(node(2), node(3, "10.244.2.0/24"))
        peers.delete("n3")
        assert peers.now == {"10.244.2.0/24": "192.0.2.2"}

    def test_a_part_of_another_podcidr_is_refused(self):
        peers = Peers(node(2), node(3, "10.244.2.64/26"))
        assert peers.now == {"10.244.2.0/24": "192.0.2.2"}
        peers = Peers(node(2, created="2027"), node(3, "10.244.2.64/26"))
        assert peers.now == {"10.244.2.64/26": "192.0.2.3"}


class TestDualStack:
    @staticmethod
    def both(number: int, **changed) -> KubeNode:
        more = {
            "backend_v6_data": vtep(number + 100),
            "public_ipv6": f"2001:db8::{number}",
            **changed,
        }
        return node(number, f"10.244.{number}.0/24", f"fd00:10:0:{number}::/64", **more)

    @pytest.mark.parametrize(
        ("change", "attribute"),
        [
            ({"backend_data": vtep(77)}, "backend_data"),
            ({"backend_v6_data": vtep(78)}, "backend_v6_data"),
            ({"public_ip": "192.0.2.77"}, "public_ip"),
            ({"public_ipv6": "2001:db8::77"}, "public_ipv6"),
        ],
    )
    def test_a_change_of_one_family_is_followed(self, change, attribute):
        peers = Peers(self.both(2), families=(V4, V6))
        (before,) = peers.leases.peers.values()
        peers.put(self.both(2, **change))
        (after,) = peers.leases.peers.values()
        assert getattr(after.attrs, attribute) != getattr(before.attrs, attribute)

    def test_a_node_without_one_of_the_families_is_named(self):
        peers = Peers(node(2), families=(V4, V6))
        assert peers.now == {}
        assert "IPv6" in peers.nodes.trouble("n2")

    def test_the_key_has_both(self):
        peers = Peers(self.both(2), families=(V4, V6))
        assert list(peers.leases.peers) == [
            SubnetKey(IPv4Network("10.244.2.0/24"), IPv6Network("fd00:10:0:2::/64"))
        ]


def test_any_events_lead_where_a_list_leads():
    """A model: a table that follows events knows what one knows that reads the end alone."""
    rng = random.Random(7)
    for _ in range(30):
        table, shown = NodeTable("n1", {V4: NETWORK}), {}
        there: dict[str, KubeNode] = {}
        table.replace(())
        for _ in range(60):
            number = rng.randrange(1, 8)
            if rng.random() < 0.3:
                update = table.delete(f"n{number}")
                there.pop(f"n{number}", None)
            else:
                cidr = rng.choice(["10.244.1.0/24", "10.244.2.0/24", "10.244.2.128/25"])
                made = node(number, cidr, uid=str(rng.random()))
                update, there[made.name] = table.put(made), made
            for event in update.events:
                if isinstance(event, LeaseDeleted):
                    del shown[event.key]
                elif isinstance(event, LeasePut):
                    shown[event.lease.key] = event.lease
        fresh = NodeTable("n1", {V4: NETWORK}).replace(there.values())
        assert isinstance(fresh, Snapshot)
        assert shown == {lease.key: lease for lease in fresh.leases}
