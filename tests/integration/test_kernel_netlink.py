"""What only the real kernel can show: rights, overflows, and that pyroute2 reads the same."""

import asyncio
import errno
import os
import socket
import subprocess
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface
from pathlib import Path

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError, NotPermitted
from pyflannel.core.ip import Family
from pyflannel.kernel.addresses import decode_address, dump_addresses
from pyflannel.kernel.base import (
    Address,
    Delete,
    FdbEntry,
    IpipAttrs,
    LinkSpec,
    Neighbour,
    Route,
    Set,
    Topic,
    VxlanAttrs,
)
from pyflannel.kernel.channel import Channel
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.kernel.ownership import LISTED
from tests.support.coroutines import on_both_loops
from tests.support.netns import in_new_netns, without_fallback

pytestmark = [pytest.mark.root, pytest.mark.guest]
NOBODY = 65534


@pytest.fixture(autouse=True)
def runner(loop):
    """In an empty namespace."""
    return lambda main: in_new_netns(lambda: loop(main()))


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def overlay(netlink: KernelNetlink) -> int:
    """A vxlan device that is up, with an address; its index."""
    vxlan = VxlanAttrs(vni=1, local=IPv4Address("192.0.2.1"))
    device = await netlink.create_link(LinkSpec(name="flannel.1", kind="vxlan", vxlan=vxlan))
    await netlink.set_link(device.index, up=True)
    own = Address(index=device.index, interface=IPv4Interface("10.5.0.0/32"))
    assert await netlink.apply([Set(own)]) == {}
    return device.index


async def test_without_the_capability_everything_that_writes_is_not_permitted() -> None:
    """And what only reads works. The message says what is missing."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    await netlink.close()
    os.setgroups([])
    os.setuid(NOBODY)
    netlink = KernelNetlink()
    assert len(without_fallback(await netlink.links())) == 2
    assert len(await netlink.addresses(index=index)) >= 1
    assert await netlink.routes(Family.V4) == []
    refusals = await netlink.apply(
        [
            Set(Route(dst=IPv4Network("10.5.7.0/24"), oif=index)),
            Set(Neighbour(index=index, ip=IPv4Address("10.5.7.0"), mac="0e:00:00:00:00:02")),
            Set(FdbEntry(index=index, mac="0e:00:00:00:00:02", dst=IPv4Address("192.0.2.7"))),
            Set(Address(index=index, interface=IPv4Interface("10.5.9.0/32"))),
        ]
    )
    assert sorted(refusals) == [0, 1, 2, 3]
    for refusal in refusals.values():
        assert isinstance(refusal, NotPermitted)
        assert "CAP_NET_ADMIN" in str(refusal)
    with pytest.raises(NotPermitted):
        await netlink.set_link(index, up=False)
    with pytest.raises(NotPermitted):
        await netlink.create_link(LinkSpec(name="x", kind="bridge"))
    with pytest.raises(NotPermitted):
        await netlink.delete_link(index)
    stream = netlink.notifications()  # with the buffer that everybody may have
    await netlink.close()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_the_kernel_itself_picks_routes_out() -> None:
    """What a listing, or a written route, costs does not grow with the routes of others."""
    netlink = KernelNetlink()
    link = await netlink.create_link(LinkSpec(name="under0", kind="bridge"))
    await netlink.set_link(link.index, up=True)
    theirs = [
        Set(Route(dst=IPv4Network((0x64400000 + n, 32)), oif=link.index, protocol=12))
        for n in range(3000)
    ]
    assert await netlink.apply(theirs) == {}
    received = []

    async def counting(operation, request):
        answer, messages = await dump(operation, request)
        received.append(len(messages))
        return answer, messages

    dump, netlink._channel.dump = netlink._channel.dump, counting  # type: ignore[method-assign]
    ours = Route(dst=IPv4Network("10.5.2.0/24"), oif=link.index, scope=253)
    assert await netlink.apply([Set(ours)]) == {}
    assert await netlink.routes(Family.V4, protocols=LISTED) == [ours]
    assert await netlink.apply([Delete(ours)]) == {}
    assert sum(received) < 100
    # Reached, but not decoded one by one.
    assert await netlink.routes(Family.V4, near=[IPv4Network("10.5.0.0/16")]) == []
    await netlink.close()


@pytest.mark.slow
@on_both_loops
async def test_a_listener_that_is_too_slow_is_told_so() -> None:
    """One notice stands for what the kernel dropped; later changes are heard."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    stream = netlink.notifications()
    routes = [Route(dst=IPv4Network(f"10.6.{i}.0/24"), oif=index) for i in range(200)]
    for _ in range(60):
        assert await netlink.apply([Set(route) for route in routes]) == {}
        assert await netlink.apply([Delete(route) for route in routes]) == {}
    async with asyncio.timeout(5):
        assert (await anext(stream)).topic is Topic.OVERFLOW
        mark = Route(dst=IPv4Network("203.0.113.0/24"), oif=index)
        assert await netlink.apply([Set(mark)]) == {}
        assert (await anext(stream)).dst == mark.dst
    await netlink.close()


