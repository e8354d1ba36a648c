"""`/metrics` of a daemon on a node of a lab."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

ASK = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9471/metrics').read().decode())"
)


def scrape(lab: Lab) -> str:
    return lab.node(1).exec([sys.executable, "-c", ASK]).stdout


def peer(lab: Lab) -> list[str]:
    """The labels of node 2, in order of their values."""
    return sorted(["192.0.2.2", lab.node(2).subnet_env()["FLANNEL_SUBNET"].replace(".1/", ".0/")])


def test_a_node_tells_its_lease_its_store_and_its_peers():
    with Lab(LabSpec(nodes=2, name="metrics", daemon_args=("--healthz-port=9471",))) as lab:
        lab.wait(lambda: "pyflannel_peer_up{" in scrape(lab), 10, what="the first answer")
        text = scrape(lab)
        shown = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        assert shown["pyflannel_ready",] == 1
        assert shown["pyflannel_store_connected",] == 1
        assert shown["pyflannel_leases",] == 2
        assert (shown["pyflannel_peers", "unknown"], shown["pyflannel_peers", "up"]) == (0, 1)
        assert 0 < shown["pyflannel_peer_rtt_seconds", *peer(lab)] < 1
        assert shown["pyflannel_lease_expiry_timestamp_seconds",] > 1e9
        assert shown["pyflannel_peer_up", *peer(lab)] == 1
        # The probes alone, so far.
        for name in ("bytes", "packets"):
            for way in ("in", "out"):
                assert shown[f"pyflannel_peer_{name}_total", *sorted([*peer(lab), way])] > 0

        # The other node by its health port: the same from the command's side.
        compare = ["pyflannel", "doctor", "--cluster", "--json", "--healthz-port"]
        lab.wait(
            lambda: said(lab, compare, 9471)["nodes"] == {"this node": [], "192.0.2.2": []},
            20,
            what="the nodes that hear each other",
        )
        shown = said(lab, compare, 9471)
        assert (shown["findings"], shown["unknown"]) == ([], {})
        assert shown["matrix"][2] == ["192.0.2.2", "up", "."]
        assert "refused" in said(lab, compare, 9472)["unknown"]["192.0.2.2"]


def said(lab: Lab, command: Sequence[str], port: int) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(lab.node(1).exec([*command, str(port)], check=False).stdout)
    return answer


def test_without_them_the_port_has_what_upstreams_has():
    asked = ASK.replace("r.urlopen", "r.build_opener(H).open").replace(
        "import urllib.request as r;",
        "import urllib.request as r; H = type('H', (r.HTTPErrorProcessor,),"
        " {'http_response': lambda s, q, a: a});",
    )
    flags = ("--healthz-port=9471", "--metrics=false")
    with Lab(LabSpec(nodes=1, name="nometrics", daemon_args=flags)) as lab:
        node = lab.node(1)
        assert node.exec([sys.executable, "-c", asked]).stdout.strip() == "404 page not found"
        healthy = asked.replace("/metrics", "/healthz")
        assert node.exec([sys.executable, "-c", healthy]).stdout.strip() == "flanneld is running"
