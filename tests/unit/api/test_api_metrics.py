"""`/metrics` as text: what Prometheus' own parser makes of it, and how often it is made."""

from __future__ import annotations

import asyncio

from aiohttp.test_utils import make_mocked_request
from prometheus_client.parser import text_string_to_metric_families

from pyflannel.api import metrics
from pyflannel.api.health import health_app
from pyflannel.report.metrics import MOST_PEERS
from pyflannel.report.model import NodeReport, PeerReport, StoreReport
from tests.support.reports import Saying

REPORT = NodeReport(
    version='1 "x"\n',
    store=StoreReport(connected=True, peers=1),
    peers=[PeerReport(subnet="10.5.7.0/24", public_ip="192.0.2.7", state="up", bytes_in=5)],
)


def parsed(body: bytes) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.items())}": sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def answered(app, path: str):
    (route,) = app.router.routes()
    return asyncio.run(route.handler(make_mocked_request("GET", path)))


def test_prometheus_reads_what_we_say():
    shown = parsed(metrics.render(REPORT))
    peer = [("public_ip", "192.0.2.7"), ("subnet", "10.5.7.0/24")]
    assert shown[f"pyflannel_peer_up{peer}"] == 1
    assert shown[f"pyflannel_peer_bytes_total{[('direction', 'in'), *peer]}"] == 5
    assert shown["pyflannel_leases[]"] == 1
    assert shown["pyflannel_build_info" + str([("version", '1 "x"\n')])] == 1
    assert shown["process_resident_memory_bytes[]"] > 0


def test_it_is_served_with_its_type():
    answer = answered(health_app(lambda: True, metrics.Scrapes(Saying(REPORT))), "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"] == metrics.CONTENT_TYPE
    assert b"pyflannel_ready 0.0" in answer.body


def test_without_reports_it_is_not_found_as_upstream_has_it():
    assert answered(health_app(lambda: True), "/metrics").status == 404


async def test_a_client_that_asks_all_the_time_gets_one_answer_a_second():
    node, clock = Saying(REPORT), [0.0]

    scrapes = metrics.Scrapes(node, lambda: clock[0])
    await asyncio.gather(*(scrapes.answer() for _ in range(20)))
    assert node.asked == 1
    clock[0] += metrics.FRESH_S
    await scrapes.answer()
    assert node.asked == 2


async def test_of_many_peers_those_are_counted_that_have_series():
    """What was counted is read from each CPU that the machine may have: it costs the most."""
    many = [
        PeerReport(
            subnet=f"10.{n // 256}.{n % 256}.0/24",
            state="down" if n == 999 else "up",
            packets_in=n,
        )
        for n in range(1000)
    ]
    node = Saying(NodeReport(peers=many))
    shown = parsed(await metrics.Scrapes(node).answer())
    assert node.counted == MOST_PEERS
    counted = [name for name in shown if "peer_packets_total" in name]
    assert len(counted) == MOST_PEERS
    assert any("10.3.231.0/24" in name for name in counted), "the one with trouble"
    assert shown["pyflannel_peers[('state', 'up')]"] == 999
