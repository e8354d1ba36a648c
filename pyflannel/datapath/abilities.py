"""The abilities of data paths, by the names that `status` and `doctor datapath` show.

Which of them a machine grants is known when a data path starts, or from `diagnose.datapaths`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ABILITIES: Final[Mapping[str, Mapping[str, str]]] = {
    "ebpf": {
        "tcx": "programs can be attached with tcx",
        "clsact": "programs can be attached as filters of tc; one of the two is needed",
        "gro": "the pair `flannelgro0`/`flannelgro1` can be made, on which TCP segments are joined",
        "finish": "packets to peers in user space are finished in the kernel, not in the daemon",
        "strip": "super packets that come in stay whole",
        "card_gro": "TCP segments are joined at the card already (`CardGRO` of the network config)",
        "all_peers": "none is left to user space, for IPsec or a qdisc or filter of `flannel0`",
        "pinned": "programs and peers stay over a restart of the daemon",
    },
    "native": {
        "csum": "the TUN hands over unfinished checksums",
        "tso4": "the TUN hands over super packets of TCP over IPv4",
        "tso6": "the TUN hands over super packets of TCP over IPv6",
        "tso_ecn": "those may have congestion marks (ECN)",
        "uso": "the TUN hands over super packets of UDP",
        "gso": "the UDP socket sends many datagrams at once",
        "gro": "the UDP socket takes many datagrams at once",
        "join_tcp": "joined TCP segments are handed to the kernel",
        "join_udp": "joined UDP datagrams are handed to the kernel",
    },
    "python": {},
}
"""By data path and name, in the order of `--datapath auto`."""
