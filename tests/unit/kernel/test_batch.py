"""Plans: which messages make a set replace, and a delete exact."""

import errno
from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.kernel import rtnl
from pyflannel.kernel.addresses import delete_found_address
from pyflannel.kernel.base import (
    RTN_BLACKHOLE,
    RTPROT_KERNEL,
    Address,
    Delete,
    FdbEntry,
    Neighbour,
    Operation,
    Route,
    Set,
)
from pyflannel.kernel.batch import (
    ABSENT,
    Batch,
    FoundAddress,
    FoundRoute,
    stone_of,
    wants_stepping_stone,
)
from pyflannel.kernel.objects import delete_request, set_request
from pyflannel.kernel.routes import RouteKey, create_request, delete_found_route, key_of

DST = IPv4Network("10.5.7.0/24")
OURS = Route(dst=DST, gateway=IPv4Address("10.5.7.0"), oif=3, onlink=True)
DIRECT = Route(dst=DST, oif=3)
FOREIGN = Route(dst=DST, gateway=IPv4Address("192.0.2.9"), oif=2)
OURS6 = Route(dst=IPv6Network("fd00:7::/64"), gateway=IPv6Address("fd00:7::"), oif=3, onlink=True)


def found(route: Route) -> FoundRoute:
    # As the kernel reports it: with an attribute that we do not know.
    return FoundRoute(route, set_request(route).body + b"\x08\0\x0b\0\x05\0\0\0")


def batch(*standing: Route) -> Batch:
    routes: dict[RouteKey, list[FoundRoute]] = {}
    for route in standing:
        routes.setdefault(key_of(route), []).append(found(route))
    return Batch(routes, [])


def requests(of: Batch, *operations: Operation) -> list[rtnl.Request]:
    for position, operation in enumerate(operations):
        of.add(position, operation)
    return [step.request for step in of.steps]


class TestRoutes:
    def test_a_free_place_takes_one_message(self) -> None:
        """Exclusive, for one that comes in between may be anybody's; a known one is replaced."""
        assert requests(batch(), Set(OURS)) == [create_request(OURS)]
        assert requests(batch(FOREIGN), Set(OURS)) == [set_request(OURS)]

    def test_all_but_the_one_in_force_are_removed_first(self) -> None:
        """With all the attributes that they were reported with; one that is gone is no failure."""
        of = batch(FOREIGN, DIRECT, OURS)
        assert requests(of, Set(OURS)) == [
            delete_found_route(found(DIRECT).body),
            delete_found_route(found(OURS).body),
            set_request(OURS),
        ]
        assert [step.tolerated for step in of.steps] == [ABSENT, ABSENT, frozenset()]

    def test_a_route_that_is_not_there_is_not_deleted(self) -> None:
        """The kernel might find another one that fits."""
        for standing in ([], [FOREIGN], [replace(OURS, metric=5)], [replace(OURS, oif=4)]):
            assert requests(batch(*standing), Delete(OURS)) == []

    @pytest.mark.parametrize("protocol", [RTPROT_KERNEL, 12, 186])
    def test_a_protected_route_is_neither_replaced_nor_deleted(self, protocol: int) -> None:
        """Wherever it stands under the key; nothing is put beside it, and the refusal names it."""
        theirs = replace(DIRECT, protocol=protocol)
        for standing in ([theirs], [theirs, FOREIGN], [FOREIGN, theirs]):
            of = batch(*standing)
            assert requests(of, Set(OURS)) == []
            assert of.failures[0].errno == errno.EEXIST
            assert "10.5.7.0/24 dev 3 proto" in str(of.failures[0])
        assert requests(batch(theirs), Delete(DIRECT)) == []
        assert len(requests(batch(theirs), Delete(theirs))) == 1, "as it was listed"

    def test_what_a_batch_itself_deletes_makes_room(self) -> None:
        """Delete, then create."""
        of = batch(FOREIGN)
        assert requests(of, Delete(FOREIGN), Set(OURS)) == [
            delete_found_route(found(FOREIGN).body),
            create_request(OURS),
        ]

    def test_a_route_is_deleted_as_it_was_reported(self) -> None:
        """And once only."""
        of = batch(FOREIGN, OURS)
        assert requests(of, Delete(OURS), Delete(OURS)) == [delete_found_route(found(OURS).body)]

    def test_a_delete_that_would_hit_another_one_is_refused(self) -> None:
        """No gateway fits any gateway: there is no request that means the second one."""
        of = batch(replace(FOREIGN, oif=3), DIRECT)
        assert requests(of, Delete(DIRECT)) == []
        assert of.failures[0].errno == errno.ENOTUNIQ
        assert "192.0.2.9" in str(of.failures[0])

    def test_the_order_of_a_batch_is_followed(self) -> None:
        """What an operation leaves is what the next one finds."""
        of = batch(FOREIGN, DIRECT)
        assert requests(of, Set(OURS), Delete(FOREIGN), Delete(OURS), Delete(OURS)) == [
            delete_found_route(found(DIRECT).body),
            set_request(OURS),
            delete_found_route(set_request(OURS).body),
        ]
        assert [step.position for step in of.steps] == [0, 0, 2]

    def test_without_a_link_the_gateway_decides(self) -> None:
        """On delete, and for what was set without one in the same batch."""
        anywhere = replace(FOREIGN, oif=None)
        assert requests(batch(FOREIGN), Delete(anywhere)) == [
            delete_found_route(found(FOREIGN).body)
        ]
        assert requests(batch(), Set(anywhere), Delete(FOREIGN)) == [
            create_request(anywhere),
            delete_request(FOREIGN),
        ]

    def test_several_next_hops_are_no_single_route(self) -> None:
        """They are reported without gateway and link, and deleted under that name."""
        several = Route(dst=DST)
        for one in (OURS, DIRECT, FOREIGN):
            assert requests(batch(several), Delete(one)) == []
        assert requests(batch(several), Delete(several)) != []

    def test_the_type_counts(self) -> None:
        """A blackhole is not a route through a link."""
        hole = Route(dst=DST, type=RTN_BLACKHOLE)
        assert requests(batch(hole), Delete(DIRECT)) == []
        assert requests(batch(DIRECT), Delete(hole)) == []
        assert len(requests(batch(hole), Delete(hole))) == 1

    def test_an_ipv6_metric_of_1024_is_none(self) -> None:
        """Set and delete mean the same route."""
        assert len(requests(batch(OURS6), Delete(replace(OURS6, metric=1024)))) == 1

    def test_a_stepping_stone_leads_through_the_same_link(self) -> None:
        """It is set right before, and has no gateway."""
        of = batch()
        of.add(0, Set(OURS6), stepping_stone=True)
        stone = replace(OURS6, gateway=None, onlink=False)
        assert [step.request for step in of.steps] == [
            create_request(stone),
            set_request(OURS6),
        ]
        assert stone_of(OURS6) == stone

    @pytest.mark.parametrize(
        ("operation", "code", "wanted"),
        [
            (Set(OURS6), errno.EINVAL, True),
            (Set(OURS6), errno.ENETDOWN, False),
            (Delete(OURS6), errno.EINVAL, False),
            (Set(OURS), errno.EINVAL, False),
            (Set(replace(OURS6, onlink=False)), errno.EINVAL, False),
            (Set(replace(OURS6, gateway=IPv6Address("fd00:8::"))), errno.EINVAL, False),
        ],
    )
    def test_a_stepping_stone_helps_gateways_inside_an_ipv6_destination(
        self, operation: Operation, code: int, wanted: bool
    ) -> None:
        """Nothing else is tried twice for EINVAL."""
        assert wants_stepping_stone(operation, KernelError("", "", code)) is wanted


