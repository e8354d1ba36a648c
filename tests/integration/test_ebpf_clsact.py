"""The eBPF data path as filters of tc, under whole daemons: what is not the same as with tcx.

`test_ebpf_datapath.py` runs over filters as well: in guests whose kernel has no tcx, and in
`make system`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pyflannel.datapath.ebpf import attachment
from pyflannel.lab import Lab, LabSpec
from tests.integration.test_ebpf_datapath import has_peers, network_status, nudge, start, with_bpffs

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

DEVICES = {"eth0", "flannel0", "flannelgro0", "flannelgro1"}


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons that are started meanwhile take filters."""
    monkeypatch.setenv(attachment.FORCED, "clsact")


@pytest.fixture
def lab() -> Iterator[Lab]:
    made = with_bpffs("ebpf-clsact")
    try:
        start(made)
        yield made
    finally:
        made.down()


def with_qdisc(lab: Lab, number: int) -> set[str]:
    """Devices that have the qdisc."""
    listing = json.loads(lab.node(number).exec(["tc", "-j", "qdisc"]).stdout)
    return {each["dev"] for each in listing if each["kind"] == "clsact"}


def our_filters(lab: Lab, number: int) -> list[str]:
    """Their names, of the external interface."""
    command = ["tc", "-j", "filter", "show", "dev", "eth0", "ingress"]
    listing = json.loads(lab.node(number).exec(command).stdout)
    names = (each.get("options", {}).get("bpf_name", "") for each in listing)
    return [name for name in names if name.startswith("pyflannel:")]


def starts_without_loss(lab: Lab, number: int) -> None:
    """Kills the daemon and starts another, under 100 pings a second from the other node's pod."""
    node, other = lab.node(number), lab.node(3 - number)
    pinging = other.pod.popen(
        ["ping", "-q", "-i", "0.01", "-c", "250", node.pod_address()], stdout=subprocess.PIPE
    )
    node.kill(signal.SIGKILL)
    node.wait_exit()
    node.start_daemon()
    lab.wait(lambda: has_peers(lab, number, 1), 10, what="the peer")
    out, _ = pinging.communicate(timeout=30)
    assert " 0% packet loss" in out, out


def test_repair_and_the_change_to_tcx(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The life of a node whose daemon is updated to one that finds tcx, without a lost packet."""
    assert network_status(lab, 1)["datapath"]["offloads"]["clsact"] == "on"
    assert with_qdisc(lab, 1) == DEVICES
    assert our_filters(lab, 1) == ["pyflannel:underlay_in"]

    lab.node(1).exec(["tc", "qdisc", "del", "dev", "eth0", "clsact"])
    nudge(lab, 1)
    lab.wait(lambda: our_filters(lab, 1) != [], 5, what="the filter is back")
    assert network_status(lab, 1)["repaired"]["program underlay_in"] == 1

    if not attachment.probe_all()["tcx"]:
        monkeypatch.delenv(attachment.FORCED)
    starts_without_loss(lab, 1)
    if attachment.FORCED in os.environ:
        assert with_qdisc(lab, 1) == DEVICES
        assert our_filters(lab, 1) == ["pyflannel:underlay_in"]
        return
    offloads = network_status(lab, 1)["datapath"]["offloads"]
    assert offloads["tcx"] == "on"
    assert "clsact" not in offloads
    assert with_qdisc(lab, 1) == set()


def test_cleanup_takes_filters_and_qdisc_and_leaves_those_of_others(lab: Lab) -> None:
    node = lab.node(1)
    node.exec(
        ["tc", "filter", "add", "dev", "eth0", "egress", "bpf", "da", "bytecode", "1,6 0 0 3"]
    )
    for number in (1, 2):
        lab.node(number).kill()
        lab.node(number).wait_exit()
    planned = json.loads(node.exec(["pyflannel", "cleanup", "--dry-run", "--json"]).stdout)
    assert "filter pyflannel:underlay_in at eth0" in planned["found"]
    assert our_filters(lab, 1) != []
    for number in (1, 2):
        done = json.loads(lab.node(number).exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert done["failed"] == {}
        assert our_filters(lab, number) == []
    assert with_qdisc(lab, 1) == {"eth0"}
    assert with_qdisc(lab, 2) == set()


def test_another_data_path_takes_away_what_was_left_without_bpffs() -> None:
    """No pin tells of the filters then; and they would swallow what the next daemon waits for."""
    spec = LabSpec(nodes=1, backend="udp", name="ebpf-clsact-bare", datapath="ebpf")
    with Lab(spec) as lab:
        node = lab.node(1)
        node.kill()
        node.wait_exit()
        assert our_filters(lab, 1) == ["pyflannel:underlay_in"]
        node.start_daemon(["--datapath=python"])
        lab.wait(lambda: has_peers(lab, 1, 0), 10, what="it runs")
        assert our_filters(lab, 1) == []
        links = node.exec(["ip", "-o", "link"]).stdout
        assert "flannelgro" not in links
