"""The netlink codec: what goes out is what the kernel expects, what comes in is understood."""

import errno
import struct
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
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.ip import Family
from pyflannel.kernel import rtnl
from pyflannel.kernel.addresses import decode_address, dump_addresses, is_point_to_point
from pyflannel.kernel.base import (
    NUD_NOARP,
    NUD_PERMANENT,
    RTN_BLACKHOLE,
    Address,
    FdbEntry,
    Neighbour,
    Notification,
    Route,
    Topic,
)
from pyflannel.kernel.neighbours import decode_fdb, decode_neighbour, dump_fdb, dump_neighbours
from pyflannel.kernel.objects import decode_notification, delete_request, set_request
from pyflannel.kernel.routes import (
    decode_route,
    delete_found_route,
    dump_routes,
    key_of,
    key_of_body,
)
from pyflannel.kernel.rtnl import Answer, Message

MAC = "0e:00:00:00:00:02"
NUD_REACHABLE = 2

v4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
v6_addresses = st.integers(0, 2**128 - 1).map(IPv6Address)
addresses = v4_addresses | v6_addresses
indexes = st.integers(1, 2**31 - 1)
macs = st.binary(min_size=6, max_size=6).map(lambda packed: packed.hex(":"))
v4_networks = st.builds(
    lambda a, n: IPv4Network((int(a), n), strict=False), v4_addresses, st.integers(0, 32)
)
v6_networks = st.builds(
    lambda a, n: IPv6Network((int(a), n), strict=False), v6_addresses, st.integers(0, 128)
)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    four = draw(st.booleans())
    of_family = v4_addresses if four else v6_addresses
    gateway = draw(st.none() | of_family)
    metrics = st.integers(0, 2**32 - 1).filter(lambda metric: metric != 1024)
    return Route(
        dst=draw(v4_networks if four else v6_networks),
        gateway=gateway,
        oif=draw(st.none() | indexes),
        onlink=draw(st.booleans()),
        scope=draw(st.sampled_from([0, 253])),
        protocol=draw(st.integers(2, 255)),
        metric=draw(metrics),
        src=draw(st.none() | of_family),
    )


class TestRoundTrips:
    """What a set request says is what the same body says when a dump brings it."""

    @given(routes())
    def test_routes(self, route: Route) -> None:
        assert decode_route(set_request(route).body) == route

    @given(routes())
    def test_the_key_is_found_without_decoding(self, route: Route) -> None:
        assert key_of_body(set_request(route).body) == key_of(route)

    @given(st.builds(Neighbour, index=indexes, ip=addresses, mac=macs, state=st.integers(1, 255)))
    def test_neighbours(self, neighbour: Neighbour) -> None:
        assert decode_neighbour(set_request(neighbour).body) == neighbour

    @given(st.builds(FdbEntry, index=indexes, mac=macs, dst=addresses))
    def test_fdb_entries(self, entry: FdbEntry) -> None:
        assert decode_fdb(set_request(entry).body) == entry

    @given(indexes, addresses, st.data(), st.sampled_from([0, 253]))
    def test_addresses(
        self, index: int, ip: IPv4Address | IPv6Address, data: st.DataObject, scope: int
    ) -> None:
        length = data.draw(st.integers(0, ip.max_prefixlen))
        interface = IPv4Interface((ip, length)) if ip.version == 4 else IPv6Interface((ip, length))
        address = Address(index=index, interface=interface, scope=scope)
        # Whether it is permanent is the kernel's word.
        expected = replace(address, permanent=False)
        assert decode_address(set_request(address).body) == expected


