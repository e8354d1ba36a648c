"""Every backend under whole daemons, with the traffic rules of either manager: two nodes, two pods.

What each backend does to its objects is for `test_backend_healing.py` and the contract suites; here
packets go from pod to pod as an operator's would. On this machine's kernel some cannot be had; in
the guests of `make kernels` all can.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from pyflannel.datapath.select import IMPLEMENTATIONS
from pyflannel.lab import Lab, LabSpec, bench
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

OUTSIDE = "192.0.2.254"
"""The switch: it knows nodes and has no route to pods."""
ICMP_BYTES = 28
"""IPv4 header without options (20) and ICMP echo header (8)."""
SECONDS = 0.5
"""Of bulk traffic."""


@dataclass(frozen=True)
class Way:
    """A backend with one set of rules."""

    backend: str
    mtu: int
    """Of pods over an underlay of 1500 bytes."""

    ttl: int
    """Of a packet of 64 hops that went from pod to pod."""

    nftables: bool = False
    datapath: str = ""

    def __str__(self) -> str:
        parts = (self.backend, self.datapath, "nftables" if self.nftables else "iptables")
        return " ".join(filter(None, parts))

    @property
    def outlives_its_daemon(self) -> bool:
        """Whether the kernel goes on carrying packets without one."""
        return self.backend != "udp"


WAYS = [
    Way("udp", 1472, 60, datapath="ebpf"),
    Way("udp", 1472, 60, datapath="native", nftables=True),
    Way("udp", 1472, 60, datapath="python"),
    Way("vxlan", 1450, 62),
    Way("vxlan", 1450, 62, nftables=True),
    Way("host-gw", 1500, 62, nftables=True),
    Way("ipip", 1480, 62),
    Way("ipip", 1480, 62, nftables=True),
]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    chosen: Way = request.param
    if chosen.backend == "ipip":
        need_devices("ipip")
    if chosen.datapath:
        found = IMPLEMENTATIONS[chosen.datapath].probe()
        if isinstance(found, str):
            pytest.skip(f"data path {chosen.datapath}: {found}")
    return chosen


@pytest.fixture(scope="module")
def lab(way: Way) -> Iterator[Lab]:
    config = {
        "Network": "10.0.0.0/16",
        "EnableNFTables": way.nftables,
        "Backend": {"Type": way.backend},
    }
    spec = LabSpec(
        nodes=2,
        name="every-backend",
        config=config,
        datapath=way.datapath,
        daemon_args=("--ip-masq",),
    )
    with Lab(spec) as made:
        made.wait(lambda: made.ping_all().ok, 20, what="all pods reach each other")
        yield made


def test_pods_see_each_others_own_addresses_at_the_right_distance(lab: Lab, way: Way) -> None:
    matrix = lab.ping_all()
    assert matrix.ok
    assert set(matrix.ttls) == {way.ttl}
    assert matrix.foreign_sources == {}


def test_the_largest_packet_passes_whole(lab: Lab, way: Way) -> None:
    """With DF; one byte more is refused in the pod already."""
    ping = ["ping", "-M", "do", "-c", "1", "-W", "2", "-s"]
    target = str(lab.node(2).pod_address())
    fits = str(way.mtu - ICMP_BYTES)
    lab.node(1).exec([*ping, fits, target], pod=True)
    longer = [*ping, str(int(fits) + 1), target]
    refused = lab.node(1).exec(longer, pod=True, check=False)
    assert refused.returncode != 0
    assert f"mtu={way.mtu}" in refused.stdout + refused.stderr


def test_bulk_traffic_arrives_in_both_directions(
    lab: Lab, way: Way, record_property: Callable[[str, object], None]
) -> None:
    nodes = lab.node(1), lab.node(2)
    forth = bench.tcp(*nodes, seconds=SECONDS)
    back = bench.tcp(*reversed(nodes), seconds=SECONDS)
    assert forth.seen_as == (nodes[0].pod_address(),)
    assert back.seen_as == (nodes[1].pod_address(),)
    assert min(forth.gbit_per_s, back.gbit_per_s) > 0.01
    record_property(f"figure: TCP, {way}, Mbit/s", (forth.gbit_per_s + back.gbit_per_s) / 2 * 1000)


def test_who_leaves_the_overlay_leaves_as_the_node(lab: Lab) -> None:
    """The outside answers the node: it does not know of pods."""
    lab.node(1).exec(["ping", "-c", "1", "-W", "2", OUTSIDE], pod=True)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_the_daemon_loses_no_packet_that_it_need_not_lose(
    lab: Lab, way: Way, how: signal.Signals
) -> None:
    """100 pings a second go on over both instants.

    With backend udp the device goes with its daemon (unless systemd keeps it, or the eBPF file
    system is there, see `test_ebpf_datapath.py`), and returns with it.
    """
    node = lab.node(1)
    subnet = node.subnet_env()["FLANNEL_SUBNET"]
    pinging = node.pod.popen(
        ["ping", "-q", "-i", "0.01", "-w", "300", str(lab.node(2).pod_address())],
        stdout=subprocess.PIPE,
    )
    try:
        if how is signal.SIGTERM:
            assert node.stop_daemon() == 0
        else:
            node.kill(how)
        node.start_daemon()
        lab.wait(node.is_ready, 20, what="the daemon, again")
    finally:
        pinging.send_signal(signal.SIGINT)  # makes it sum up
        out, _ = pinging.communicate(timeout=30)
    assert int(out.split()[out.split().index("packets") - 1]) > 10, out
    if way.outlives_its_daemon:
        assert " 0% packet loss" in out, out
    lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
    assert node.subnet_env()["FLANNEL_SUBNET"] == subnet
