"""The textbook's flannel chapter, step by step, on real parts: etcd, TUN, bridges, packets."""

from __future__ import annotations

import json
import time

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab import bench as lab_bench

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {
    "Network": "10.0.0.0/16",
    "SubnetLen": 24,
    "SubnetMin": "10.0.1.0",
    "SubnetMax": "10.0.20.0",
    "Backend": {"Type": "udp"},
}


@pytest.fixture(scope="module", params=["/coreos.com/network", "/atomic.io/network"])
def lab(request):
    """Three nodes, under the usual etcd prefix and under CentOS's."""
    name = "walk" + str(len(request.param))
    with Lab(LabSpec(nodes=3, config=CONFIG, name=name, prefix=request.param)) as lab:
        yield lab


def test_each_node_leases_a_subnet_of_its_own_in_range(lab):
    subnets = {lab.node(n).subnet_env()["FLANNEL_SUBNET"] for n in (1, 2, 3)}
    assert len(subnets) == 3
    for subnet in subnets:
        a, b, third, rest = subnet.split(".")
        assert (a, b, rest) == ("10", "0", "1/24")
        assert 1 <= int(third) <= 20


def test_etcd_holds_upstreams_keys_and_bytes_with_a_lease_of_a_day(lab):
    for n in (1, 2, 3):
        network = lab.node(n).subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0-24")
        key = f"{lab.spec.prefix}/subnets/{network}"
        value = f'{{"PublicIP":"{lab.node(n).address}","PublicIPv6":null}}'
        stored = lab.etcd.get(key)
        assert stored.value == value
        assert 86400 - 120 < stored.ttl <= 86400
    done = lab.node(1).exec(
        [
            "pyflannel",
            "leases",
            "--json",
            f"--etcd-endpoints={lab.etcd.endpoint}",
            f"--etcd-prefix={lab.spec.prefix}",
        ]
    )
    leases = json.loads(done.stdout)["leases"]
    assert len(leases) == 3
    assert all(86400 - 120 < lease["ttl"] <= 86400 for lease in leases)


def test_the_files_are_exact(lab):
    node = lab.node(1)
    subnet = node.subnet_env()["FLANNEL_SUBNET"]
    assert node.path("/run/flannel/subnet.env").read_text() == (
        f"FLANNEL_NETWORK=10.0.0.0/16\nFLANNEL_SUBNET={subnet}\n"
        "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    )
    assert node.path("/run/docker_opts.env").read_text() == (
        f'DOCKER_OPT_BIP="--bip={subnet}"\nDOCKER_OPT_IPMASQ="--ip-masq=true"\n'
        f'DOCKER_OPT_MTU="--mtu=1472"\n'
        f'DOCKER_OPTS=" --bip={subnet} --ip-masq=true --mtu=1472"\n'
    )
    for path in ("/run/flannel/subnet.env", "/run/docker_opts.env"):
        assert node.path(path).stat().st_mode & 0o777 == 0o644


def test_flannel0_has_upstreams_address_mtu_and_route(lab):
    node = lab.node(1)
    subnet = node.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0")
    (link,) = json.loads(node.exec(["ip", "-j", "-d", "addr", "show", "flannel0"]).stdout)
    assert link["mtu"] == 1472
    assert "UP" in link["flags"]
    v4 = [a for a in link["addr_info"] if a["family"] == "inet"]
    assert [(a["local"], a["prefixlen"], a["scope"]) for a in v4] == [(subnet, 32, "global")]
    routes = json.loads(node.exec(["ip", "-j", "-d", "route", "show", "dev", "flannel0"]).stdout)
    assert [(r["dst"], r["protocol"], r["scope"]) for r in routes] == [
        ("10.0.0.0/16", "boot", "global")
    ]


def test_every_pair_of_pods_pings_with_its_own_address_and_a_ttl_of_60(lab):
    matrix = lab.ping_all()
    assert matrix.ok, matrix.failures()
    assert set(matrix.ttls) == {60}
    assert not matrix.foreign_sources


def test_bulk_traffic_flows(lab):
    source, target = lab.node(1), lab.node(2)
    tcp = lab_bench.tcp(source, target, seconds=0.5)
    assert tcp.gbit_per_s > 0.05
    assert tcp.seen_as == (source.pod_address(),)
    packets = lab_bench.packet_rate(source, target, seconds=0.5, rate=1000)
    assert packets.loss < 0.01


def test_a_node_too_many_is_told_so_and_gets_the_first_subnet_that_is_freed():
    config = {**CONFIG, "SubnetMax": "10.0.2.0"}
    with Lab(LabSpec(nodes=2, config=config, name="walkfull")) as lab:
        third = lab.add_node(start=False)
        third.start_daemon()
        lab.wait(lambda: "out of subnets: 2 of 2" in third.log(), 10, what="the third is told")
        assert third.daemon is not None
        victim = lab.node(2)
        freed = victim.subnet_env()["FLANNEL_SUBNET"]
        victim.stop_daemon()
        key = f"{lab.spec.prefix}/subnets/{freed.replace('.1/24', '.0-24')}"
        lab.etcd.delete(key)
        lab.wait(third.is_ready, 15, what="the third has a subnet")
        assert third.subnet_env()["FLANNEL_SUBNET"] == freed


def test_twenty_nodes_that_start_at_once_get_twenty_subnets():
    """All subnets there are, in one go; no node gives up, no etcd lease is left over."""
    spec = LabSpec(nodes=20, config=CONFIG, name="walk20", start_daemons=False)
    with Lab(spec) as lab:
        start = time.monotonic()
        for n in range(1, 21):
            lab.node(n).start_daemon()
        lab.wait_ready(60)
        assert time.monotonic() - start < 60
        subnets = {lab.node(n).subnet_env()["FLANNEL_SUBNET"] for n in range(1, 21)}
        assert len(subnets) == 20
        leases = lab.etcd.post("/v3/lease/leases", {})["leases"]
        assert len(leases) == 20