def found_address(address: Address, *, peer: str = "") -> FoundAddress:
    body = set_request(address).body
    if peer:
        body = body[:-4] + IPv4Address(peer).packed
    return FoundAddress(address, body)


class TestAddresses:
    HOST = Address(index=3, interface=IPv4Interface("10.5.0.0/32"))
    HOST6 = Address(index=3, interface=IPv6Interface("fd00::1/128"))

    def deleted(self, standing: FoundAddress, operation: Operation) -> bool:
        made = requests(Batch({}, [standing]), operation)
        return delete_found_address(standing.body) in made

    def test_an_ipv6_address_with_another_length_is_in_the_way(self) -> None:
        """The kernel would keep it and say that all is well."""
        wide = replace(self.HOST6, interface=IPv6Interface("fd00::1/64"))
        assert self.deleted(found_address(wide), Set(self.HOST6))
        assert not self.deleted(found_address(self.HOST6), Set(self.HOST6))

    def test_an_ipv4_address_with_another_length_is_not(self) -> None:
        """Both can be there."""
        wide = replace(self.HOST, interface=IPv4Interface("10.5.0.0/24"))
        assert not self.deleted(found_address(wide), Set(self.HOST))

    def test_an_ipv4_address_of_another_scope_or_with_a_peer_is(self) -> None:
        """Replace would not change either."""
        assert self.deleted(found_address(replace(self.HOST, scope=253)), Set(self.HOST))
        assert self.deleted(found_address(self.HOST, peer="10.7.0.1"), Set(self.HOST))

    def test_those_of_other_links_are_left_alone(self) -> None:
        """Of any kind."""
        other = found_address(replace(self.HOST, index=4, scope=253))
        assert not self.deleted(other, Set(self.HOST))
        assert not self.deleted(other, Delete(self.HOST))

    def test_delete_takes_all_that_look_alike(self) -> None:
        """With a peer and without."""
        plain, with_peer = found_address(self.HOST), found_address(self.HOST, peer="10.7.0.1")
        made = requests(Batch({}, [plain, with_peer]), Delete(self.HOST))
        assert made == [
            delete_found_address(plain.body),
            delete_found_address(with_peer.body),
        ]

    def test_an_absent_address_is_not_deleted(self) -> None:
        """No message at all."""
        assert requests(Batch({}, []), Delete(self.HOST)) == []

    def test_the_order_of_a_batch_is_followed(self) -> None:
        """Set then delete deletes."""
        made = requests(Batch({}, []), Set(self.HOST), Delete(self.HOST), Set(self.HOST))
        assert [request.kind for request in made] == [20, 21, 20]


def test_neighbours_and_fdb_entries_take_one_message_each() -> None:
    """The kernel's replace and delete do what is wanted."""
    items = (
        Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac="0e:00:00:00:00:02"),
        FdbEntry(index=3, mac="0e:00:00:00:00:02", dst=IPv4Address("192.0.2.7")),
    )
    for item in items:
        of = batch()
        assert requests(of, Set(item), Delete(item)) == [
            set_request(item),
            delete_request(item),
        ]
        assert [step.tolerated for step in of.steps] == [frozenset(), ABSENT]


def test_what_cannot_be_packed_is_a_value_error() -> None:
    """The caller makes a failure of it."""
    with pytest.raises(ValueError, match="hexadecimal"):
        batch().add(0, Set(Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac="no mac")))
