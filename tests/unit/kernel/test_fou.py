"""FOU ports as messages: what `ip fou` sends, what the kernel lists."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from pyflannel.core.errors import DeviceUnavailable, KernelError
from pyflannel.kernel import fou, genl
from pyflannel.kernel.fou import FouPort
from pyflannel.kernel.rtnl import NLM_F_ACK, NLM_F_DUMP

OURS = FouPort(port=8285, protocol=4, local=IPv4Address("192.0.2.1"), ifindex=3)
ADDED = bytes.fromhex(
    "06000100205d0000"  # FOU_ATTR_PORT, in network byte order
    "0500020002000000"  # AF: AF_INET
    "0500030004000000"  # IPPROTO: IP in IP
    "0500040001000000"  # TYPE: direct
    "08000600c0000201"  # LOCAL_V4
    "08000b0003000000"  # IFINDEX
)
LISTED = bytes.fromhex(
    "01010000"  # genlmsghdr
    "0500020002000000"
    "06000100205d0000"
    "06000a0000000000"  # PEER_PORT
    "0500030004000000"
    "0500040001000000"
    "08000b0003000000"
    "08000600c0000201"
)
"""In the order of `fou_fill_info` (net/ipv4/fou_core.c)."""


def test_a_port_is_named_by_all_that_its_deletion_compares() -> None:
    assert fou.pack(OURS) == ADDED


def test_a_port_is_read_from_the_listing() -> None:
    assert fou.unpack(LISTED) == OURS


def test_one_for_every_address_and_device_has_neither_attribute() -> None:
    everywhere = FouPort(port=5555, protocol=47, local=None, ifindex=0)
    assert fou.pack(everywhere) == bytes.fromhex(
        "0600010015b300000500020002000000050003002f0000000500040001000000"
    )
    assert fou.unpack(bytes(4) + fou.pack(everywhere)) == everywhere


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("0500020002", "050002000a"),  # IPv6
        ("0500040001", "0500040002"),  # GUE: a header of its own
        ("06000a000000", "06000a00205d"),  # of one peer alone
    ],
    ids=["ipv6", "gue", "peer"],
)
def test_what_is_more_than_a_port_is_not_plain(before: str, after: str) -> None:
    other = LISTED.hex().replace(before, after)
    assert other != LISTED.hex()
    assert not fou.unpack(bytes.fromhex(other)).plain


class Kernel:
    """What answers on a netlink socket."""

    def __init__(self, *, family: int = 29) -> None:
        self.family = family
        self.asked: list[tuple[int, int, bytes]] = []

    def query(self, request, operation, subject, *, protocol):
        assert protocol == genl.NETLINK_GENERIC
        self.asked.append(tuple(request))
        if request.kind == 0x10:
            if not self.family:
                raise KernelError(operation, subject, 2)
            return [bytes.fromhex("0102000006000100") + self.family.to_bytes(4, "little")]
        return [LISTED]

    def transact(self, request, operation, subject, *, protocol):
        assert protocol == genl.NETLINK_GENERIC
        self.asked.append(tuple(request))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(genl, "query", made.query)
    monkeypatch.setattr(fou, "query", made.query)
    monkeypatch.setattr(fou, "transact", made.transact)
    return made


def test_the_family_is_asked_for_and_then_its_command(kernel: Kernel) -> None:
    assert fou.ports() == [OURS]
    fou.add(OURS)
    fou.delete(OURS)
    asking = (0x10, 1 | NLM_F_ACK, bytes.fromhex("0301000008000200") + b"fou\0")
    assert kernel.asked == [
        asking,
        (29, 1 | NLM_F_DUMP, bytes.fromhex("03010000")),
        asking,
        (29, 1 | NLM_F_ACK, bytes.fromhex("01010000") + ADDED),
        asking,
        (29, 1 | NLM_F_ACK, bytes.fromhex("02010000") + ADDED),
    ]


def test_without_the_module_there_is_no_port_and_a_way_out(kernel: Kernel) -> None:
    kernel.family = 0
    assert not fou.is_there()
    assert fou.ports() == []
    with pytest.raises(DeviceUnavailable, match="modprobe fou"):
        fou.add(OURS)
