"""The veth pair where decapsulated packets are joined, and lose the tunnel's mark.

flannel.bpf.c says why. `flannelgro1` receives the packets to be joined (NAPI GRO). `flannelgro0`
receives SRv6-encapsulated packets; its route for `STRIP_TO` has the kernel decapsulate them and
send them out of `flannelgro1`. This SRv6 way depends on the node's IPv6 settings and rules (IPv6
may be switched off, a rule may drop in PREROUTING), so it is used only while a test frame of ours
arrives. `flannelgro1` has no offload, so the kernel cuts what is sent out of it and finishes its
checksum. Packets to nodes with a user-space data path go this way.

No other packet may use the SRv6 way: it passes by the firewall of the external interface. So the
route is in a table of its own, which a rule selects for `flannelgro0` only; the program `pair_in`
drops packets without the token there; and neither end has an address, not even a link-local one.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.datapath.ebpf import bpf
from pyflannel.kernel import ethtool, seg6, veth
from pyflannel.kernel.sysctl import try_write_sysctl, write_sysctl
from pyflannel.records import dataclass

SENDER: Final = "flannelgro0"
RECEIVER: Final = "flannelgro1"
MTU: Final = 65535
"""The largest MTU of a veth. A packet on the SRv6 way may be this long (End.DX2 checks it)."""
STRIP_FROM: Final = IPv6Address("fd66:6c61:6e6e:656c::2")
STRIP_TO: Final = IPv6Address("fd66:6c61:6e6e:656c::1")
"""Unique local addresses (RFC 4193; the prefix is "flannel" in ASCII) that never leave the node.
The source has a route back to the incoming device, for reverse path filters."""
TABLE: Final = 0x666C616E
"""Routing table of the SRv6 way: "flan" in ASCII, far above numbers in use."""
RULE_PRIORITY: Final = 1
"""It comes before rules that others have put before the main table (a VPN's default route). It does
not affect them: no other packets come in by `flannelgro0`."""
TOKEN_BYTES: Final = 12
"""The size of two MAC addresses, which it replaces."""
TEST_ETHERTYPE: Final = 0x88B5
"""The first local experimental EtherType of IEEE 802."""

_ADDRESSES: Final = Path("/proc/thread-self/net/if_inet6")
_IPPROTO_ETHERNET: Final = 143
_ETH_P_IPV6: Final = 0x86DD
_ETH_P_8021Q: Final = 0x8100
_SILENT: Final = (
    # No addresses and no router advertisements: no host uses this link.
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
)
"""For both ends, before they come up: then the kernel makes an address."""
_SETTINGS: Final = (
    *_SILENT,
    ("accept_dad", "0"),
    ("disable_ipv6", "0"),
    # bpf_fib_lookup() answers only where packets may be forwarded.
    ("forwarding", "1"),
)


@dataclass(frozen=True, slots=True)
class GroPair:
    """Both ends, as the programs need to know them."""

    sender: int
    """ifindex of `flannelgro0`."""
    receiver: int
    """ifindex of `flannelgro1`."""
    sender_mac: bytes
    receiver_mac: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """The settings of one end, beside being up and having the `MTU`."""

    name: str
    offloads: Mapping[int, bool]
    """By the ethtool command that sets them."""


ENDS: Final = (
    # veth joins packets only if the sending end could not have cut them
    # (drivers/net/veth.c, veth_skb_is_eligible_for_gro).
    Wanted(SENDER, {ethtool.ETHTOOL_STSO: False}),
    # Packets sent out of this end must be cut, and their checksums finished. TSO goes first:
    # without checksums the kernel switches it off by itself, and does not switch it on again.
    Wanted(
        RECEIVER,
        {ethtool.ETHTOOL_STSO: False, ethtool.ETHTOOL_STXCSUM: False, ethtool.ETHTOOL_SGRO: True},
    ),
)


def find() -> GroPair | None:
    """The existing pair; `None` if it is missing, or if other devices have the names.

    Raises:
        KernelError: the kernel does not list it.
    """
    sender, receiver = veth.read_end(SENDER), veth.read_end(RECEIVER)
    if sender is None or receiver is None or not _belong_together(sender, receiver):
        return None
    return GroPair(sender.index, receiver.index, sender.mac, receiver.mac)


def _belong_together(sender: veth.End, receiver: veth.End) -> bool:
    return (sender.peer, receiver.peer) == (receiver.index, sender.index)


def ensure() -> tuple[GroPair, list[str]]:
    """Makes the pair or repairs its settings; the pair, and what had to be changed.

    Raises:
        KernelError: it is not available; DeviceUnavailable if other devices have the names.
    """
    wrong: list[str] = []
    for _ in range(2):
        ends = [veth.read_end(end.name) for end in ENDS]
        sender, receiver = ends
        if sender is not None and receiver is not None and _belong_together(sender, receiver):
            for end, there in zip(ENDS, (sender, receiver), strict=True):
                wrong += _mend(end, there)
            return GroPair(sender.index, receiver.index, sender.mac, receiver.mac), wrong
        if any(end is not None for end in ends):
            break
        veth.create_pair(SENDER, RECEIVER, mtu=MTU)
        wrong = ["missing"]
    raise DeviceUnavailable(
        "link add",
        f"{SENDER} peer {RECEIVER}",
        0,
        "a device of that name is there, and is not one of such a pair: rename or delete it",
    )


def _mend(end: Wanted, there: veth.End) -> list[str]:
    wrong = []
    if there.mtu != MTU:
        veth.set_mtu(end.name, MTU)
        wrong.append(f"{end.name} mtu {there.mtu}")
    for name, value in _SILENT:
        # Without IPv6 there is nothing to switch off.
        try_write_sysctl(f"net/ipv6/conf/{end.name}/{name}", value)
    _forget_addresses(end.name)
    if not there.up:
        veth.bring_up(end.name)
        wrong.append(f"{end.name} down")
    for command, on in end.offloads.items():
        if ethtool.offload(end.name, command) != on:
            ethtool.set_offload(end.name, command, on=on)
            wrong.append(f"{end.name} offload {command:#x}")
    return wrong


def _forget_addresses(end: str) -> None:
    """Removes the addresses that an end got before IPv6 addresses were switched off."""
    try:
        lines = _ADDRESSES.read_text("ascii").splitlines()
    except OSError:
        return
    if any(line.split()[-1] == end for line in lines):
        for value in ("1", "0"):  # which flushes them
            try_write_sysctl(f"net/ipv6/conf/{end}/disable_ipv6", value)


def write_settings() -> None:
    """Sets what the SRv6 way needs of IPv6 on `flannelgro0`; may be repeated.

    Raises:
        KernelError: the kernel lacks it, or the administrator has disabled it.
    """
    for name, value in _SETTINGS:
        write_sysctl(f"net/ipv6/conf/{SENDER}/{name}", value)


def put_routes(pair: GroPair) -> None:
    """Adds the routes of the SRv6 way, and the rule that selects the second; may be repeated.

    Raises:
        KernelError: this kernel does not have seg6local, or no rules for IPv6.
    """
    seg6.put_host_route(STRIP_FROM, pair.sender)
    seg6.put_rule(SENDER, TABLE, priority=RULE_PRIORITY)
    seg6.put_frame_route(STRIP_TO, pair.sender, frames_to=pair.receiver, table=TABLE)
    # An earlier release put it into the main table, where other packets find it.
    seg6.delete_host_route(STRIP_TO, pair.sender)


def has_rule() -> bool:
    """Whether the rule is there; it outlives the pair."""
    return seg6.has_rule(SENDER, TABLE, priority=RULE_PRIORITY)


def remove() -> bool:
    """Removes pair, routes and rule; whether any of them was there.

    Raises:
        KernelError: something is there and cannot be removed.
    """
    # Its other end and the routes go with it.
    found = find() is not None and veth.delete_link(SENDER)
    return seg6.delete_rule(SENDER, TABLE, priority=RULE_PRIORITY) or found


def new_token() -> bytes:
    """A token that cannot be guessed: 94 random bits.

    The other two bits make the first address a unicast one (bpf_redirect_neigh() forwards no
    multicast) and a locally administered one (IEEE 802, clause 8).
    """
    first, *rest = os.urandom(TOKEN_BYTES)
    return bytes((first & 0xFC | 0x02, *rest))


def test_frame(pair: GroPair, token: bytes) -> bytes:
    """A frame as `strip` of flannel.bpf.c makes it, but for its innermost type."""
    inner = token + struct.pack(">HHH", _ETH_P_8021Q, 0, TEST_ETHERTYPE)
    ip = struct.pack(">IHBB", 6 << 28, len(inner), _IPPROTO_ETHERNET, 64)
    ip += STRIP_FROM.packed + STRIP_TO.packed
    return pair.sender_mac + pair.receiver_mac + struct.pack(">H", _ETH_P_IPV6) + ip + inner


def send_test(pair: GroPair, token: bytes) -> None:
    """Sends a test frame the SRv6 way. The program at its end counts it.

    Raises:
        KernelError: without the right to (CAP_BPF, CAP_NET_ADMIN), or without the device.
    """
    bpf.inject(test_frame(pair, token), pair.sender)


def comes_through(pair: GroPair, token: bytes, arrived: Callable[[], int]) -> bool:
    """Whether a test frame arrives at the end of the SRv6 way.

    It arrives within a moment: the kernel handles it like any received frame.

    Args:
        arrived: how many have arrived so far.
    """
    before = arrived()
    send_test(pair, token)
    deadline = time.monotonic() + 0.005
    while arrived() == before:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True
