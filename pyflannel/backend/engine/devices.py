"""Keeps devices: found by name, created when missing, created anew when unusable, else corrected.

A device that is right is not touched; that is what keeps packets flowing over a restart of the
daemon. Corrections go one by one, each with its own failure: an MTU that the kernel refuses must
not keep the device from coming up. Sysctls are looked at each time: the kernel resets those of IPv6
when it takes a device out of IPv6 and back in, which an MTU below 1280 is enough for.

There cannot be two vxlan devices of one VNI and port. If one of another name stands in the way it
is deleted if it has our VTEP MAC, for then it is ours, and was renamed; else it is named, and
stays.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import field
from functools import partial
from typing import Final

from pyflannel.backend.base import DeviceClaim, SysctlWriter
from pyflannel.backend.plan import Device, address_operations
from pyflannel.core.errors import DeviceUnavailable, FlannelError, KernelError
from pyflannel.kernel.base import Address, Link, LinkSpec, Netlink, Operation, VxlanAttrs
from pyflannel.logs import get_logger
from pyflannel.records import dataclass

log = get_logger(__name__)

KERNEL_VXLAN_PORT: Final = 8472
"""What the kernel takes where no port is given (its module parameter `udp_port`)."""


@dataclass(slots=True)
class Kept:
    """What became of one device."""

    link: Link
    done: list[str] = field(default_factory=list)
    """Kinds of what was written: `device`, or any of `mac mtu link offload address`."""
    failures: dict[str, FlannelError] = field(default_factory=dict)
    """What could not be corrected, by device and kind."""


class DeviceKeeper:
    """Makes devices as they should be."""

    def __init__(
        self,
        netlink: Netlink,
        write_sysctl: SysctlWriter,
        claim: DeviceClaim = lambda _name: None,
    ) -> None:
        self._netlink = netlink
        self._write_sysctl = write_sysctl
        self._claim = claim
        self._as_made: dict[str, tuple[Device, Link]] = {}
        self._kept: dict[str, Link] = {}

    async def keep(self, device: Device) -> Kept:
        """One device, right again as far as that is possible.

        Raises:
            FlannelError: it is not available at all.
        """
        if device.create is not None:
            self._claim(device.name)
        link = await self._netlink.link(device.name)
        if link is not None:
            difference = self._mismatch(device, link)
            if difference:
                log.warning(
                    "device has other settings than wanted, deleting and creating it",
                    device=device.name,
                    difference=difference,
                )
                await self._netlink.delete_link(link.index)
                link = None
        if link is not None:
            kept = Kept(link)
            self._set_sysctls(device)  # before it is up, as for a new one
        else:
            await self._delete_renamed(device)
            kept = Kept(await self._create(device), ["device"])
            log.info("device created", device=device.name, mac=kept.link.mac or None)
        corrected = await self._correct(device, kept)
        self._set_sysctls(device)
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
        """Deletes our device, which was renamed: there cannot be two of one VNI."""
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
        # that). Creating the device once more would give the same, without end.
        if asked == device and made is not None and _likeness(made) == _likeness(link):
            return ""
        return difference

    async def _create(self, device: Device) -> Link:
        if device.create is not None:
            link = await self._create_through_netlink(device.create)
        else:
            if device.open is not None:
                await device.open()
            opened = await self._netlink.link(device.name)
            if opened is None:
                raise KernelError("link get", device.name, errno.ENODEV, "it did not appear")
            link = opened
        # Before it is up: nothing in the overlay may configure this node, not even for a moment.
        self._set_sysctls(device)
        difference = device.mismatch(link)
        if difference:
            log.warning(
                "the kernel created the device with other settings than asked for",
                device=device.name,
                difference=difference,
            )
        self._as_made[device.name] = (device, link)
        return link

    async def _create_through_netlink(self, spec: LinkSpec) -> Link:
        try:
            return await self._netlink.create_link(spec)
        except KernelError as error:
            if error.errno != errno.EEXIST or spec.vxlan is None:
                raise
            await self._make_room(spec, spec.vxlan)
        return await self._netlink.create_link(spec)

    async def _make_room(self, spec: LinkSpec, wanted: VxlanAttrs) -> None:
        """Deletes our device under another name; a former run of ours cannot have told us of it.

        Raises:
            DeviceUnavailable: the one in the way is another program's.
        """
        for link in await self._netlink.links():
            if link.vxlan is None or _place(link.vxlan) != _place(wanted):
                continue
            if not link.mac or link.mac != spec.mac:
                raise DeviceUnavailable(
                    "link add",
                    f"{spec.name} (VNI {wanted.vni})",
                    errno.EEXIST,
                    f"{link.name} has this VNI already and its MAC {link.mac} is not this node's; "
                    f"if it is not needed: ip link delete dev {link.name}",
                )
            log.warning("device was renamed", device=spec.name, name=link.name)
            await self._netlink.delete_link(link.index)

    def _set_sysctls(self, device: Device) -> None:
        for name, value in device.sysctls:
            if not self._write_sysctl(name, value):
                log.debug("sysctl not written", sysctl=name, value=value)

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
        if await self._differs_in_offload(device, kept):
            switch = partial(
                self._netlink.set_tx_checksum, device.name, on=bool(device.tx_checksum)
            )
            steps.append(("offload", switch))
        if device.addresses:
            present = await self._netlink.addresses(index=index)
            operations = address_operations(device, index, present)
            steps += [
                ("address", partial(self._apply, device.name, operation))
                for operation in operations
            ]
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

    async def _differs_in_offload(self, device: Device, kept: Kept) -> bool:
        if device.tx_checksum is None:
            return False
        try:
            return await self._netlink.tx_checksum(device.name) != device.tx_checksum
        except KernelError as error:
            kept.failures[f"{device.name} offload"] = error
            return False

    async def _apply(self, name: str, operation: Operation) -> None:
        for error in (await self._netlink.apply([operation])).values():
            thing = operation.object
            six = isinstance(thing, Address) and thing.interface.version == 6
            if error.errno == errno.EACCES and six:
                # Without CAP_NET_ADMIN it would be EPERM.
                sysctl = f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6"
                hint = f"IPv6 is disabled on {name}: echo 0 >{sysctl}"
                raise KernelError(error.operation, error.subject, error.errno, hint)
            raise error


def _place(vxlan: VxlanAttrs) -> tuple[int, int, int]:
    """What no two vxlan devices have in common: VNI, port, and family of the socket."""
    family = 4 if vxlan.local is None else vxlan.local.version
    return (vxlan.vni, vxlan.port or KERNEL_VXLAN_PORT, family)


def _likeness(link: Link) -> tuple[object, ...]:
    """What cannot be changed about a link once it is there."""
    return (link.index, link.kind, link.vxlan, link.ipip)
