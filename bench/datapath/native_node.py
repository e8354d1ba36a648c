"""One node of `native_compare.py`: opens a TUN and a socket and runs the native data path on them.

    native_node.py TUN LOCAL TUN_ADDRESS NETWORK MTU PORT SUBNET=PEER...

SIGTERM ends it; with `BENCH_VERBOSE` set, the counters and offloads are printed then.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct
import sys
from ipaddress import IPv4Address, IPv4Network

from pyflannel.core.lpm import Peer, RouteTable
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.native import NativeDatapath

TUNSETIFF = 0x400454CA
IFF_TUN_NO_PI = 0x1001
IFF_VNET_HDR = 0x4000


def main() -> None:
    """Runs until SIGTERM."""
    tun_name, local, address, network, mtu, port, *peers = sys.argv[1:]
    vnet = os.environ.get("BENCH_VNET", "1") != "0"
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    flags = IFF_TUN_NO_PI | (IFF_VNET_HDR if vnet else 0)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", tun_name.encode(), flags))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((local, int(port)))
    udp.setblocking(False)
    datapath = NativeDatapath(
        DatapathConfig(
            tun_fd=tun,
            udp_fd=udp.fileno(),
            tun_name=tun_name,
            tun_address=IPv4Address(address),
            network=IPv4Network(network),
            mtu=int(mtu),
            port=int(port),
            vnet_hdr=vnet,
        )
    )
    rows = [
        Peer(IPv4Network(subnet), IPv4Address(peer))
        for subnet, peer in (text.split("=") for text in peers)
    ]
    datapath.replace_table(RouteTable(rows))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    datapath.start()
    signal.sigwait({signal.SIGTERM})
    if os.environ.get("BENCH_VERBOSE"):
        print(datapath.capabilities, datapath.counters(), datapath.failure(), file=sys.stderr)
    datapath.stop()


if __name__ == "__main__":
    main()