async def test_routes_of_other_tables_are_neither_listed_nor_told() -> None:
    """Policy routing is other people's."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    stream = netlink.notifications()
    for words in ("10.6.0.0/24 dev flannel.1 table 100", "10.7.0.0/24 dev flannel.1 tos 0x10"):
        subprocess.run(["ip", "route", "add", *words.split()], check=True)
    ours = Route(dst=IPv4Network("10.8.0.0/24"), oif=index)
    assert await netlink.apply([Set(ours)]) == {}
    assert await netlink.routes(Family.V4) == [ours]
    first = await anext(stream)
    while first.topic is not Topic.ROUTE or first.family is Family.V6:
        first = await anext(stream)
    assert first.dst == ours.dst
    await netlink.close()


async def test_an_address_with_a_peer_is_replaced_and_deleted() -> None:
    """It looks like ours, and is another one to the kernel."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    add = ["ip", "addr", "add", "10.5.2.0", "peer", "10.7.0.1/32", "dev", "flannel.1"]
    ours = Address(index=index, interface=IPv4Interface("10.5.2.0/32"))
    for operations, expected in (([Set(ours)], 1), ([Delete(ours)], 0)):
        subprocess.run(add, check=True)
        assert await netlink.apply(operations) == {}
        listing = _output("ip", "-o", "addr", "show", "dev", "flannel.1")
        assert "peer" not in listing
        assert listing.count("10.5.2.0") == expected
    await netlink.close()


async def test_an_ipv6_address_is_usable_at_once() -> None:
    """It is never tentative, so it can be a source address right away."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    own = Address(index=index, interface=IPv6Interface("fd00:5::/128"))
    assert await netlink.apply([Set(own)]) == {}
    assert "fd00:5::" not in _output("ip", "-o", "-6", "addr", "show", "tentative")
    await netlink.close()


async def test_our_codec_and_pyroute2_read_the_same_addresses() -> None:
    """Two decoders for one thing: those that are listed, and those that a batch looks at."""
    netlink, channel = KernelNetlink(), Channel()
    index = await overlay(netlink)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for words in (
        "192.0.2.5/24 dev lo",
        "192.0.2.6/24 dev lo",
        "2001:db8::5/64 dev lo",
        "2001:db8::6/64 dev lo preferred_lft 0",
        "2001:db8::7/64 dev lo valid_lft 100 preferred_lft 50",
        "10.5.2.0 peer 10.7.0.1/32 dev flannel.1",
    ):
        subprocess.run(["ip", "addr", "add", *words.split()], check=True)
    _, messages = await channel.dump("addresses", dump_addresses())
    ours = [decode_address(message.body) for message in messages]
    theirs = await netlink.addresses()
    assert ours == theirs
    by_text = {str(address.interface.ip): address for address in theirs}
    assert by_text["2001:db8::6"].deprecated
    assert not by_text["2001:db8::7"].permanent
    assert by_text["2001:db8::5"].permanent
    assert not by_text["192.0.2.6"].temporary
    assert index in {address.index for address in theirs}
    await netlink.close()
    await channel.close()


async def test_a_kernel_without_ipip_says_so() -> None:
    """The message names the module. (Where there is one the device is made and read back.)"""
    netlink = KernelNetlink()
    attrs = IpipAttrs(local=IPv4Address("192.0.2.1"))
    spec = LinkSpec(name="flannel.ipip", kind="ipip", ipip=attrs)
    link = refusal = None
    try:
        link = await netlink.create_link(spec)
    except DeviceUnavailable as error:
        refusal = error
    await netlink.close()
    if refusal is None:
        assert link is not None
        assert link.ipip == attrs
    else:
        assert refusal.errno == errno.EOPNOTSUPP
        assert "modprobe ipip" in str(refusal)


async def test_a_route_with_an_ipv6_gateway_is_read() -> None:
    """RFC 5549, as BGP daemons make them."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    _output("ip", "route", "add", "10.6.0.0/24", "via", "inet6", "fe80::7", "dev", "flannel.1")
    (found,) = await netlink.routes(Family.V4, oif=index)
    assert found.gateway == IPv6Address("fe80::7")
    looked_up = await netlink.route_lookup(IPv4Address("10.6.0.9"))
    assert looked_up is not None
    assert looked_up.gateway == IPv6Address("fe80::7")
    assert await netlink.apply([Delete(found)]) == {}
    assert await netlink.routes(Family.V4, oif=index) == []
    await netlink.close()


