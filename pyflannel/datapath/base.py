"""The seam between the udp backend and whatever moves its packets.

A data path carries IPv4 packets between a TUN device and a UDP socket: one packet is the whole
payload of one datagram. Three implementations stand behind this protocol: `python` (the readable
reference, always there), `native` (C threads) and `ebpf` (in the kernel). They share one contract
suite: the same packets in, the same packets out, the same counters.

Rules every one of them follows (upstream's behaviour unless marked *ours*):

TUN → UDP, per packet
  1. shorter than 20 bytes, version not 4, IHL or total length inconsistent → drop `tun_malformed`.
  2. longer than `DatapathConfig.mtu` → cannot happen for packets the kernel routes into the TUN;
     drop `tun_oversize`.
  3. no peer for the destination → ICMP network unreachable into the TUN (`icmp_unreachable`), and
     drop `tun_no_route`.
  4. TTL ≤ 1 → ICMP time exceeded into the TUN (*ours*; upstream is silent), drop `tun_ttl`.
  5. TTL − 1, checksum patched incrementally (RFC 1624, 0xFFFF normalised to 0), sent to the peer's
     address and our own port. A send the socket refuses is a drop `tun_send_error`.
     A datagram longer than the path MTU is answered with ICMP fragmentation needed (type 3 code
     4, next-hop MTU = path MTU − 28) when the inner DF bit is set, and counted as
     `tun_too_big`; without DF the packet is sent once with outer fragmentation allowed. The path
     MTU is the kernel's, a second old at most, but no less than `BELIEVED_MTU`.
UDP → TUN, per datagram
  1. shorter than 20 bytes, version not 4, IHL < 5 or past the end, total length ≠ datagram length →
     drop `udp_malformed`; longer than `mtu` → drop `udp_oversize`.
  2. *ours*, unless `accept_any`: the sender's address is not a known peer, or its UDP port is not
     the backend's (unless `any_port`) → drop
     `udp_unknown_sender`; the inner source is not in that sender's subnet (the peer that owns the
     inner source by longest prefix has another address, or there is none) → drop
     `udp_wrong_source`; the inner destination is not in the network → drop `udp_wrong_destination`.
     (The port: every sender uses the backend's, which only root can have on a peer. What a pod or a
     user of a peer sends leaves with the peer's address, but from another one.)
  3. TTL ≤ 1 → ICMP time exceeded is sent back through the overlay as if the TUN's address had
     forwarded it (*ours*): in a datagram to the peer that owns the inner source, with its TTL of 8
     untouched; nothing is sent if no peer owns it (`accept_any`). Drop `udp_ttl`.
  4. TTL − 1 and written to the TUN; a refused write is a drop `udp_write_error`.

ICMP errors are made only for packets that are not ICMP errors themselves (upstream: not ICMP at
all, which we keep for *network unreachable*; time exceeded is also made for ICMP echo, or
traceroute -I and `ping -t` would be blind), are first fragments, come from a unicast source and go
to a unicast destination (RFC 1122 §3.2.2: source not 0/8 or 127/8, neither 224/4 or above), and
have a header shorter than 60 bytes. They quote the header and 8 bytes (less if there is less), have
TTL 8, ID 0 and the TUN's own address as source (the device has `accept_local=1`, else the kernel
drops them as martian). They are rate-limited, all kinds together: at most 1000 a second in bursts
of 250, and of those that one inner source causes at most 200 a second in bursts of 50 (sources
share 256 buckets, `core/budget.py`); beyond that `icmp_suppressed` counts (only where an ICMP error
would have been made).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple, Protocol

from pyflannel.core.lpm import PeerTable
from pyflannel.records import dataclass

COUNTERS: tuple[str, ...] = (
    "tun_packets",
    "tun_bytes",
    "tun_malformed",
    "tun_oversize",
    "tun_no_route",
    "tun_ttl",
    "tun_too_big",
    "tun_send_error",
    "udp_packets",
    "udp_bytes",
    "udp_malformed",
    "udp_oversize",
    "udp_unknown_sender",
    "udp_wrong_source",
    "udp_wrong_destination",
    "udp_ttl",
    "udp_write_error",
    "icmp_unreachable",
    "icmp_time_exceeded",
    "icmp_frag_needed",
    "icmp_suppressed",
)
"""Every counter, in the order in which `status` shows them. `tun_packets`/`tun_bytes` count inner
IP packets (segments, not super packets) handed to the socket, `udp_packets`/`udp_bytes` those
handed to the TUN; every other one is a reason of drop or an ICMP made. So each packet is counted in
exactly one of the `tun_…` (`udp_…`) counters besides `…_bytes`. ICMP errors of our own count only
as `icmp_…`, when made; if the descriptor then refuses one, that is a `…_error` as well."""


PEER_COUNTERS: Final = (
    "packets_in",
    "bytes_in",
    "packets_out",
    "bytes_out",
    "tun_ttl",
    "tun_too_big",
    "tun_send_error",
    "udp_malformed",
    "udp_oversize",
    "udp_wrong_source",
    "udp_wrong_destination",
    "udp_ttl",
)
"""Counters of one peer: inner packets sent to it, inner packets accepted from it (even if the TUN
then refused them), and the drops at which the peer was known, under their names in `COUNTERS`."""
MOST_COUNTED: Final = 1024
"""Peers that have counters of their own: the first that come. They take 100 KB for each thread of
the native data path, and with ebpf 32 KB of kernel memory for each CPU. The other peers are counted
in the totals only."""
BELIEVED_MTU: Final = 1280
"""Bytes. A path MTU below this is not believed, unless the interface's own MTU is lower. ICMP
"fragmentation needed" is not authenticated: anyone can send one, and ten minutes at 552 bytes leave
a few per cent of the throughput. No link that carries IPv6 has a smaller MTU (RFC 8200, section 5).
If links between the nodes do, the nodes' interfaces need that MTU."""
PATH_MTU_AGE_S: Final = 1.0
"""How long the kernel's answer about a path is used. Asking costs two system calls, and a TCP
sender retransmits after about that time."""
LONGEST_IN_KERNEL: Final = 15 * 1024 - 14
"""Bytes of the longest IP packet on the underlay that BPF programs handle (LONGEST_BYTES of
flannel.bpf.c, where the Ethernet header counts)."""


