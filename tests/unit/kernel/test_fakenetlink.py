"""What the fake has beyond the contract: failures on demand, other people's changes, counters."""

import errno
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, ip_interface, ip_network

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import Family
from pyflannel.kernel.base import Address, Delete, FdbEntry, LinkSpec, Neighbour, Route, Set, Topic
from pyflannel.testing.fakenetlink import FakeNetlink
from pyflannel.testing.fakeroutes import Hop

MAC = "0e:00:00:00:00:02"


@pytest.fixture
def fake() -> FakeNetlink:
    return FakeNetlink()


async def test_a_failure_is_as_asked_for_and_happens_once(fake: FakeNetlink) -> None:
    """Only for the kind and subject that were named."""
    nic = fake.add_link("eth0")
    one = Route(dst=IPv4Network("10.5.1.0/24"), oif=nic.index)
    two = Route(dst=IPv4Network("10.5.2.0/24"), oif=nic.index)
    fake.fail_next("route_replace", errno.ENOBUFS, match="10.5.2.0/24")
    failures = await fake.apply([Set(one), Set(two)])
    assert {position: error.errno for position, error in failures.items()} == {1: errno.ENOBUFS}
    assert await fake.routes(Family.V4) == [one]
    assert await fake.apply([Set(two)]) == {}


async def test_failures_may_repeat_and_be_chosen_by_a_function(fake: FakeNetlink) -> None:
    """A permission is a permission."""
    nic = fake.add_link("eth0")
    entry = Neighbour(index=nic.index, ip=IPv4Address("10.5.1.0"), mac=MAC)
    fake.fail_next("neighbour_replace", errno.EPERM, match=lambda n: n == entry, times=2)
    for _ in range(2):
        failures = await fake.apply([Set(entry)])
        assert isinstance(failures[0], NotPermitted)
    assert await fake.apply([Set(entry)]) == {}


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("links", lambda fake: fake.links()),
        ("link", lambda fake: fake.link("eth0")),
        ("addresses", lambda fake: fake.addresses()),
        ("routes", lambda fake: fake.routes(Family.V4)),
        ("neighbours", lambda fake: fake.neighbours(1, Family.V4)),
        ("fdb", lambda fake: fake.fdb(1)),
        ("route_lookup", lambda fake: fake.route_lookup(IPv4Address("192.0.2.1"))),
        ("create_link", lambda fake: fake.create_link(LinkSpec(name="br0", kind="bridge"))),
        ("delete_link", lambda fake: fake.delete_link(1)),
        ("set_link", lambda fake: fake.set_link(1, up=True)),
        ("apply", lambda fake: fake.apply([])),
    ],
)
async def test_every_method_can_fail_and_is_counted(
    fake: FakeNetlink, method: str, call: Callable[[FakeNetlink], Awaitable[object]]
) -> None:
    """By its own name."""
    fake.fail_next(method, errno.ENOMEM)
    with pytest.raises(KernelError) as refusal:
        await call(fake)
    assert refusal.value.errno == errno.ENOMEM
    assert fake.calls[method] == 1


async def test_operations_are_counted_and_recorded(fake: FakeNetlink) -> None:
    """Those that were tried by kind, those that succeeded in order."""
    nic = fake.add_link("eth0")
    good = Set(Route(dst=IPv4Network("10.5.1.0/24"), oif=nic.index))
    bad = Set(Route(dst=IPv4Network("10.5.2.0/24"), oif=99))
    gone = Delete(FdbEntry(index=nic.index, mac=MAC, dst=IPv4Address("192.0.2.7")))
    await fake.apply([good, bad, gone])
    assert fake.calls == {"apply": 1, "route_replace": 2, "fdb_delete": 1}
    assert fake.applied == [good, gone]


async def test_meddling_is_announced_but_not_counted(fake: FakeNetlink) -> None:
    """Another program has done it."""
    nic = fake.add_link("eth0")
    stream = fake.notifications()
    fake.fail_next("route_replace", errno.ENOMEM)
    fake.meddle(Set(Route(dst=IPv4Network("10.5.1.0/24"), oif=nic.index)))
    assert (await anext(stream)).topic is Topic.ROUTE
    assert fake.calls == {}
    assert fake.applied == []
    with pytest.raises(DeviceUnavailable):
        fake.meddle(Set(Route(dst=IPv4Network("10.5.2.0/24"), oif=99)))


async def test_an_overflow_is_heard(fake: FakeNetlink) -> None:
    """By everybody who listens."""
    streams = [fake.notifications(), fake.notifications()]
    fake.overflow()
    for stream in streams:
        assert (await anext(stream)).topic is Topic.OVERFLOW


async def test_a_new_network_card_is_announced_and_addressed(fake: FakeNetlink) -> None:
    """Up by default, with a MAC that can be foretold and the address that goes with it."""
    stream = fake.notifications()
    nic = fake.add_link("eth0", mtu=9000)
    first = await anext(stream)
    assert (first.topic, first.name, first.index) == (Topic.LINK, "eth0", nic.index)
    assert (nic.mtu, nic.mac, nic.up, nic.running) == (9000, "06:00:00:00:00:02", True, True)
    (own,) = await fake.addresses(index=nic.index)
    assert str(own.interface) == "fe80::400:ff:fe00:2/64"
    fake.rename_link(nic.index, "lan0")
    assert await fake.link("eth0") is None
    assert (await fake.link("lan0")) is not None


async def test_addresses_may_be_what_dhcp_and_routers_bring(fake: FakeNetlink) -> None:
    """For the choice among them: set ones are always permanent."""
    nic = fake.add_link("eth0", mac="", up=True)
    dynamic = Address(
        index=nic.index,
        interface=ip_interface("2001:db8::5/64"),
        permanent=False,
        temporary=True,
    )
    fake.add_address(dynamic)
    assert await fake.addresses(index=nic.index) == [dynamic]


async def test_one_of_several_next_hops_may_go(fake: FakeNetlink) -> None:
    """The route stays while one is left; in IPv6 it becomes an ordinary one."""
    one, two = fake.add_link("eth0"), fake.add_link("eth1")
    for dst, first, second in (
        ("10.6.0.0/24", "192.0.2.1", "192.0.2.2"),
        ("fd06::/64", "2001:db8::1", "2001:db8::2"),
    ):
        hops = [
            Hop(ip_interface(first).ip, one.index),
            Hop(ip_interface(second).ip, two.index),
        ]
        fake.add_multipath(ip_network(dst), hops)
    await fake.delete_link(one.index)
    (four,) = [r for r in await fake.routes(Family.V4) if r.dst == ip_network("10.6.0.0/24")]
    (six,) = [r for r in await fake.routes(Family.V6) if r.dst == ip_network("fd06::/64")]
    assert (four.oif, six.oif) == (None, two.index)
    await fake.delete_link(two.index)
    assert await fake.routes(Family.V4) == []
    assert await fake.routes(Family.V6) == []


async def test_a_kernel_may_lack_a_kind() -> None:
    """As the one without ipip."""
    fake = FakeNetlink(kinds=["vxlan"])
    with pytest.raises(DeviceUnavailable, match="ipip"):
        await fake.create_link(LinkSpec(name="flannel.ipip", kind="ipip"))
