"""Following the underlay: what becomes of an interface that the backend cannot work with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

from pyflannel.core.errors import ConfigError, InterfaceError
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


class Machine:
    """What the selection finds, and a backend that wants an MTU of 1000."""

    def __init__(self) -> None:
        self.found: ExternalInterface | None = ETH0
        self.followed: list[int] = []
        self.asked_with: tuple[ExternalInterface, ExternalInterface] | None = None
        self.follower = UnderlayFollower(ETH0, self.select, self.moved, FakeClock())

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


def test_what_the_backend_refuses_is_reported_and_told_again_until_it_fits():
    async def scenario() -> None:
        machine = Machine()
        assert await machine.sees(replace(ETH0, mtu=500)) == "MTU too small"
        assert await machine.sees(replace(ETH0, mtu=500)) == "MTU too small"
        assert await machine.sees(None) == "there is none"
        assert await machine.sees(replace(ETH0, mtu=1400)) == ""
        assert machine.followed == [1400]
        assert await machine.sees(replace(ETH0, mtu=1400)) == ""
        assert machine.followed == [1400], "nothing new"

    asyncio.run(scenario())


def test_back_to_what_it_was_before_a_refusal_there_is_nothing_to_follow():
    async def scenario() -> None:
        machine = Machine()
        assert await machine.sees(replace(ETH0, mtu=500)) != ""
        assert await machine.sees(ETH0) == ""
        assert machine.followed == []

    asyncio.run(scenario())


def test_what_was_selected_first_stays_known_wherever_the_overlay_moves():
    async def scenario() -> None:
        machine = Machine()
        eth1 = replace(ETH0, name="eth1", index=3)
        await machine.sees(eth1)
        assert machine.asked_with == (ETH0, ETH0)
        await machine.sees(eth1)
        assert machine.asked_with == (eth1, ETH0)

    asyncio.run(scenario())