class Link(NamedTuple):
    """What of the external interface decides between data paths."""

    ethernet: bool = True
    """Whether its packets have an Ethernet header."""
    long: bool = False
    """Whether it carries packets longer than `LONGEST_IN_KERNEL`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatapathConfig:
    """The settings of a data path, fixed before it starts."""

    tun_fd: int
    """Non-blocking descriptor of the TUN (IFF_NO_PI), or of a packet-preserving socket pair in a
    test. The data path borrows it: it never closes it."""
    udp_fd: int
    """Non-blocking UDP/IPv4 socket, bound to the interface address. Borrowed as well. With
    IP_MTU_DISCOVER = IP_PMTUDISC_PROBE: the datagrams carry DF, and only what is longer than the
    interface's MTU is refused (EMSGSIZE)."""
    tun_name: str
    """`flannel0`; for messages, and for data paths that attach to the device."""
    tun_address: IPv4Address
    """Source of the ICMP errors: the address on the TUN (the subnet's network address)."""
    network: IPv4Network
    """The overlay network; inner destinations must lie in it."""
    mtu: int
    """MTU of the TUN in bytes."""
    port: int
    """UDP port of all peers (our own)."""
    underlay_name: str = ""
    """External interface, for data paths that attach to it."""
    underlay_address: IPv4Address = field(default=IPv4Address(0))
    """Address the socket is bound to."""
    any_port: bool = False
    """Whether a peer's datagrams may come from any UDP port, where a NAT between the nodes changes
    it (`--udp-accept any-port`)."""
    accept_any: bool = False
    """Upstream's behaviour: accept datagrams from any sender (`--udp-accept any`)."""
    card_gro: bool = False
    """Whether segments are to be joined at the card, by a FOU port beside the socket (ebpf)."""
    vnet_hdr: bool = False
    """Whether the TUN was opened with IFF_VNET_HDR: 10 bytes of virtio-net header per packet."""
    pin_dir: str = ""
    """Directory for state that must survive a restart (ebpf: below bpffs); empty = keep nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a data path can do on this machine; shown in `status`."""

    name: str
    """`python`, `native` or `ebpf`."""
    wants_vnet_hdr: bool = False
    """Whether the TUN should be opened with IFF_VNET_HDR for it."""
    outlives_daemon: bool = False
    """Whether it can go on forwarding without the process (ebpf), so that the TUN is made
    persistent and left behind, and a restart drops no packet."""
    meanwhile: bool = False
    """Whether another release's programs carry the packets now, and this release cannot read their
    peer table. Then it starts only once its own table is filled."""
    attached_by: str = ""
    """How its BPF programs are attached to devices (`tcx` or `clsact`); empty without programs."""
    wants_ethernet: bool = False
    """Whether it is slow where the external interface's packets have no Ethernet header (TUN, IP in
    IP, WireGuard)."""
    wants_short: bool = False
    """Whether it is slow with packets longer than `LONGEST_IN_KERNEL`."""
    devices: tuple[str, ...] = ()
    """Names of its own devices beside the TUN. After a change of one of them `repair` is called
    soon."""
    offloads: Mapping[str, str] = field(default_factory=dict)
    """Each offload with `on`, `off (forced)`, `off (not supported: …)` or `withdrawn (EIO …)`."""


