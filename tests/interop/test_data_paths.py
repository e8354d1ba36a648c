"""Every data path of backend udp with every other, and with upstream's daemon: pings and bulk TCP.

On each underlay. A veth pair as it comes is the hardest: it finishes no checksum and cuts nothing,
so work that one kernel leaves to it reaches the other node unfinished.
"""

from __future__ import annotations

import itertools
import os

import pytest

from pyflannel.lab import Lab, LabSpec, Underlay, bench
from tests.support.upstream import another_daemon, end

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
DATA_PATHS = {1: "python", 2: "native", 3: "ebpf"}

pytestmark = [pytest.mark.root, pytest.mark.slow]


def talk(lab: Lab) -> None:
    """All daemons are up already; the pods follow."""
    lab.wait_ready()
    lab.attach_pods()
    lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
    assert set(lab.ping_all().ttls) == {60}
    for source, target in itertools.permutations(lab.nodes, 2):
        sent = bench.tcp(source, target, seconds=0.2)
        assert sent.gbit_per_s > 0.01, f"{source.name} to {target.name}: {sent}"
        assert sent.seen_as == (source.pod_address(),)


def spec(name: str, nodes: int, underlay: Underlay, **more: object) -> LabSpec:
    return LabSpec(
        nodes=nodes,
        backend="udp",
        name=f"{name}-{underlay}",
        underlay=underlay,
        start_daemons=False,
        **more,
    )


def start_ours(lab: Lab) -> None:
    for number, datapath in DATA_PATHS.items():
        lab.node(number).start_daemon([f"--datapath={datapath}"])


@pytest.mark.parametrize("underlay", Underlay)
def test_every_data_path_talks_to_every_other(underlay):
    with Lab(spec("paths", 3, underlay)) as lab:
        start_ours(lab)
        talk(lab)


with_upstream = pytest.mark.skipif(
    not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
)


@with_upstream
@pytest.mark.parametrize("underlay", Underlay)
def test_every_data_path_talks_to_upstreams_daemon(underlay):
    with Lab(spec("paths-upstream", 4, underlay, node_commands={4: UPSTREAM})) as lab:
        start_ours(lab)
        lab.node(4).start_daemon()
        talk(lab)


@with_upstream
@pytest.mark.parametrize("way", ["cleanup", "native"])
def test_back_to_upstreams_daemon_from_programs_that_outlive_ours(way):
    """As docs/migrating-from-flannel.md has it; nodes that come later are reached as well."""
    with Lab(LabSpec(nodes=2, backend="udp", name="paths-back", start_daemons=False)) as lab:
        for node in lab.nodes:
            node.exec(["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])
            node.start_daemon(["--datapath=ebpf"])
        talk(lab)
        node = lab.node(2)
        node.stop_daemon()
        if way == "cleanup":
            node.exec(["pyflannel", "cleanup"])
        else:
            node.start_daemon(["--datapath=native"])
            lab.wait(node.is_ready, 15, what="native is ready")
            node.stop_daemon()
        with another_daemon(lab, 2, UPSTREAM):
            node.start_daemon()
            lab.wait(node.is_ready, 30, what="flanneld is ready")
            node.attach_pod()
        lab.add_node(command=UPSTREAM)
        try:
            lab.wait(lambda: lab.ping_all().ok, 10, what="all pods reach each other")
        finally:
            end(node)
            end(lab.node(3))