class TestRequests:
    """Bytes, against those that upstream's daemon sends (taken with strace)."""

    def test_an_address_is_upstreams_to_the_byte(self) -> None:
        """10.5.96.0/32 on link 3; only the flags say replace where upstream says exclusive."""
        address = Address(index=3, interface=IPv4Interface("10.5.96.0/32"))
        request = set_request(address)
        assert request.kind == 20
        assert request.body == bytes.fromhex("02200000 0300000008000200 0a05600008000100 0a056000")

    def test_an_ipv6_address_is_usable_at_once(self) -> None:
        """IFA_F_NODAD is set, or it would be tentative for a second."""
        address = Address(index=3, interface=IPv6Interface("fd00::1/128"))
        assert set_request(address).body[:8] == bytes.fromhex("0a800200 03000000")

    def test_a_peers_route(self) -> None:
        """10.5.7.0/24 via 10.5.7.0 dev 3 onlink: main table, protocol boot, unicast, no metric."""
        route = Route(
            dst=IPv4Network("10.5.7.0/24"), gateway=IPv4Address("10.5.7.0"), oif=3, onlink=True
        )
        request = set_request(route)
        assert request.kind == 24
        assert request.flags == 0x1 | 0x4 | 0x100 | 0x400
        assert request.body == bytes.fromhex(
            "02180000 fe030001 0400000008000100 0a05070008000500 0a05070008000400 03000000"
        )

    def test_an_ipv6_route_has_its_metric_spelt_out(self) -> None:
        """0 in a delete request would mean "any metric"."""
        route = Route(dst=IPv6Network("fd00:7::/64"), oif=3)
        body = delete_request(route).body
        assert bytes.fromhex("08000600 00040000") in body
        assert delete_request(route).kind == 25

    def test_a_neighbour_is_permanent(self) -> None:
        """Address family of the IP, NUD_PERMANENT, type unicast."""
        neighbour = Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac=MAC)
        request = set_request(neighbour)
        assert request.kind == 28
        assert request.body == bytes.fromhex(
            "02000000 03000000 8000000108000100 0a0507000a000200 0e0000000002 0000"
        )

    def test_an_fdb_entry_is_for_the_device_itself(self) -> None:
        """AF_BRIDGE, NTF_SELF, permanent and noarp."""
        entry = FdbEntry(index=3, mac=MAC, dst=IPv4Address("192.0.2.7"))
        assert set_request(entry).body == bytes.fromhex(
            "07000000 03000000 c00002000a000200 0e0000000002 000008000100 c0000207"
        )
        assert delete_request(entry).kind == 29

    def test_a_gateway_of_the_other_family_goes_as_via(self) -> None:
        """RFC 5549: IPv4 through an IPv6 gateway."""
        route = Route(dst=IPv4Network("10.5.7.0/24"), gateway=IPv6Address("fe80::1"), oif=3)
        body = set_request(route).body
        assert struct.pack("=HHH", 22, 18, 10) + IPv6Address("fe80::1").packed in body
        assert decode_route(body) == route

    def test_a_found_route_is_deleted_with_all_that_was_reported(self) -> None:
        """But without the flags that describe its state."""
        body = set_request(Route(dst=IPv4Network("10.5.7.0/24"), oif=3)).body
        dead_and_onlink = body[:8] + struct.pack("=I", 0x1 | 0x4 | 0x10) + body[12:]
        request = delete_found_route(dead_and_onlink + b"\x08\0\x0b\0\x05\0\0\0")
        assert request.kind == 25
        assert request.body == body[:8] + struct.pack("=I", 0x4) + body[12:] + (
            b"\x08\0\x0b\0\x05\0\0\0"
        )

    def test_of_a_found_route_through_a_next_hop_object_only_the_object_is_said(self) -> None:
        """What it consists of is reported beside it; a request with both is refused."""
        gateway = attribute(5, IPv4Address("10.5.7.0").packed) + attribute(4, b"\3\0\0\0")
        object_id = attribute(30, b"\7\0\0\0")
        body = rtmsg(flags=4, attributes=DST + object_id + gateway)
        assert delete_found_route(body).body == rtmsg(attributes=DST + object_id)

    def test_dumps_are_filtered_by_the_kernel(self) -> None:
        """Main table and outgoing link; link of neighbours, FDB and addresses."""
        assert dump_routes(Family.V4, 7) == (
            26,
            0x301,
            bytes.fromhex("02000000 fe000000 0000000008000400 07000000"),
        )
        assert dump_neighbours(Family.V6, 7).body == bytes.fromhex(
            "0a000000 00000000 0000000008000800 07000000"
        )
        assert dump_fdb(7).body == bytes.fromhex("07000000 07000000 00000000")
        assert dump_addresses(7).body == bytes.fromhex("00000000 07000000")
        assert dump_addresses().body == bytes(8)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) & 3)


def rtmsg(
    *,
    family: int = 2,
    length: int = 24,
    tos: int = 0,
    table: int = 254,
    kind: int = 1,
    flags: int = 0,
    attributes: bytes = b"",
) -> bytes:
    header = struct.pack("=BBBBBBBBI", family, length, 0, tos, table, 3, 0, kind, flags)
    return header + attributes


DST = attribute(1, IPv4Address("10.5.7.0").packed)


