"""The fake and the kernel, given the same random changes, hold the same tables and refuse the same.

The contract suite says what both must do; this looks for what no test thought of.
"""

import asyncio
import errno
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface, ip_network
from typing import Any, NamedTuple

import pytest

from pyflannel.core.errors import KernelError
from pyflannel.core.ip import Family
from pyflannel.kernel import rtnl
from pyflannel.kernel.base import (
    RTN_BLACKHOLE,
    Address,
    Delete,
    FdbEntry,
    KernelObject,
    LinkSpec,
    Neighbour,
    Netlink,
    Operation,
    Route,
    Set,
    VxlanAttrs,
)
from pyflannel.kernel.channel import Channel
from pyflannel.kernel.netlink import KernelNetlink
from pyflannel.kernel.objects import set_request
from pyflannel.testing.fakenetlink import FakeNetlink
from tests.support.netns import in_new_netns, without_fallback

LOOPBACK, MISSING = 1, 99
BATCHES = 120
NLM_F_APPEND = 0x800

FAMILIES: dict[int, dict[str, list[str]]] = {
    4: {
        "dst": ["10.5.7.0/24", "10.5.7.0/25", "10.5.0.0/16", "0.0.0.0/0"],
        "gateway": ["10.5.7.0", "10.5.7.200", "192.0.2.9", "203.0.113.1"],
        "address": ["192.0.2.1/24", "192.0.2.2/24", "10.5.0.0/32", "10.5.0.0/24"],
        "peer": ["192.0.2.7", "192.0.2.8"],
    },
    6: {
        "dst": ["fd00:5:7::/64", "fd00:5:7::/80", "fd00:5::/32", "::/0"],
        "gateway": ["fd00:5:7::", "fd00:5:7:0:9::", "2001:db8::9", "2001:db8:99::1"],
        "address": ["2001:db8::1/64", "2001:db8::2/64", "fd00:5::/128", "fd00:5::/64"],
        "peer": ["2001:db8::7", "2001:db8::8"],
    },
}
MACS = ["0e:00:00:00:00:0a", "0e:00:00:00:00:0b", "01:00:5e:00:00:01"]


class Devices(NamedTuple):
    """Indexes of the devices that `build` makes, in its order."""

    under: int
    device: int
    device6: int


class Changes:
    """Random, but the same for the same seed."""

    def __init__(self, seed: int, devices: Devices) -> None:
        self._random = random.Random(seed)
        self._devices = devices
        self._under, *self._vxlans = devices

    def __call__(self) -> list[tuple[str, Any]]:
        """The next few changes: a batch, or something done to a link."""
        pick = self._random.random()
        if pick < 0.06:
            return [("up", (self._link(), self._random.random() < 0.7))]
        if pick < 0.09:
            return [("mac", (self._random.choice(self._vxlans), self._random.choice(MACS[:2])))]
        if pick < 0.18:
            return [("append", self._plain_route())]
        count = self._random.randint(1, 4)
        return [("apply", [self._operation() for _ in range(count)])]

    def _link(self) -> int:
        return self._random.choice(self._devices)

    def _operation(self) -> Operation:
        item = self._object()
        return Set(item) if self._random.random() < 0.7 else Delete(item)

    def _object(self) -> KernelObject:
        choose = self._random.choice
        version = choose([4, 6])
        names = FAMILIES[version]
        kind = choose(["route", "route", "route", "address", "neighbour", "fdb"])
        index = choose([*self._devices, MISSING] if self._random.random() < 0.1 else self._devices)
        if kind == "address":
            interface = choose(names["address"])
            index = self._under if interface.startswith("2001:") else index
            return Address(index=index, interface=ip_interface(interface))
        if kind == "neighbour":
            return Neighbour(
                index=index, ip=ip_address(choose(names["gateway"])), mac=choose(MACS[:2])
            )
        if kind == "fdb":
            index = choose(self._vxlans)
            return FdbEntry(index=index, mac=choose(MACS), dst=ip_address(choose(names["peer"])))
        return self._route(version)

    def _route(self, version: int) -> Route:
        choose = self._random.choice
        names = FAMILIES[version]
        dst = ip_network(choose(names["dst"]))
        metric = choose([0, 0, 5])
        if self._random.random() < 0.1:
            return Route(dst=dst, type=RTN_BLACKHOLE, metric=metric)
        gateway = ip_address(choose(names["gateway"])) if self._random.random() < 0.7 else None
        onlink = gateway is not None and self._random.random() < 0.7
        oif = choose([*self._devices, None])
        if version == 6 and gateway is not None:
            # Whom IPv6 takes for a neighbour is modelled for what the backends do: gateways on the
            # link that lie in the destination, and neighbours in the one network of the underlay.
            onlink = gateway in dst and dst.prefixlen > 0
            if not onlink:
                gateway, oif = ip_address("2001:db8::9"), choose([self._under, None])
                dst = ip_network("fd00:5:7::/64") if dst.prefixlen == 0 else dst
        return Route(dst=dst, gateway=gateway, oif=oif, onlink=onlink, metric=metric)

    def _plain_route(self) -> Route:
        """One without a gateway: those of IPv6 with one would be joined to next hops."""
        version = self._random.choice([4, 6])
        dst = ip_network(self._random.choice(FAMILIES[version]["dst"]))
        return Route(dst=dst, oif=self._link(), metric=self._random.choice([0, 5]))