class Datapath(Protocol):
    """Moves packets. The udp backend owns it, and calls it only from the event loop's thread.

    Only `prepare` and `complete` may be called from another thread, while nothing is called but
    `capabilities` and `counters`.

    Order: `prepare`, `start`, `complete` once each, `replace_table` any number of times before and
    after, `stop` once. After `stop` returns, no thread or callback of it touches the descriptors
    again.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What is in use right now; an offload may be withdrawn while running."""
        ...

    def prepare(self) -> None:
        """Does the part of the start that waits for the kernel, up to a tenth of a second.

        `start` calls it if it has not been called.

        Raises:
            DatapathError: if the path cannot be used; nothing is left then.
        """
        ...

    def start(self) -> None:
        """Begins to move packets.

        Raises:
            DatapathError: if it cannot; nothing is left running then.
        """
        ...

    def complete(self) -> None:
        """Adds what makes it faster and can wait until the first peers are in the table.

        It takes up to a tenth of a second, and never raises: what is not available shows in
        `capabilities`.
        """
        ...

    def replace_table(self, table: PeerTable) -> None:
        """Puts a whole new peer table in force, atomically; cheap enough for the event loop."""
        ...

    def counters(self) -> dict[str, int]:
        """All of `COUNTERS`, since start."""
        ...

    def peer_counters(self, peer: IPv4Address) -> Mapping[str, int] | None:
        """All of `PEER_COUNTERS` of a peer; `None` if it is not in the table or has no counters."""
        ...

    def failure(self) -> str | None:
        """Why it no longer moves packets (`EBADFD: flannel0 is gone`), or `None` while all is well.

        The driver asks on every pass and then opens the device again and starts a new data path.
        """
        ...

    def repair(self) -> Sequence[str]:
        """Compares its objects in the kernel with what they should be, and repairs them.

        Called on every full pass, and after notifications about its `devices`. Takes milliseconds
        at most and never raises. What is not available shows in `capabilities`.

        Returns:
            What was put right, by name.
        """
        ...

    def slowed(self) -> str:
        """Why another data path would be faster on this node; empty if none is known to be.

        Called on every full pass. It may judge by what was carried since an earlier call.
        """
        ...

    def stop(self) -> None:
        """Stops within 100 ms. May be called twice."""
        ...
