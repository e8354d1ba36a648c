"""Keeps devices: found by name, created when missing, created anew when unusable, else corrected.

A device that is right is not touched; that is what keeps packets flowing over a restart of the
daemon. Corrections go one by one, each with its own failure: an MTU that the kernel refuses must
not keep the device from coming up.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from pyflannel.backend.base import SysctlWriter
from pyflannel.backend.plan import Device, address_operations
from pyflannel.core.errors import FlannelError, KernelError
from pyflannel.kernel.base import Link, Netlink, Operation
from pyflannel.logs import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class Kept:
    """What became of one device."""

    link: Link
    done: list[str] = field(default_factory=list)
    """Kinds of what was written: `device`, or any of `mac mtu link address`."""
    failures: dict[str, FlannelError] = field(default_factory=dict)
    """What could not be corrected, by device and kind."""


class DeviceKeeper:
    """Makes devices as they should be."""

    def __init__(self, netlink: Netlink, write_sysctl: SysctlWriter) -> None:
        self._netlink = netlink
        self._write_sysctl = write_sysctl
        self._as_made: dict[str, tuple[Device, Link]] = {}
        self._kept: dict[str, Link] = {}

    async def keep(self, device: Device) -> Kept:
        """One device, right again as far as that is possible.

        Raises:
            FlannelError: it cannot be had at all.
        """
        link = await self._netlink.link(device.name)
        if link is not None:
            difference = self._mismatch(device, link)
            if difference:
                log.warning(
                    "device is there with other settings, creating it anew",
                    device=device.name,
                    difference=difference,
                )
                await self._netlink.delete_link(link.index)
                link = None
        if link is not None:
            kept = Kept(link)
        else:
            await self._delete_renamed(device)
            kept = Kept(await self._create(device), ["device"])
            log.info("device created", device=device.name, mac=kept.link.mac or None)
        corrected = await self._correct(device, kept)
        if corrected:
            again = await self._netlink.link(device.name)
            if again is None:
                raise KernelError("link get", device.name, errno.ENODEV, "deleted meanwhile")
            kept.link = again
        if "device" not in kept.done:
            kept.done += corrected
        self._kept[device.name] = kept.link
        return kept

    async def _delete_renamed(self, device: Device) -> None:
        """Deletes our device under the name that somebody gave it; two of one VNI cannot be."""
        former = self._kept.pop(device.name, None)
        if former is None or device.create is None:
            return
        for link in await self._netlink.links():
            if _likeness(link) == _likeness(former):
                log.warning("device was renamed", device=device.name, name=link.name)
                await self._netlink.delete_link(link.index)

    def _mismatch(self, device: Device, link: Link) -> str:
        difference = device.mismatch(link)
        asked, made = self._as_made.get(device.name, (None, None))
        # The kernel may give us something else than we had asked for (a module parameter can do
        # that). Creating the device once more would give the same, for ever.
        if asked == device and made is not None and _likeness(made) == _likeness(link):
            return ""
        return difference

    async def _create(self, device: Device) -> Link:
        if device.create is not None:
            link = await self._netlink.create_link(device.create)
        else:
            if device.open is not None:
                await device.open()
            opened = await self._netlink.link(device.name)
            if opened is None:
                raise KernelError("link get", device.name, errno.ENODEV, "it did not appear")
            link = opened
        for name, value in device.sysctls:
            if not self._write_sysctl(name, value):
                log.debug("sysctl not written", sysctl=name, value=value)
        difference = device.mismatch(link)
        if difference:
            log.warning(
                "the kernel made the device otherwise than asked",
                device=device.name,
                difference=difference,
            )
        self._as_made[device.name] = (device, link)
        return link

    async def _correct(self, device: Device, kept: Kept) -> list[str]:
        """Sets what differs; returns the kinds of it."""
        link, index = kept.link, kept.link.index
        set_link = partial(self._netlink.set_link, index)
        steps: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        # The MAC first: changing it flushes the neighbours. Up last, as upstream does it.
        if device.mac is not None and link.mac != device.mac:
            steps.append(("mac", partial(set_link, mac=device.mac)))
        if device.mtu is not None and link.mtu != device.mtu:
            steps.append(("mtu", partial(set_link, mtu=device.mtu)))
        if device.txqlen is not None and link.txqlen != device.txqlen:
            steps.append(("link", partial(set_link, txqlen=device.txqlen)))
        if device.addresses:
            present = await self._netlink.addresses(index=index)
            operations = address_operations(device, index, present)
            steps += [("address", partial(self._apply, operation)) for operation in operations]
        if device.up and not link.up:
            steps.append(("link", partial(set_link, up=True)))
        done: list[str] = []
        for kind, step in steps:
            try:
                await step()
            except KernelError as error:
                kept.failures[f"{device.name} {kind}"] = error
            else:
                done.append(kind)
        return done

    async def _apply(self, operation: Operation) -> None:
        for error in (await self._netlink.apply([operation])).values():
            raise error


def _likeness(link: Link) -> tuple[object, ...]:
    """What cannot be changed about a link once it is there."""
    return (link.index, link.kind, link.vxlan, link.ipip)