async def build(netlink: Netlink) -> Devices:
    under = await netlink.create_link(
        LinkSpec(name="under0", kind="bridge", mac="02:00:00:00:00:01")
    )
    vxlans = []
    for name, mac, local in (
        ("flannel.1", "0e:00:00:00:00:01", IPv4Address("192.0.2.1")),
        ("flannel-v6.1", "0e:00:00:00:06:01", IPv6Address("2001:db8::1")),
    ):
        vxlan = VxlanAttrs(vni=1, link=under.index, local=local)
        link = await netlink.create_link(LinkSpec(name=name, kind="vxlan", mac=mac, vxlan=vxlan))
        vxlans.append(link.index)
    devices = Devices(under.index, *vxlans)
    for index in (LOOPBACK, *devices):
        await netlink.set_link(index, up=True)
    return devices


async def tables(netlink: Netlink, devices: Devices) -> dict[str, object]:
    """All that can be seen, in an order that does not depend on who tells it."""
    seen: dict[str, object] = {"links": without_fallback(await netlink.links())}
    seen["addresses"] = sorted(map(str, await netlink.addresses()))
    for family in Family:
        seen[f"routes {family}"] = sorted(map(repr, await netlink.routes(family)))
        for index in devices:
            neighbours = await netlink.neighbours(index, family)
            seen[f"neighbours {family} {index}"] = sorted(map(str, neighbours))
    for index in (devices.device, devices.device6):
        seen[f"fdb {index}"] = sorted(map(str, await netlink.fdb(index)))
    return seen


async def append_in_kernel(channel: Channel, route: Route) -> bool:
    """`ip route append`; whether the kernel took it."""
    kind, _, body = set_request(route)
    flags = rtnl.NLM_F_REQUEST | rtnl.NLM_F_ACK | rtnl.NLM_F_CREATE | NLM_F_APPEND
    (answer,) = await channel.transact("append", [rtnl.Request(kind, flags, body)])
    return answer.errno == 0


async def compare(seed: int) -> None:
    kernel, fake, channel = KernelNetlink(), FakeNetlink(), Channel()
    try:
        for fallback in (await kernel.links())[1:]:
            fake.add_link(fallback.name, up=False)  # takes its index
        devices = await build(kernel)
        assert await build(fake) == devices
        changes = Changes(seed, devices)
        history: list[object] = []
        for _ in range(BATCHES):
            for what, detail in changes():
                history.append((what, detail))
                if what == "append":
                    if await append_in_kernel(channel, detail):
                        fake.append_route(detail)
                    continue
                outcome = await do(kernel, what, detail)
                imagined = await do(fake, what, detail)
                if what == "apply":
                    refused = [detail[position].object for position in outcome]
                    await clear(kernel, refused)
                    await clear(fake, refused)
                    # What the kernel cannot do without harm the fake can.
                    outcome = {i: code for i, code in outcome.items() if code != errno.ENOTUNIQ}
                assert outcome == imagined, f"{outcome} {imagined} {_story(history)}"
            here, there = await tables(kernel, devices), await tables(fake, devices)
            for name, rows in here.items():
                assert rows == there[name], f"{name}: {rows} {there[name]} after {_story(history)}"
    finally:
        await kernel.close()
        await channel.close()


async def clear(netlink: Netlink, refused: list[KernelObject]) -> None:
    """What stands under the key of a refused route is anybody's guess; now a black hole does."""
    holes = [
        Route(dst=item.dst, metric=item.metric, type=RTN_BLACKHOLE)
        for item in refused
        if isinstance(item, Route)
    ]
    assert await netlink.apply([Set(hole) for hole in holes]) == {}


async def do(netlink: Netlink, what: str, detail: Any) -> dict[int, int]:
    """What came out: errors by position, that of a change to a link at 0."""
    if what == "apply":
        failures = await netlink.apply(detail)
        return {position: _plain(error.errno) for position, error in failures.items()}
    index, value = detail
    try:
        await netlink.set_link(index, **{what: value})
    except KernelError as error:
        return {0: error.errno}
    return {}


def _plain(code: int) -> int:
    """Which of several reasons the kernel tells first is its own affair."""
    no_way = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH)
    return errno.EHOSTUNREACH if code in no_way else code


def _story(history: list[object]) -> str:
    return "\n".join(str(entry) for entry in history[-12:])


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.guest
@pytest.mark.parametrize("seed", range(8))
def test_fake_and_kernel_agree(seed: int) -> None:
    """After every batch of random operations and link changes."""
    in_new_netns(lambda: asyncio.run(compare(seed)))


async def test_a_difference_would_be_found() -> None:
    """The comparison sees what is set."""
    one, two = FakeNetlink(), FakeNetlink()
    devices = await build(one)
    await build(two)
    assert await tables(one, devices) == await tables(two, devices)
    route = Route(dst=ip_network("10.5.7.0/24"), oif=devices.device)
    one.meddle(Set(route))
    two.meddle(Set(replace(route, oif=devices.under)))
    assert await tables(one, devices) != await tables(two, devices)
