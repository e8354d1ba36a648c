"""Test stands for data paths: something that plays the kernel, something that plays the peers.

Two stands have one interface. `PairRig` needs no privileges: a socket pair is the TUN, loopback the
underlay. `DeviceRig` is the real thing in two network namespaces: a TUN into which packets are put,
and from which they are taken, with a packet socket; and a veth pair to the namespace of the peers.

The namespaces have no name: they end with the last descriptor on them, so that no test leaves one
behind.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Dot1Q, Ether

from pyflannel.core.errors import DeviceUnavailable
from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.core.packet import VNET_HEADER_BYTES, VnetHeader
from pyflannel.datapath.base import Datapath, DatapathConfig
from pyflannel.kernel import netns
from pyflannel.kernel.tun import open_tun
from pyflannel.kernel.udp import IP_PMTUDISC_PROBE, IP_PMTUDISC_WANT, open_udp
from pyflannel.testing.tunpair import tun_pair
from tests.contract.datapath_cases import MTU, NETWORK, SUBNETS, TUN_ADDRESS

DEADLINE_S = 30.0
"""Long, because the machine may be busy; nothing waits that goes well."""
SO_RCVBUFFORCE = 33
IP_MTU_DISCOVER = 10
ETH_P_IP, ETH_P_ALL = 0x0800, 0x0003
PACKET_OUTGOING = 4

DROPS_OF_TUN = (
    "tun_malformed",
    "tun_oversize",
    "tun_no_route",
    "tun_ttl",
    "tun_too_big",
    "tun_send_error",
)
DROPS_OF_UDP = (
    "udp_malformed",
    "udp_oversize",
    "udp_unknown_sender",
    "udp_wrong_source",
    "udp_wrong_destination",
    "udp_ttl",
    "udp_write_error",
)
ICMP = ("icmp_unreachable", "icmp_time_exceeded", "icmp_frag_needed")


class Namespace:
    """A network namespace without a name; lives as long as the object."""

    def __init__(self) -> None:
        with _at_home():
            netns.enter_new()
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            # Nothing but our own packets is to pass the devices: no router solicitations.
            for where in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{where}/disable_ipv6").write_text("1")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread, and children started meanwhile, are inside."""
        with _at_home():
            netns.enter(self.path)
            yield

    @property
    def path(self) -> str:
        """For `ip link set … netns`, as long as the object lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def ip(self, *commands: str) -> None:
        """Runs `ip` commands inside, in one process."""
        with self.entered():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def run(self, *command: str) -> str:
        """Runs a command inside; its output."""
        with self.entered():
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def close(self) -> None:
        """Lets go of it; the kernel removes devices and all."""
        os.close(self.fd)


@contextmanager
def _at_home() -> Iterator[None]:
    """Always returns this thread to its namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        netns.enter(f"/proc/self/fd/{home}")
        os.close(home)


def udp_socket(address: IPv4Address, port: int) -> socket.socket:
    """A UDP socket as the udp backend opens it."""
    return open_udp(address, port, mtu_discover=IP_PMTUDISC_PROBE)


def drain(source: socket.socket) -> list[bytes]:
    """All datagrams that wait, in order."""
    found = []
    try:
        while True:
            found.append(source.recv(65536))
    except BlockingIOError:
        return found