class TestRoutes:
    """Reading what the kernel reports."""

    def test_no_destination_is_the_default_route(self) -> None:
        """In both families."""
        four = decode_route(rtmsg(length=0))
        six = decode_route(rtmsg(family=10, length=0))
        assert four is not None
        assert six is not None
        assert (str(four.dst), str(six.dst)) == ("0.0.0.0/0", "::/0")

    @pytest.mark.parametrize(
        "body",
        [
            rtmsg(table=255, attributes=DST),
            rtmsg(attributes=DST + attribute(15, struct.pack("=I", 1000))),
            rtmsg(flags=0x200, attributes=DST),
            rtmsg(tos=0x10, attributes=DST),
            rtmsg(family=28, attributes=DST),
        ],
        ids=["local table", "numbered table", "cloned", "tos", "mpls"],
    )
    def test_what_does_not_compete_with_ours_is_left_out(self, body: bytes) -> None:
        """Other tables, cache entries, types of service, families."""
        assert decode_route(body) is None
        assert key_of_body(body) is None

    def test_the_table_attribute_counts_more_than_the_byte(self) -> None:
        """The byte is RT_TABLE_COMPAT (252) for large numbers."""
        body = rtmsg(table=252, attributes=DST + attribute(15, struct.pack("=I", 254)))
        assert decode_route(body) is not None

    def test_an_ipv6_metric_of_1024_is_none(self) -> None:
        """It is what the kernel makes of none."""
        dst = attribute(1, IPv6Address("fd00:7::").packed)
        body = rtmsg(family=10, length=64, attributes=dst + attribute(6, struct.pack("=I", 1024)))
        route = decode_route(body)
        assert route is not None
        assert route.metric == 0
        assert key_of_body(body) == key_of(route)

    def test_an_ipv4_metric_of_1024_is_one(self) -> None:
        """Only IPv6 has that default."""
        route = decode_route(rtmsg(attributes=DST + attribute(6, struct.pack("=I", 1024))))
        assert route is not None
        assert route.metric == 1024

    def test_several_next_hops_are_reported_as_none(self) -> None:
        """RTA_MULTIPATH is not taken apart."""
        hops = struct.pack("=HBBi", 16, 0, 0, 3) + attribute(5, b"\x0a\5\7\0")
        route = decode_route(rtmsg(attributes=DST + attribute(9, hops)))
        assert route is not None
        assert (route.gateway, route.oif) == (None, None)

    @pytest.mark.parametrize("family", [2, 10])
    def test_a_blackhole_has_no_link(self, family: int) -> None:
        """IPv6 reports the loopback."""
        dst = DST if family == 2 else attribute(1, IPv6Address("fd00:7::").packed)
        oif = attribute(4, struct.pack("=I", 1))
        route = decode_route(rtmsg(family=family, kind=6, attributes=dst + oif))
        assert route is not None
        assert (route.type, route.oif) == (RTN_BLACKHOLE, None)


class TestOthers:
    """Neighbours, FDB entries, addresses."""

    def test_a_neighbour_without_a_mac_has_an_empty_one(self) -> None:
        """INCOMPLETE and FAILED ones."""
        body = struct.pack("=BxxxiHBB", 2, 3, 0x20, 0, 1) + attribute(1, b"\x0a\5\7\0")
        assert decode_neighbour(body) == Neighbour(
            index=3, ip=IPv4Address("10.5.7.0"), mac="", state=0x20
        )

    @pytest.mark.parametrize(
        ("state", "listed"),
        [(NUD_PERMANENT, True), (NUD_NOARP, True), (NUD_REACHABLE, False), (4, False)],
    )
    def test_learned_fdb_entries_are_left_out(self, state: int, listed: bool) -> None:
        """They age; only permanent and static ones stay."""
        packed = bytes.fromhex(MAC.replace(":", ""))
        attributes = attribute(2, packed) + attribute(1, IPv4Address("192.0.2.7").packed)
        body = struct.pack("=BxxxiHBB", 7, 3, state, 2, 0) + attributes
        assert (decode_fdb(body) is not None) == listed

    def test_fdb_entries_without_a_destination_are_left_out(self) -> None:
        """Multicast memberships of the device, and those of bridge ports."""
        body = struct.pack("=BxxxiHBB", 7, 3, 0x80, 2, 0) + attribute(2, b"\x33\x33\0\0\0\1")
        assert decode_fdb(body) is None

    def test_an_address_is_the_local_one(self) -> None:
        """IFA_ADDRESS is the peer's on a point-to-point link."""
        header = struct.pack("=BBBBI", 2, 32, 0x80, 0, 3)
        local, peer = IPv4Address("10.5.2.0"), IPv4Address("10.7.0.1")
        body = header + attribute(1, peer.packed) + attribute(2, local.packed)
        address = decode_address(body)
        assert address == Address(index=3, interface=IPv4Interface("10.5.2.0/32"))
        assert is_point_to_point(body)
        assert not is_point_to_point(
            header + attribute(1, local.packed) + attribute(2, local.packed)
        )

    @pytest.mark.parametrize(
        ("family", "flags", "expected"),
        [
            (2, 0x80, (True, False, False)),
            (2, 0x81, (True, False, False)),
            (10, 0x81, (True, True, False)),
            (10, 0x00, (False, False, False)),
            (10, 0xA0, (True, False, True)),
        ],
        ids=["permanent", "secondary", "temporary", "dynamic", "deprecated"],
    )
    def test_address_flags(
        self, family: int, flags: int, expected: tuple[bool, bool, bool]
    ) -> None:
        """IFA_FLAGS has all 32 bits of them; bit 0 is "secondary" in IPv4, "temporary" in IPv6."""
        packed = IPv4Address("10.5.2.0").packed if family == 2 else IPv6Address("fd00::1").packed
        body = (
            struct.pack("=BBBBI", family, 32, 0, 0, 3)
            + attribute(1, packed)
            + attribute(8, struct.pack("=I", flags | 0x400))
        )
        address = decode_address(body)
        assert address is not None
        assert (address.permanent, address.temporary, address.deprecated) == expected


