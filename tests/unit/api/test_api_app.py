"""What the status socket answers, without a socket."""

from __future__ import annotations

import asyncio
import json

import aiohttp
from aiohttp.test_utils import make_mocked_request

from pyflannel.api import app, health
from pyflannel.report.codec import encode
from pyflannel.report.model import NodeReport, PeerReport, StoreReport
from tests.support.reports import Saying

PEERS = [PeerReport(subnet=f"10.5.{number}.0/24") for number in range(250)]
REPORT = NodeReport(version="1", store=StoreReport(kind="etcd", connected=False), peers=PEERS)


async def test_status_is_the_report_made_at_that_moment(tmp_path):
    node = Saying(REPORT)
    path = str(tmp_path / "s.sock")
    runner = await app.serve_status(node, path)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as client,
            client.get("http://localhost/status") as answer,
        ):
            kind, shown = answer.headers["Content-Type"], await answer.json()
    finally:
        await app.stop_serving(runner, path)
    assert kind == "application/json; charset=utf-8"
    assert shown == json.loads(json.dumps(encode(REPORT)))
    assert list(shown) == list(encode(REPORT))
    assert node.asked == 1


def ready_answer(*, ready: bool, trouble: str = "") -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        served = health.health_app(lambda: ready, trouble=lambda: trouble)
        (route,) = served.router.routes()
        answer = await route.handler(make_mocked_request("GET", "/readyz"))
        return answer.status, answer.body.decode()

    return asyncio.run(main())


def test_readyz_is_upstreams_unless_there_is_more_to_say():
    assert ready_answer(ready=False) == (503, "flanneld is not ready yet")
    assert ready_answer(ready=False, trouble="x") == (503, "flanneld is not ready yet")
    assert ready_answer(ready=True) == (200, "flanneld is ready")
    assert ready_answer(ready=True, trouble="PF111 lost") == (503, "not ready: PF111 lost")
