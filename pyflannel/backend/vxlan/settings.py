"""What vxlan's part of the network config may say, and whether it can work here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Self

from pyflannel.core.config import NetworkConfig
from pyflannel.core.fields import Mismatch, Problem, boolean, integer
from pyflannel.core.ip import Family
from pyflannel.core.kind import MAX_DEVICE_NAME, MAX_PORT
from pyflannel.core.settings import Range, Settings, setting
from pyflannel.core.underlay import ExternalInterface
from pyflannel.gocompat.json import JsonValue
from pyflannel.records import dataclass

OVERHEAD: Final = {Family.V4: 50, Family.V6: 70}
"""Outer IP (20 or 40) + UDP (8) + VXLAN (8) + inner Ethernet (14). Upstream takes 50 for both; with
an IPv6 underlay its full-size packets do not fit, and the kernel refuses such an MTU."""
MIN_MTU: Final = {Family.V4: 68, Family.V6: 1280}
"""RFC 791 §3.2, RFC 8200 §5. The kernel keeps a family off devices with less."""
MAX_DEVICE_MTU: Final = 65535
"""`ETH_MAX_MTU`: the kernel refuses more."""
USUAL_LARGEST_MTU: Final = 9216
"""Jumbo frames as switches are commonly set for; larger is more likely a slip of the fingers."""
MAX_VNI: Final = 0xFFFFFF
"""24 bits (RFC 7348 §5); the kernel answers ERANGE to more."""
KERNEL_PORT: Final = 8472
"""What the kernel takes when no port is given (its module parameter `udp_port`)."""

_FOLLOW: Final = "leave it out to follow the interface"
_VNIS: Final = Range(0, MAX_VNI, f"24 bits, 0 to {MAX_VNI}", "1 is flannel's own")
_PORTS: Final = Range(
    None, MAX_PORT, f"a UDP port, 1 to {MAX_PORT}", f"0 means the kernel's own, {KERNEL_PORT}"
)
_LEAST_MTU: Final = MIN_MTU[Family.V4] + OVERHEAD[Family.V4]
_MOST_MTU: Final = MAX_DEVICE_MTU + OVERHEAD[Family.V4]
_MTUS: Final = Range(
    _LEAST_MTU, _MOST_MTU, f"the MTU of the underlay, {_LEAST_MTU} to {_MOST_MTU}", _FOLLOW, also=0
)


AUTO: Final = "auto"
LEFT_ALONE: Final[bool | str] = True


def boolean_or_auto(value: JsonValue) -> bool | str:
    """`true`, `false` or `"auto"`.

    Raises:
        Mismatch: it is something else.
    """
    if value == AUTO:
        return AUTO
    try:
        return boolean(value)
    except Mismatch as mismatch:
        raise Mismatch(f'true, false or "{AUTO}"', mismatch.remedy) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanSettings(Settings):
    """`Backend` of the network config."""

    vni: int = setting(
        "VNI",
        integer,
        default=1,
        effect="VXLAN network id; also the number in the device's name",
        within=_VNIS,
        together=True,
    )
    port: int = setting(
        "Port",
        integer,
        default=0,
        effect=f"UDP port of all nodes; 0 leaves it to the kernel, which takes {KERNEL_PORT}",
        within=_PORTS,
        together=True,
    )
    mtu: int = setting(
        "MTU",
        integer,
        default=0,
        effect="MTU of the underlay to assume, overhead not yet taken off; 0 is the interface's",
        within=_MTUS,
    )
    gbp: bool = setting(
        "GBP", boolean, default=False, effect="the group based policy extension of the device"
    )
    learning: bool = setting(
        "Learning", boolean, default=False, effect="the kernel learns FDB entries from packets"
    )
    direct_routing: bool = setting(
        "DirectRouting",
        boolean,
        default=False,
        effect="plain routes instead of tunnels to peers on the same link",
    )
    tx_checksum_offload: bool | str = setting(
        "TxChecksumOffload",
        boolean_or_auto,
        default=LEFT_ALONE,
        effect="`false` has the kernel compute checksums of TCP and UDP before the tunnel: slower, "
        'and right where they are lost in it; `"auto"` does so when a probe sees them lost; `true` '
        "leaves the device as it is",
    )

    def tunnel_port(self) -> int:
        """As in `Settings`."""
        return self.port or KERNEL_PORT

    def minds_checksums(self) -> bool:
        """As in `Settings`."""
        return self.tx_checksum_offload == AUTO

    def problems(self) -> Iterable[Problem]:
        """As in `Settings`: what is unlikely to be meant."""
        if self.port < 0:
            text = f"Port is {self.port}: taken as 0, the kernel's own port {KERNEL_PORT}"
            yield Problem.warning("Backend.Port", text, "leave it out")
        if USUAL_LARGEST_MTU < self.mtu <= _MOST_MTU:
            text = f"MTU is {self.mtu}, more than jumbo frames ({USUAL_LARGEST_MTU})"
            yield Problem.warning("Backend.MTU", text, _FOLLOW)

    def settled(self) -> Self:
        """As in `Settings`: upstream hands a port to the kernel only if it is above 0."""
        return replace(self, port=max(self.port, 0))


DEVICES: Final = {Family.V4: "flannel", Family.V6: "flannel-v6"}
"""What the names of the devices start with; a dot and the VNI follow."""


def device_name(family: Family, vni: int) -> str:
    """`flannel.1`, for IPv6 `flannel-v6.1`."""
    return f"{DEVICES[family]}.{vni}"


def device_names(config: NetworkConfig) -> Mapping[Family, str]:
    """The VTEPs."""
    vni = config.settings(VxlanSettings).vni
    return {family: device_name(family, vni) for family in config.families}


def suits(config: NetworkConfig, external: ExternalInterface | None) -> Iterator[Problem]:
    """A device needs a name, a tunnel a source, and each family room for a packet of its own."""
    settings = config.settings(VxlanSettings)
    for family in config.families:
        device = device_name(family, settings.vni)
        if len(device) > MAX_DEVICE_NAME:
            largest = 10 ** (MAX_DEVICE_NAME - len(DEVICES[family]) - 1) - 1
            yield Problem.error(
                "Backend.VNI",
                f"VNI is {settings.vni}, expected at most {largest}: the device {device} would "
                f"have a name of more than {MAX_DEVICE_NAME} characters",
                "1 is flannel's own",
            )
        least = MIN_MTU[family] + OVERHEAD[family]
        if 0 < settings.mtu < least:
            rfc = "RFC 791 §3.2" if family is Family.V4 else "RFC 8200 §5"
            text = f"MTU is {settings.mtu}, expected at least {least} for {family} ({rfc})"
            yield Problem.error("Backend.MTU", text, _FOLLOW)
        if external is None:
            continue
        if external.local(family) is None:
            text = (
                f"{external.name} has no {family} address, which vxlan needs as its tunnel source"
            )
            yield Problem.error("", text)
        if external.mtu < least:
            left = external.mtu - OVERHEAD[family]
            yield Problem.error(
                "",
                f"MTU {external.mtu} leaves {left} bytes after vxlan's {OVERHEAD[family]}, and "
                f"{family} needs {MIN_MTU[family]}",
            )
    if external is not None and settings.mtu > external.mtu:
        yield Problem.warning(
            "Backend.MTU",
            f"MTU is {settings.mtu}, more than {external.name} carries: its {external.mtu} counts",
            _FOLLOW,
        )