class TestDatagrams:
    """Messages in a datagram, and answers."""

    def test_messages_are_split_and_aligned(self) -> None:
        """Each starts on a multiple of four."""
        one = rtnl.pack(rtnl.Request(16, 1, b"abcde"), 7)
        datagram = one + b"\0" * 3 + rtnl.pack(rtnl.Request(17, 2, b""), 8)
        assert list(rtnl.split(datagram)) == [Message(16, 1, 7, b"abcde"), Message(17, 2, 8, b"")]

    @given(st.binary(max_size=200))
    def test_any_bytes_can_be_split(self, datagram: bytes) -> None:
        """Nonsense ends the datagram."""
        for message in rtnl.split(datagram):
            assert len(message.body) <= len(datagram)

    def test_an_acknowledgement_is_no_error(self) -> None:
        """NLMSG_ERROR with 0."""
        assert rtnl.decode_answer(Message(2, 0, 1, bytes(20))) == Answer(0, "")
        assert rtnl.decode_answer(Message(3, 0, 1, b"")) == Answer(0, "")

    @pytest.mark.parametrize("capped", [False, True])
    def test_the_kernels_words_are_found(self, capped: bool) -> None:
        """Behind the request that is repeated, or behind its header only."""
        request = rtnl.pack(rtnl.Request(24, 5, b"x" * 13), 9)
        repeated = request[:16] if capped else request + b"\0" * 3
        text = attribute(1, b"Nexthop has invalid gateway\0")
        body = struct.pack("=i", -errno.ENETUNREACH) + repeated + text
        flags = 0x200 | (0x100 if capped else 0)
        answer = rtnl.decode_answer(Message(2, flags, 9, body))
        assert answer == Answer(errno.ENETUNREACH, "Nexthop has invalid gateway")

    def test_the_end_of_a_dump_may_be_an_error(self) -> None:
        """With its words directly behind."""
        body = struct.pack("=i", -errno.ENOENT) + attribute(1, b"FIB table does not exist\0")
        answer = rtnl.decode_answer(Message(3, 0x202, 9, body))
        assert answer == Answer(errno.ENOENT, "FIB table does not exist")


def heard(kind: int, body: bytes) -> Notification | None:
    return decode_notification(Message(kind, 0, 0, body))


