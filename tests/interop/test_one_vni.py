"""Our daemon and upstream's on each node, with one VNI by mistake: both networks work.

Upstream's daemon cannot be refused, and leaves the other's entries alone. So does ours, and says
what it sees. Needs upstream's binary: `PYFLANNEL_UPSTREAM=/path/to/flanneld`.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from subprocess import DEVNULL

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node, our_daemon

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
SECOND = "10.9.0.0/16"
SUBNET_FILE = "/run/flannel/two.env"
SOCKET = "/run/pyflannel/two.sock"
OURS_ALONE = (
    "--docker-opts-file=/run/flannel/two-docker.env",
    "--state-dir=/var/lib/pyflannel/two",
    f"--status-socket={SOCKET}",
)
LOOKS_S = 12.0
"""Time for each daemon to look at all of its objects once more, and at each other's."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
    ),
]


@contextlib.contextmanager
def second_daemon(node: Node, lab: Lab, *, ours: bool) -> Iterator[None]:
    """Another daemon on a node, for the network in `/two`."""
    command = [*(our_daemon() if ours else [UPSTREAM]), "-iface=eth0"]
    command += [f"-etcd-endpoints={lab.etcd.endpoint}", "-etcd-prefix=/two"]
    command += [f"-subnet-file={SUBNET_FILE}", *(OURS_ALONE if ours else ())]
    child = node.space.popen(command, stdout=DEVNULL, stderr=DEVNULL)
    try:
        yield
    finally:
        child.terminate()
        child.wait(10)


def vtep(node: Node) -> str:
    """The address of the second network on the node's device; empty until it is there."""
    listed = json.loads(node.exec(["ip", "-j", "addr", "show", "dev", "flannel.1"]).stdout)
    found = [one["local"] for one in listed[0]["addr_info"] if one["local"].startswith("10.9.")]
    return found[0] if found else ""


@pytest.mark.parametrize("first", ["ours", "upstream"])
def test_both_networks_work_and_ours_says_what_it_shares(first):
    commands = {} if first == "ours" else dict.fromkeys((1, 2), UPSTREAM)
    spec = LabSpec(nodes=2, backend="vxlan", name=f"vni-{first}", node_commands=commands)
    with Lab(spec) as lab, contextlib.ExitStack() as stack:
        lab.wait(lambda: lab.ping_all(count=1).ok, 15, what="all pods")
        config = {"Network": SECOND, "Backend": {"Type": "vxlan"}}
        lab.etcd.put("/two/config", json.dumps(config))
        for node in lab.nodes:
            stack.enter_context(second_daemon(node, lab, ours=first == "upstream"))
        one, two = lab.nodes

        def second_works(count: int = 1) -> bool:
            if not all(map(vtep, lab.nodes)):
                return False
            ping = ["ping", "-q", "-c", str(count), "-i", "0.1", "-W", "1", vtep(two)]
            return one.exec(ping, check=False).returncode == 0

        lab.wait(second_works, 20, what="the second network")
        end = time.monotonic() + LOOKS_S
        while time.monotonic() < end:
            assert lab.ping_all(count=5).ok
            assert second_works(count=5)
        where = [] if first == "ours" else [f"--status-socket={SOCKET}"]
        found = json.loads(one.exec(["pyflannel", "status", "--json", *where], check=False).stdout)
        assert [problem["code"] for problem in found["problems"]] == ["PF137"]
        assert found["network"]["repaired"] == {}
        assert lab.ping_all(count=5).ok
