"""Following the underlay: what becomes of an interface that the backend cannot work with."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from pyflannel.core.errors import ConfigError, InterfaceError, KernelError
from pyflannel.core.underlay import ExternalInterface
from pyflannel.node.follow import UnderlayFollower
from pyflannel.testing.fakeclock import FakeClock

ETH0 = ExternalInterface(
    name="eth0",
    index=2,
    mtu=1500,
    address=IPv4Address("192.0.2.1"),
    address6=None,
    public_ip=IPv4Address("192.0.2.1"),
    public_ipv6=None,
)


WISH = IPv4Address("203.0.113.5")


class Machine:
    """What the selection finds, and a backend that wants an MTU of 1000."""

    def __init__(self, first: ExternalInterface = ETH0) -> None:
        self.found: ExternalInterface | None = first
        self.followed: list[int] = []
        self.asked_with: tuple[ExternalInterface, ExternalInterface] | None = None
        self.announced: list[str] = []
        self.refusal: KernelError | None = None
        self.clock = FakeClock()
        self.chosen: ExternalInterface | None = None
        self.follower = UnderlayFollower(
            first,
            self.select,
            self.moved,
            self.clock,
            announce=self.announce,
            choose=self.choose,
        )

    async def choose(self, current: ExternalInterface) -> ExternalInterface:
        if self.chosen is None:
            raise InterfaceError("no interface has that address")
        return self.chosen

    def announce(self, interface: ExternalInterface) -> None:
        self.announced.append(interface.mac)
        if self.refusal is not None:
            raise self.refusal

    async def select(
        self, current: ExternalInterface, home: ExternalInterface
    ) -> ExternalInterface:
        self.asked_with = (current, home)
        if self.found is None:
            raise InterfaceError("there is none")
        return self.found

    async def moved(self, selected: ExternalInterface) -> None:
        if selected.mtu < 1000:
            raise ConfigError("MTU too small")
        self.followed.append(selected.mtu)

    async def sees(self, found: ExternalInterface | None) -> str:
        self.found = found
        await self.follower.check()
        return self.follower.trouble.text


async def test_what_the_backend_refuses_is_reported_and_told_again_until_it_fits():
    machine = Machine()
    assert await machine.sees(replace(ETH0, mtu=500)) == "MTU too small"
    assert await machine.sees(replace(ETH0, mtu=500)) == "MTU too small"
    assert await machine.sees(None) == "there is none"
    assert await machine.sees(replace(ETH0, mtu=1400)) == ""
    assert machine.followed == [1400]
    assert await machine.sees(replace(ETH0, mtu=1400)) == ""
    assert machine.followed == [1400], "nothing new"


async def test_back_to_what_it_was_before_a_refusal_there_is_nothing_to_follow():
    machine = Machine()
    assert await machine.sees(replace(ETH0, mtu=500)) != ""
    assert await machine.sees(ETH0) == ""
    assert machine.followed == []


async def test_what_was_selected_first_stays_known_wherever_the_overlay_moves():
    machine = Machine()
    eth1 = replace(ETH0, name="eth1", index=3)
    await machine.sees(eth1)
    assert machine.asked_with == (ETH0, ETH0)
    await machine.sees(eth1)
    assert machine.asked_with == (eth1, ETH0)


DUAL = replace(ETH0, address6=IPv6Address("2001:db8::1"), mac="02:00:00:00:00:01")


async def test_neighbours_are_told_three_times_of_another_card_or_mac_and_not_otherwise():
    machine = Machine(DUAL)
    await machine.sees(DUAL)
    await machine.sees(replace(DUAL, mtu=1400))
    assert machine.announced == []
    another = replace(DUAL, mtu=1400, mac="02:00:00:00:00:02")
    for _ in range(5):
        await machine.sees(another)
    assert machine.announced == ["02:00:00:00:00:02"] * 3
    machine.refusal = KernelError("neighbour advertisement", "2001:db8::1", 99)
    for _ in range(5):
        assert await machine.sees(replace(another, index=7)) == ""
    assert len(machine.announced) == 6
    await machine.sees(replace(another, index=8))
    assert len(machine.announced) == 7


async def test_without_ipv6_or_without_a_mac_there_is_nothing_to_tell():
    for other in (replace(ETH0, mac="02:00:00:00:00:02"), replace(DUAL, mac="")):
        machine = Machine(DUAL)
        await machine.sees(other)
        await machine.sees(other)
        assert machine.announced == []


async def test_an_interface_that_comes_and_goes_is_gone_back_to_later_and_later():
    """Every node of the cluster is told of each move."""
    machine = Machine()
    eth1 = replace(ETH0, name="eth1", index=3, address=IPv4Address("192.0.2.101"))
    await machine.sees(eth1)
    await machine.sees(eth1)
    assert machine.asked_with == (eth1, ETH0), "the first return may be at once"
    await machine.sees(ETH0)
    await machine.sees(eth1)
    await machine.sees(eth1)
    assert machine.asked_with == (eth1, eth1), "not asked for the first one yet"
    await machine.clock.advance(2)
    await machine.sees(eth1)
    assert machine.asked_with == (eth1, ETH0)


async def test_a_wish_is_chosen_for_once_and_followed_as_a_usual_move():
    machine = Machine()
    machine.chosen = replace(ETH0, public_ip=WISH, mtu=1400)
    machine.follower.wish([])
    await machine.sees(ETH0)
    assert machine.asked_with == (ETH0, ETH0), "nothing is wished for"
    machine.follower.wish([WISH])
    assert await machine.sees(machine.chosen) == ""
    assert machine.asked_with == (ETH0, machine.chosen)
    assert machine.followed == [1400]
    # From now on this is the place to be at; the same wish is none.
    machine.follower.wish([WISH])
    machine.chosen = None
    await machine.sees(replace(ETH0, public_ip=WISH, mtu=1400))
    assert machine.followed == [1400]
    assert machine.follower.unmet.text == ""


async def test_a_wish_that_cannot_be_met_changes_nothing_and_is_tried_again():
    machine = Machine()
    machine.follower.wish([WISH])
    assert await machine.sees(ETH0) == "", "the interface itself can be used"
    assert machine.follower.unmet.text == "no interface has that address"
    assert machine.followed == []
    machine.chosen = replace(ETH0, public_ip=WISH)
    await machine.sees(machine.chosen)
    assert machine.followed == [1500]
    assert machine.follower.unmet.text == ""


async def test_a_wish_is_followed_at_once_wherever_the_overlay_has_moved_to():
    machine = Machine()
    await machine.sees(replace(ETH0, name="eth1", index=3, address=IPv4Address("198.51.100.1")))
    for _ in range(3):
        # An interface that comes and goes is gone back to later and later.
        await machine.sees(ETH0)
        away = replace(ETH0, name="eth1", index=3, address=IPv4Address("198.51.100.1"))
        await machine.sees(away)
    machine.chosen = replace(ETH0, name="eth2", index=4, address=WISH, public_ip=WISH)
    machine.follower.wish([WISH])
    await machine.sees(machine.chosen)
    assert machine.asked_with == (away, machine.chosen)