class TestNotifications:
    """What is told, and what is not."""

    def test_routes(self) -> None:
        """Set and deleted, with link and destination."""
        route = Route(dst=IPv4Network("10.5.7.0/24"), oif=3)
        body = set_request(route).body
        expected = Notification(
            topic=Topic.ROUTE, index=3, family=Family.V4, dst=route.dst, object=route
        )
        assert heard(24, body) == expected
        assert heard(25, body) == replace(expected, deleted=True)

    @pytest.mark.parametrize(
        "body", [rtmsg(flags=0x200, attributes=DST), rtmsg(table=255, attributes=DST)]
    )
    def test_cached_routes_and_other_tables_are_not_told(self, body: bytes) -> None:
        """They come with ordinary traffic and with each address."""
        assert heard(24, body) is None

    @pytest.mark.parametrize(
        ("kind", "state", "told"),
        [(28, 0x80, True), (28, 0x04, True), (28, 0x40, False), (29, 0x02, True)],
        ids=["permanent", "stale", "noarp", "deleted"],
    )
    def test_neighbours_are_told_but_for_the_kernels_own(
        self, kind: int, state: int, told: bool
    ) -> None:
        """One that turned stale may have been a permanent one of ours."""
        neighbour = Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac=MAC, state=state)
        notification = heard(kind, set_request(neighbour).body)
        assert (notification is not None) == told
        if notification is not None:
            assert notification.family is Family.V4

    def test_fdb_entries_have_no_family(self) -> None:
        """They are told in any state."""
        entry = FdbEntry(index=3, mac=MAC, dst=IPv4Address("192.0.2.7"))
        body = set_request(entry).body
        assert heard(28, body) == Notification(topic=Topic.NEIGHBOUR, index=3, object=entry)

    def test_addresses(self) -> None:
        """With the link they are on."""
        body = set_request(Address(index=3, interface=IPv6Interface("fd00::1/128"))).body
        told = heard(21, body)
        assert told is not None
        assert told.object == decode_address(body)
        assert replace(told, object=None) == Notification(
            topic=Topic.ADDRESS, index=3, deleted=True, family=Family.V6
        )

    def test_links(self) -> None:
        """With their name."""
        body = struct.pack("=BxHiII", 0, 1, 3, 0, 0) + attribute(3, b"flannel.1\0")
        assert heard(17, body) == Notification(
            topic=Topic.LINK, index=3, name="flannel.1", deleted=True
        )

    def test_a_port_that_leaves_its_bridge_is_not_a_deleted_link(self) -> None:
        """RTM_DELLINK of family AF_BRIDGE."""
        body = struct.pack("=BxHiII", 7, 1, 3, 0, 0) + attribute(3, b"veth1\0")
        assert heard(17, body) is None

    def test_other_messages_are_not_told(self) -> None:
        """Rules, for instance."""
        assert heard(32, bytes(12)) is None


class TestCachedRecords:
    """A record that is read again is the same object, as long as it says the same."""

    AGES = struct.pack("=HHI", 8, 4, 0) + struct.pack("=HHIIII", 20, 3, 1, 2, 3, 0)
    OLDER = struct.pack("=HHI", 8, 4, 1) + struct.pack("=HHIIII", 20, 3, 900, 2, 3, 0)

    @pytest.mark.parametrize("ip", [IPv4Address("20.0.3.0"), IPv6Address("fd00:5:7::")])
    def test_the_age_of_a_neighbour_makes_no_other_one_of_it(self, ip) -> None:
        """Nor does an address that looks like the header of the ages."""
        body = set_request(Neighbour(index=3, ip=ip, mac=MAC)).body
        first = decode_neighbour(body + self.AGES)
        assert first == Neighbour(index=3, ip=ip, mac=MAC)
        assert decode_neighbour(body + self.OLDER) is first
        other = set_request(Neighbour(index=3, ip=ip, mac="02:00:00:00:00:77")).body
        found = decode_neighbour(other + self.AGES)
        assert found is not None
        assert found.mac == "02:00:00:00:00:77"

    @pytest.mark.parametrize("dst", [IPv4Address("20.0.3.0"), IPv6Address("2001:db8::7")])
    def test_nor_does_that_of_an_fdb_entry(self, dst) -> None:
        """The destination counts."""
        body = set_request(FdbEntry(index=3, mac=MAC, dst=dst)).body
        first = decode_fdb(body + self.AGES)
        assert first == FdbEntry(index=3, mac=MAC, dst=dst)
        assert decode_fdb(body + self.OLDER) is first
        other = set_request(FdbEntry(index=3, mac=MAC, dst=dst + 1)).body
        found = decode_fdb(other + self.AGES)
        assert found is not None
        assert found.dst == dst + 1

    def test_a_neighbour_without_a_mac_is_decoded_as_well(self) -> None:
        """Its ages stand elsewhere."""
        body = set_request(Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac=MAC)).body
        found = decode_neighbour(body[:20] + self.AGES)
        assert found == Neighbour(index=3, ip=IPv4Address("10.5.7.0"), mac="")
