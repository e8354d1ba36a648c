"""The peer table against a list that is searched from end to end."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.core.lpm import Peer, PeerTable


def peer(subnet: str, address: str = "192.0.2.1") -> Peer:
    return Peer(IPv4Network(subnet), IPv4Address(address))


def find(table: PeerTable, destination: str) -> str | None:
    found = table.lookup(int(IPv4Address(destination)))
    return str(found.subnet) if found is not None else None


def test_the_longest_prefix_that_contains_the_destination_wins() -> None:
    table = PeerTable([peer("10.0.0.0/8"), peer("10.5.0.0/16"), peer("10.5.1.0/24")])
    assert find(table, "10.5.1.7") == "10.5.1.0/24"
    assert find(table, "10.5.2.7") == "10.5.0.0/16"
    assert find(table, "10.6.0.1") == "10.0.0.0/8"
    assert find(table, "11.0.0.1") is None


def test_an_empty_table_knows_no_peer() -> None:
    table = PeerTable()
    assert find(table, "10.0.0.1") is None
    assert len(table) == 0
    assert table.levels == ()


def test_a_default_route_and_a_host_route_are_prefixes_like_others() -> None:
    table = PeerTable([peer("0.0.0.0/0"), peer("10.0.0.1/32")])
    assert find(table, "10.0.0.1") == "10.0.0.1/32"
    assert find(table, "255.255.255.255") == "0.0.0.0/0"


def test_tables_are_equal_with_any_order_and_repetition_of_their_rows() -> None:
    a, b = peer("10.5.1.0/24"), peer("10.5.2.0/24", "192.0.2.2")
    assert PeerTable([a, b, a]) == PeerTable([b, a])
    assert hash(PeerTable([a, b])) == hash(PeerTable([b, a]))
    assert PeerTable([a]) != PeerTable([b])
    assert PeerTable([a, b]).peers == (a, b)


def test_levels_go_from_long_to_short() -> None:
    table = PeerTable([peer("10.0.0.0/8"), peer("10.5.1.0/24")])
    assert [mask for mask, _ in table.levels] == [0xFFFFFF00, 0xFF000000]


# A narrow space, so that prefixes nest and destinations hit.
_address = st.integers(0, 255).map(lambda n: 0x0A050000 | n << 4)
_peers = st.lists(
    st.builds(
        lambda n, length, hop: Peer(
            IPv4Network((n, length), strict=False), IPv4Address(0xC0000200 + hop)
        ),
        _address,
        st.integers(0, 32),
        st.integers(1, 3),
    ),
    max_size=12,
    unique_by=lambda p: p.subnet,
)


@settings(deadline=None)
@given(_peers, _address, st.integers(0, 15))
def test_lookup_agrees_with_a_search_from_end_to_end(
    peers: list[Peer], base: int, low: int
) -> None:
    destination = base | low
    matching = [p for p in peers if IPv4Address(destination) in p.subnet]
    expected = max(matching, key=lambda p: p.subnet.prefixlen, default=None)
    assert PeerTable(peers).lookup(destination) == expected
