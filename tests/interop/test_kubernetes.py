"""Both daemons in one Kubernetes cluster: annotations, peers, one in the place of the other.

Needs upstream's binary: `PYFLANNEL_UPSTREAM=/path/to/flanneld`.
"""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.support.kubelab import KubeLab

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("PYFLANNEL_UPSTREAM"),
        reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set",
    ),
]

V4 = {"Network": "10.244.0.0/16"}
DUAL = V4 | {"EnableIPv6": True, "IPv6Network": "fd00:10::/48"}
CONFIGS = {
    "vxlan": V4 | {"Backend": {"Type": "vxlan"}},
    "host-gw": V4 | {"Backend": {"Type": "host-gw"}},
    "udp": V4 | {"Backend": {"Type": "udp"}},
    "ipip": V4 | {"Backend": {"Type": "ipip"}},
    "vxlan-dual": DUAL | {"Backend": {"Type": "vxlan"}},
    "host-gw-dual": DUAL | {"Backend": {"Type": "host-gw"}},
}


def shape(annotations: dict[str, str]) -> dict[str, object]:
    """Names and values, but for what is a node's own: addresses and MACs."""
    shapes: dict[str, object] = {}
    for name, value in annotations.items():
        if name.startswith("public-ip"):
            shapes[name] = "an address"
        elif name.endswith("data") and value != "null":
            data = json.loads(value)
            assert json.dumps(data, separators=(",", ":")) == value
            shapes[name] = list(data)
        else:
            shapes[name] = value
    return shapes


def mixed(case: str, upstream: int = 2) -> KubeLab:
    return KubeLab(f"kube-mixed-{case}", CONFIGS[case], upstream=[upstream])


def create_all(cluster: KubeLab, case: str) -> None:
    for number in (1, 2):
        more = [f"fd00:10:0:{number}::/64"] if case.endswith("dual") else []
        cluster.control("create", f"n{number}", f"10.244.{number}.0/24", cidrs=more)


def is_carried(case: str) -> bool:
    """Whether this kernel has the kind of device."""
    if case != "ipip":
        return True
    probe = [
        "unshare",
        "--net",
        "ip",
        "link",
        "add",
        "probe0",
        "type",
        "ipip",
        "local",
        "192.0.2.1",
    ]
    return subprocess.run(probe, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("case", CONFIGS)
def test_both_publish_the_same_and_their_pods_reach_each_other(case):
    if not is_carried(case):
        pytest.skip("this kernel has no ipip devices")
    with mixed(case) as cluster:
        create_all(cluster, case)
        for number in (1, 2):
            cluster.start(number)
        for number in (1, 2):
            cluster.wait_subnet(number, f"10.244.{number}.1/24")
            cluster.lab.node(number).attach_pod()
        cluster.wait_pings()
        if case.endswith("dual"):
            cluster.lab.wait(lambda: cluster.lab.ping_all(version=6).ok, 20, what="IPv6 pings")
        annotations = cluster.control()["annotations"]
        assert shape(annotations["n1"]) == shape(annotations["n2"])

        # Each follows what the other's node becomes.
        former = cluster.control()["annotations"]["n1"]
        cluster.control("delete", "n1")
        more = ["fd00:10:0:9::/64"] if case.endswith("dual") else []
        cluster.control("create", "n1", "10.244.9.0/24", cidrs=more)
        cluster.wait_subnet(1, "10.244.9.1/24")
        cluster.lab.node(1).attach_pod()
        cluster.wait_pings()
        assert cluster.control()["annotations"]["n1"] == former


@pytest.mark.parametrize("case", ["vxlan", "host-gw"])
def test_ours_takes_upstreams_place_and_gives_it_back_without_losing_a_packet(case):
    with mixed(case) as cluster:
        create_all(cluster, case)
        for number in (1, 2):
            cluster.start(number)
        for number in (1, 2):
            cluster.wait_subnet(number, f"10.244.{number}.1/24")
            cluster.lab.node(number).attach_pod()
        cluster.wait_pings()
        annotations = cluster.control()["annotations"]["n2"]
        address = cluster.lab.node(2).pod_address()
        pinging = cluster.lab.node(1).pod.popen(
            ["ping", "-i", "0.01", "-w", "60", address], stdout=subprocess.PIPE
        )
        try:
            for runs_upstream in (False, True, False):
                cluster.stop(2)
                cluster.upstream = frozenset([2] if runs_upstream else [])
                subnet_file = cluster.lab.node(2).path("/run/flannel/subnet.env")
                subnet_file.unlink()
                cluster.start(2)
                cluster.wait_subnet(2, "10.244.2.1/24")
                assert cluster.control()["annotations"]["n2"] == annotations
        finally:
            pinging.send_signal(2)
            out, _ = pinging.communicate(timeout=10)
        assert " 0% packet loss" in out, out[-300:]


def test_an_overwrite_is_used_by_the_other_side():
    """Ours publishes it and upstream's sends there; the address is a second one of our node."""
    with mixed("vxlan") as cluster:
        create_all(cluster, "vxlan")
        cluster.control("annotate", "n1", public_ip_overwrite="192.0.2.201")
        cluster.run(1, "ip", "address", "add", "192.0.2.201/24", "dev", "eth0")
        for number in (1, 2):
            cluster.start(number)
        for number in (1, 2):
            cluster.wait_subnet(number, f"10.244.{number}.1/24")
        cluster.lab.wait(
            lambda: "192.0.2.201" in cluster.run(2, "bridge", "fdb", "show", "dev", "flannel.1"),
            20,
            what="upstream's FDB entry",
        )
        assert cluster.control()["annotations"]["n1"]["public-ip"] == "192.0.2.201"
