"""What `pyflannel leases` and `LeaseTTL` write, beside upstream's daemon.

Needs upstream's binary: `PYFLANNEL_UPSTREAM=/path/to/flanneld`.
"""

from __future__ import annotations

import json
import os

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.upstream import end

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
CONFIG_KEY = "/coreos.com/network/config"

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
    ),
]


@pytest.mark.parametrize("backend", ["udp", "host-gw", "vxlan"])
def test_reservations_releases_and_a_ttl_do_upstreams_node_no_harm(backend):
    """A reservation of its own subnet, one for a node that is not there, a restart with both."""
    spec = LabSpec(
        nodes=3,
        backend=backend,
        name=f"operator-{backend}",
        node_commands={2: UPSTREAM},
        datapath="native" if backend == "udp" else "",
    )
    with Lab(spec) as lab:
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs")
        ours, upstream = lab.node(1), lab.node(2)
        subnet = upstream.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24")

        def leases(*arguments: str) -> str:
            command = ["pyflannel", "leases", *arguments, f"--etcd-endpoints={lab.etcd.endpoint}"]
            return ours.exec(command).stdout

        assert "reserved" in leases("reserve", subnet, "--public-ip", str(upstream.address))
        assert "reserved" in leases("reserve", "10.0.230.0/24", "--public-ip", "192.0.2.77")
        config = json.loads(lab.etcd.get(CONFIG_KEY).value)
        lab.etcd.put(CONFIG_KEY, json.dumps({**config, "LeaseTTL": 600}))
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs with the reservations")
        end(upstream)
        upstream.start_daemon()
        lab.wait(upstream.is_ready, 15, what="upstream is ready again")
        assert upstream.subnet_env()["FLANNEL_SUBNET"].replace(".1/24", ".0/24") == subnet
        assert "released" in leases("release", "10.0.230.0/24")
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs after all that")
