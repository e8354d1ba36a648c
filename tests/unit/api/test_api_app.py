"""What the status socket answers, without a socket."""

from __future__ import annotations

import asyncio
import json

from aiohttp.test_utils import make_mocked_request

from pyflannel.api import app, health
from pyflannel.report.codec import encode
from pyflannel.report.model import NodeReport, StoreReport

REPORT = NodeReport(version="1", store=StoreReport(kind="etcd", connected=False))


def test_status_is_the_report_made_at_that_moment():
    made: list[int] = []

    def report() -> NodeReport:
        made.append(1)
        return REPORT

    async def main() -> dict:
        served = app.status_app(report)
        (route,) = (r for r in served.router.routes() if r.method == "GET")
        answer = await route.handler(make_mocked_request("GET", "/status"))
        return json.loads(answer.body)

    assert asyncio.run(main()) == json.loads(json.dumps(encode(REPORT)))
    assert made == [1]


def ready_answer(*, ready: bool, trouble: str = "") -> tuple[int, str]:
    async def main() -> tuple[int, str]:
        served = health.health_app(lambda: ready, trouble=lambda: trouble)
        (route,) = served.router.routes()
        answer = await route.handler(make_mocked_request("GET", "/readyz"))
        return answer.status, answer.body.decode()

    return asyncio.run(main())


def test_readyz_is_upstreams_unless_somebody_has_more_to_say():
    assert ready_answer(ready=False) == (503, "flanneld is not ready yet")
    assert ready_answer(ready=False, trouble="x") == (503, "flanneld is not ready yet")
    assert ready_answer(ready=True) == (200, "flanneld is ready")
    assert ready_answer(ready=True, trouble="PF111 lost") == (503, "not ready: PF111 lost")