class Rig(ABC):
    """A data path between a played kernel and played peers `a`, `b` and `stranger`.

    Everything happens in the calling thread: packets wait in queues until `settle` runs the loop.
    """

    config: DatapathConfig
    addresses: dict[str, IPv4Address]
    """Underlay addresses by name."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.loop = loop or asyncio.new_event_loop()
        self.cleanup = ExitStack()
        self.cleanup.callback(self.loop.close)
        self.to_tun: list[bytes] = []
        self.to_peer: list[tuple[str, bytes]] = []
        self._injected = self._delivered = self._arrived_before = 0
        self._path: Datapath | None = None
        self.peers: dict[str, socket.socket] = {}

    @property
    def path(self) -> Datapath:
        """The data path under test, started."""
        assert self._path is not None
        return self._path

    def start(
        self,
        make: Callable[[DatapathConfig], Datapath],
        table: PeerTable | None = None,
        **changes: object,
    ) -> None:
        """Makes a data path from our config with some changes, gives it a table and starts it."""
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]
        self._path = make(self.config)
        self._path.replace_table(self.table() if table is None else table)

        async def start() -> None:
            self.path.start()
            self.path.complete()

        self.loop.run_until_complete(start())
        self.cleanup.callback(self.path.stop)

    def rows(self) -> dict[str, Peer]:
        """The usual peers: `a` and `b` with a /24 each."""
        return {name: Peer(SUBNETS[name], self.addresses[name]) for name in SUBNETS}

    def table(self, *extra: Peer) -> PeerTable:
        """The usual peers and some more."""
        return PeerTable([*self.rows().values(), *extra])

    def inject(self, *packets: bytes) -> None:
        """The kernel routes packets into the TUN."""
        for data in packets:
            self._put(data)
        self._injected += len(packets)

    def deliver(self, sender: str, *packets: bytes) -> None:
        """A peer sends datagrams to our socket."""
        target = (str(self.config.underlay_address), self.config.port)
        for data in packets:
            self.peers[sender].sendto(data, target)
        self._delivered += len(packets)

    def deliver_from_other_port(self, sender: str, data: bytes) -> None:
        """As `deliver`, from another port than the agreed one."""
        with self.in_peers_namespace(), udp_socket(self.addresses[sender], 0) as other:
            other.sendto(data, (str(self.config.underlay_address), self.config.port))
        self._delivered += 1

    def restart(self, make: Callable[[DatapathConfig], Datapath]) -> None:
        """Another data path on the same descriptors; it counts from 0."""
        self._injected = self._delivered = 0
        self._arrived_before = len(self.to_tun) + len(self.to_peer)
        self.start(make)

    def descriptors_are_open(self) -> bool:
        """Whether TUN and socket are still ours to use."""
        try:
            os.fstat(self.config.tun_fd)
            os.fstat(self.config.udp_fd)
        except OSError:
            return False
        return True

    @abstractmethod
    def in_peers_namespace(self) -> AbstractContextManager[None]:
        """Where the peers' sockets are made."""

    @abstractmethod
    def _put(self, data: bytes) -> None: ...

    @abstractmethod
    def _take(self) -> list[bytes]: ...

    def collected(self) -> Self:
        """The stand, after taking what has come out so far into `to_tun` and `to_peer`."""
        self.to_tun += self._take()
        for name, peer in self.peers.items():
            self.to_peer += [(name, data) for data in drain(peer)]
        return self

    def counters(self) -> dict[str, int]:
        """Those counters that are not 0."""
        return {name: value for name, value in self.path.counters().items() if value}

    def step(self, until: Callable[[], bool], what: str) -> None:
        """Runs the event loop until something holds.

        Raises:
            AssertionError: if it does not within the deadline, with the counters.
        """

        async def poll() -> bool:
            deadline = time.monotonic() + DEADLINE_S
            while not until():
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.0005)
            return True

        assert self.loop.run_until_complete(poll()), f"{what}: never; {self.counters()}"

    def settle(self) -> None:
        """Runs until every packet is accounted for and all that was sent has arrived."""

        def accounted() -> bool:
            count = self.path.counters()
            tun = count["tun_packets"] + sum(count[name] for name in DROPS_OF_TUN)
            udp = count["udp_packets"] + sum(count[name] for name in DROPS_OF_UDP)
            return tun >= self._injected and udp >= self._delivered

        def arrived() -> bool:
            self.collected()
            count = self.path.counters()
            made = count["tun_packets"] + count["udp_packets"] + sum(count[name] for name in ICMP)
            return len(self.to_tun) + len(self.to_peer) - self._arrived_before >= made

        self.step(accounted, f"{self._injected} and {self._delivered} packets accounted for")
        self.step(arrived, "what was counted as sent arrives")
        self.collected()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleanup.close()


