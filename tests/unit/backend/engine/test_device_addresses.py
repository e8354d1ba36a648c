"""The addresses of a device: ours is there, former ones of ours go, others stay (reference 6.0)."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_interface

from pyflannel.backend.plan import Device, address_operations
from pyflannel.kernel.base import Address, Set

DEVICE = Device(
    name="flannel.1",
    addresses=(ip_interface("10.5.1.0/32"), ip_interface("fd00:5:0:1::/128")),
    networks=(IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48")),
)


def operations(device: Device, *present: str, permanent: bool = True) -> list[str]:
    there = [
        Address(index=7, interface=ip_interface(text), permanent=permanent) for text in present
    ]
    return [
        f"{'+' if isinstance(op, Set) else '-'}{op.object.interface}"
        for op in address_operations(device, 7, there)
    ]


def test_an_address_that_is_there_is_kept():
    assert operations(DEVICE, "10.5.1.0/32", "fd00:5:0:1::/128", "fe80::1/64") == []


def test_ipv4_addresses_outside_the_network_are_foreign_and_stay():
    assert operations(DEVICE, "10.5.9.0/32", "172.31.0.1/24", "10.5.1.0/32") == [
        "+fd00:5:0:1::/128",
        "-10.5.9.0/32",
    ]


def test_the_same_address_with_another_length_is_another_address():
    assert "-10.5.1.0/16" in operations(DEVICE, "10.5.1.0/16")


def test_ipv6_addresses_outside_the_network_stay_as_well():
    there = ("10.5.1.0/32", "fd00:5:0:9::/128", "2001:db8::5/64", "fe80::1/64")
    assert operations(DEVICE, *there) == ["+fd00:5:0:1::/128", "-fd00:5:0:9::/128"]


def test_an_address_that_a_router_in_the_overlay_advertised_goes():
    there = ("10.5.1.0/32", "fd00:5:0:1::/128", "2001:db8::5/64", "fe80::1/64")
    assert operations(DEVICE, *there, permanent=False) == ["-2001:db8::5/64"]


def test_ours_is_added_before_others_go():
    """A device that loses its last address loses its routes."""
    assert operations(DEVICE, "10.5.9.0/32")[-1] == "-10.5.9.0/32"


def test_a_family_without_an_address_of_ours_is_left_alone():
    only4 = Device(name="d", addresses=DEVICE.addresses[:1], networks=DEVICE.networks)
    assert operations(only4, "10.5.1.0/32", "2001:db8::5/64") == []
    assert operations(Device(name="d", networks=DEVICE.networks), "10.5.9.0/32") == []
