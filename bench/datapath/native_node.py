"""One node of `native_compare.py`: opens a TUN and a socket and runs the native data path on them.

    native_node.py TUN LOCAL TUN_ADDRESS NETWORK MTU PORT SUBNET=PEER...

SIGTERM ends it; with `BENCH_VERBOSE` set, the counters and offloads are printed then.
"""

from __future__ import annotations

import os
import signal
import sys
from ipaddress import IPv4Address, IPv4Network

from pyflannel.core.lpm import Peer, PeerTable
from pyflannel.datapath.base import DatapathConfig
from pyflannel.datapath.native import NativeDatapath
from pyflannel.kernel.tun import open_tun
from pyflannel.kernel.udp import IP_PMTUDISC_DO, open_udp


def main() -> None:
    """Runs until SIGTERM."""
    tun_name, local, address, network, mtu, port, *peers = sys.argv[1:]
    vnet = os.environ.get("BENCH_VNET", "1") != "0"
    tun = open_tun(tun_name, vnet_hdr=vnet)
    udp = open_udp(IPv4Address(local), int(port), mtu_discover=IP_PMTUDISC_DO)
    datapath = NativeDatapath(
        DatapathConfig(
            tun_fd=tun.fd,
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
    datapath.replace_table(PeerTable(rows))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    datapath.start()
    signal.sigwait({signal.SIGTERM})
    if os.environ.get("BENCH_VERBOSE"):
        print(datapath.capabilities, datapath.counters(), datapath.failure(), file=sys.stderr)
    datapath.stop()


if __name__ == "__main__":
    main()
