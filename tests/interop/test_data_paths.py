"""Every data path of backend udp with every other, and with upstream's daemon: pings and bulk TCP.

On each underlay. A veth pair as it comes is the hardest: it finishes no checksum and cuts nothing,
so work that one kernel leaves to it reaches the other node unfinished.
"""

from __future__ import annotations

import itertools
import os

import pytest

from pyflannel.lab import Lab, LabSpec, Underlay, bench

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


@pytest.mark.skipif(
    not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
)
@pytest.mark.parametrize("underlay", Underlay)
def test_every_data_path_talks_to_upstreams_daemon(underlay):
    with Lab(spec("paths-upstream", 4, underlay, node_commands={4: UPSTREAM})) as lab:
        start_ours(lab)
        lab.node(4).start_daemon()
        talk(lab)
