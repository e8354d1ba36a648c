"""`"TxChecksumOffload": "auto"` with whole daemons: lost checksums are seen, told and mended."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest

from pyflannel.kernel.knock import PORT, SIZE
from pyflannel.lab import Lab, LabSpec
from tests.integration.test_vxlan_checksums import losing_rules
from tests.support.guests import need_devices

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {
    "Network": "10.0.0.0/16",
    "Backend": {"Type": "vxlan", "TxChecksumOffload": "auto"},
}


def device(lab: Lab, number: int) -> dict:
    said = lab.node(number).exec(["pyflannel", "status", "--json"], check=False).stdout
    return json.loads(said)["network"]["devices"]["flannel.1"]


def first_address(lab: Lab, number: int) -> str:
    return str(ip_network(f"{lab.node(number).pod_address()}/24", strict=False).network_address)


def test_lost_checksums_switch_the_offload_off_on_the_node_that_loses_them():
    need_devices("vxlan")
    spec = LabSpec(nodes=2, name="auto", config=CONFIG, daemon_args=("--probe-interval=1",))
    with Lab(spec) as lab:
        lab.wait(lambda: lab.ping_all().ok, 20, what="all pods")
        here, there = first_address(lab, 1), first_address(lab, 2)
        for number in (1, 2):
            assert device(lab, number)["tx_checksum"].startswith("as it is")
        lab.node(2).exec(["nft", losing_rules(there, here, PORT, SIZE)])
        lab.wait(
            lambda: device(lab, 1)["tx_checksum"].startswith("off"), 60, what="the offload off"
        )
        assert there in device(lab, 1)["tx_checksum"]
        shown = lab.node(1).exec(["pyflannel", "status"], check=False).stdout
        assert "offload of flannel.1 off" in shown
        features = lab.node(1).exec(["ethtool", "-k", "flannel.1"]).stdout
        assert "tx-checksum-ip-generic: off" in features
        assert device(lab, 2)["tx_checksum"].startswith("as it is"), "the other way loses nothing"