async def cost_of_peers(netlink: KernelNetlink, index: int, first: int, count: int) -> float:
    """CPU seconds to set so many peers (neighbour, FDB entry, route) and to list them."""
    operations: list[Set] = []
    for i in range(first, first + count):
        gateway = IPv4Address(f"10.{100 + i // 256}.{i % 256}.0")
        mac = f"0e:00:00:01:{i >> 8:02x}:{i & 255:02x}"
        route = Route(dst=IPv4Network((int(gateway), 24)), gateway=gateway, oif=index, onlink=True)
        operations += [
            Set(Neighbour(index=index, ip=gateway, mac=mac)),
            Set(FdbEntry(index=index, mac=mac, dst=IPv4Address("172.16.0.0") + i)),
            Set(route),
        ]
    start = time.process_time()
    assert await netlink.apply(operations) == {}
    there = first + count
    assert len(await netlink.routes(Family.V4, oif=index)) == there
    assert len(await netlink.neighbours(index, Family.V4)) == there
    assert len(await netlink.fdb(index)) == there
    return time.process_time() - start


@pytest.mark.slow
async def test_a_peer_costs_no_more_because_there_are_many() -> None:
    """A list that is read for each of a thousand would make them cost a hundred times a hundred."""
    netlink = KernelNetlink()
    index = await overlay(netlink)
    hundred = await cost_of_peers(netlink, index, 0, 100)
    assert await cost_of_peers(netlink, index, 100, 1000) < 25 * hundred
    await netlink.close()


async def test_no_descriptor_is_left_behind() -> None:
    """After hundreds of calls, cancelled ones among them, and a close."""
    before = _descriptors()
    netlink = KernelNetlink()
    await overlay(netlink)
    for _ in range(20):
        stream = netlink.notifications()
        task = asyncio.create_task(netlink.routes(Family.V4))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await netlink.links()
        await stream.aclose()
    netlink.notifications()
    await netlink.close()
    assert _descriptors() == before
    with pytest.raises(KernelError):
        await netlink.links()


@pytest.mark.parametrize("taker", ["device", "socket"])
def test_a_vxlan_port_that_is_taken_is_named_with_its_taker(taker: str) -> None:
    """Another overlay's device with external control, as Cilium and OVN have it; or a program."""

    async def scenario() -> None:
        netlink = KernelNetlink()
        try:
            vxlan = VxlanAttrs(vni=1, local=IPv4Address("192.0.2.1"), port=8472)
            device = await netlink.create_link(
                LinkSpec(name="flannel.1", kind="vxlan", vxlan=vxlan)
            )
            with pytest.raises(KernelError) as caught:
                await netlink.set_link(device.index, up=True)
        finally:
            await netlink.close()
        said = str(caught.value)
        assert "flannel.1 up" in said
        assert "UDP port 8472 is taken by" in said
        assert ("vxlan device other0" if taker == "device" else f"(pid {os.getpid()})") in said
        assert "Port in Backend" in said

    def work() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
            if taker == "socket":
                holder.bind(("0.0.0.0", 8472))
            else:
                _output(
                    *["ip", "link", "add", "other0", "type", "vxlan", "external", "dstport", "8472"]
                )
                _output(*["ip", "link", "set", "other0", "up"])
            asyncio.run(scenario())

    in_new_netns(work)


async def test_a_port_knows_its_bridge() -> None:
    """Also one whose other links are as they were: what it is a port of is no difference."""
    for words in ("link add br0 type bridge", "link add v0 type veth peer name v1"):
        _output("ip", *words.split())
    netlink = KernelNetlink()
    before = {link.name: link for link in await netlink.links()}
    assert before["v0"].master == 0
    _output("ip", "link", "set", "v0", "master", "br0")
    after = {link.name: link for link in await netlink.links()}
    assert after["v0"].master == before["br0"].index
    assert after["v1"].master == after["br0"].master == 0
    assert after["v0"] == before["v0"]
    await netlink.close()