class PairRig(Rig):
    """A socket pair for the TUN and loopback for the underlay; no privileges needed."""

    def __init__(
        self, *, vnet_hdr: bool = False, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(loop)
        self.addresses = {
            name: IPv4Address(f"127.0.0.{number}")
            for number, name in enumerate(("ours", "a", "b", "stranger"), 1)
        }
        self.pair = self.cleanup.enter_context(tun_pair())
        self._header = bytes(VNET_HEADER_BYTES) if vnet_hdr else b""
        ours = self._bind()
        self.config = DatapathConfig(
            tun_fd=self.pair.device.fileno(),
            udp_fd=ours.fileno(),
            tun_name="pair",
            tun_address=TUN_ADDRESS,
            network=NETWORK,
            mtu=MTU,
            port=ours.getsockname()[1],
            underlay_name="lo",
            underlay_address=self.addresses["ours"],
            vnet_hdr=vnet_hdr,
        )

    def _bind(self) -> socket.socket:
        """Our socket on a free port, and the peers' on the same one."""
        for _ in range(20):
            with ExitStack() as sockets:
                ours = sockets.enter_context(udp_socket(self.addresses["ours"], 0))
                port = ours.getsockname()[1]
                try:
                    self.peers = {
                        name: sockets.enter_context(udp_socket(self.addresses[name], port))
                        for name in ("a", "b", "stranger")
                    }
                except DeviceUnavailable:
                    continue  # another process has this port on another loopback address
                self.cleanup.push(sockets.pop_all())
                return ours
        raise AssertionError("no port that is free on four loopback addresses")

    def in_peers_namespace(self) -> AbstractContextManager[None]:
        return nullcontext()

    def inject_with_header(self, header: VnetHeader, data: bytes) -> None:
        """As `inject`, with a virtio-net header that asks for something."""
        self.pair.inject(header.pack() + data)
        self._injected += 1

    def _put(self, data: bytes) -> None:
        self.pair.inject(self._header + data)

    def _take(self) -> list[bytes]:
        found = self.pair.emitted()
        assert all(data.startswith(self._header) for data in found)
        return [data[len(self._header) :] for data in found]


def _shown(space: Namespace, device: str) -> dict[str, Any]:
    """A device as `ip` shows it."""
    found: dict[str, Any]
    (found,) = json.loads(space.run("ip", "-j", "link", "show", "dev", device))
    return found


def _operational(space: Namespace, device: str) -> dict[str, Any]:
    """The same, once it sends what it is given."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = _shown(space, device)
        if found["operstate"] == "UP":
            return found
        assert time.monotonic() < deadline, f"{device} stays {found['operstate']}"
        time.sleep(0.01)


class Wire:
    """Two namespaces with a TUN in ours and a veth pair between them.

    The TUN has no address and nothing is forwarded, so that the kernel adds no packet of its own.
    Its MTU is larger than the one in the config, or no oversize packet could be put into it.
    Taking devices down takes the kernel a tenth of a second, so one wire serves many rigs in turn.

    It carries from the first packet on: both ends are up, which the kernel sees to up to a second
    after the command, and each end knows the other's MAC address for good. Else packets would wait
    for an answer to ARP, and no more than 256 small ones do.
    """

    TUN = "flannel0"
    DEVICE_MTU = 9000

    def __init__(self, *, vnet_hdr: bool = False) -> None:
        self.vnet_hdr = vnet_hdr
        self.addresses = {
            name: IPv4Address(f"192.0.2.{number}")
            for number, name in enumerate(("ours", "a", "b", "stranger"), 1)
        }
        with ExitStack() as undo:
            self.node = Namespace()
            undo.callback(self.node.close)
            self.other = Namespace()
            undo.callback(self.other.close)
            with self.node.entered():
                tun = open_tun(self.TUN, vnet_hdr=vnet_hdr)
            undo.callback(tun.close)
            self.tun_fd = tun.fd
            self.node.ip(
                f"link set {self.TUN} mtu {self.DEVICE_MTU} up",
                f"link add under0 type veth peer name under0 netns {self.other.path}",
                f"addr add {self.addresses['ours']}/24 dev under0",
                "link set under0 up",
            )
            # As on every node; bpf_fib_lookup() answers only where packets may be forwarded.
            self.node.run("sysctl", "-qw", "net.ipv4.conf.lo.forwarding=1")
            self.other.ip(
                *(f"addr add {self.addresses[n]}/24 dev under0" for n in ("a", "b", "stranger")),
                "link set under0 up",
            )
            self._connect()
            with self.node.entered():
                self.tap = undo.enter_context(
                    socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
                )
            self.tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            self.tap.bind((self.TUN, ETH_P_ALL))
            self.tap.setblocking(False)
            self._undo = undo.pop_all()

    def _connect(self) -> None:
        ends = (self.node, ("a", "b", "stranger"), self.other), (self.other, ("ours",), self.node)
        for here, names, there in ends:
            end = f"lladdr {_operational(there, 'under0')['address']} dev under0 nud permanent"
            here.ip(*(f"neigh replace {self.addresses[name]} {end}" for name in names))

    def ours(self) -> dict[str, Any]:
        """Our end as `ip` shows it."""
        return _shown(self.node, "under0")

    def drain(self) -> None:
        """Forgets what the last user left in the TUN and at the tap."""
        drain(self.tap)
        try:
            while True:
                os.read(self.tun_fd, 65536)
        except BlockingIOError:
            pass

    def close(self) -> None:
        """The devices go with the descriptors."""
        self._undo.close()


class DeviceRig(Rig):
    """A real TUN and a real wire; this thread stays in our namespace until the end."""

    PORT = 8285

    def __init__(self, wire: Wire, *, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(loop)
        self.wire = wire
        self.addresses = wire.addresses
        self.cleanup.enter_context(wire.node.entered())
        wire.drain()
        ours = self.cleanup.enter_context(udp_socket(self.addresses["ours"], self.PORT))
        with wire.other.entered():
            self.peers = {
                name: self.cleanup.enter_context(udp_socket(self.addresses[name], self.PORT))
                for name in ("a", "b", "stranger")
            }
        for peer in self.peers.values():
            # DF as upstream sends it, but what is larger than the wire is sent in fragments.
            peer.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_WANT)
        self.config = DatapathConfig(
            tun_fd=wire.tun_fd,
            udp_fd=ours.fileno(),
            tun_name=wire.TUN,
            tun_address=TUN_ADDRESS,
            network=NETWORK,
            mtu=MTU,
            port=self.PORT,
            underlay_name="under0",
            underlay_address=self.addresses["ours"],
            vnet_hdr=wire.vnet_hdr,
        )

    def in_peers_namespace(self) -> AbstractContextManager[None]:
        return self.wire.other.entered()

    def deliver_frame(
        self,
        sender: str,
        data: bytes,
        *,
        station: str = "",
        vlan: int | None = None,
        checksum: int | None = None,
        header_checksum: int | None = None,
        cut_bytes: int = 0,
    ) -> None:
        """A peer's datagram as a frame with all checksums finished, or wrong as it is asked for.

        Args:
            station: MAC address that it is for, ours by default.
            vlan: of a tag, with a priority.
            checksum: of UDP, instead of the right one.
            header_checksum: of the outer IP header, likewise.
            cut_bytes: so many bytes less than the datagram has, the outer IP header says.
        """
        ours = self.wire.ours()
        ether = Ether(dst=station or ours["address"], src="02:00:00:00:00:0a")
        tag = Dot1Q(vlan=vlan, prio=5) if vlan is not None else b""
        ip = IP(
            src=str(self.addresses[sender]),
            dst=str(self.config.underlay_address),
            flags="DF",
            chksum=header_checksum,
            len=28 + len(data) - cut_bytes,
        )
        udp = UDP(sport=self.PORT, dport=self.PORT, chksum=checksum)
        frame = bytes(ether / tag / ip / udp / data if tag else ether / ip / udp / data)
        with (
            self.in_peers_namespace(),
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire,
        ):
            wire.bind(("under0", 0))
            wire.send(frame)

    def _put(self, data: bytes) -> None:
        self.wire.tap.sendto(data, (self.wire.TUN, ETH_P_IP))

    def _take(self) -> list[bytes]:
        found: list[bytes] = []
        while True:
            try:
                data, sender = self.wire.tap.recvfrom(65536)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # told once when the device went down
                    raise
            else:
                if sender[2] != PACKET_OUTGOING:
                    found.append(data)
