"""What the status socket answers, without a socket."""

from __future__ import annotations

import asyncio
import json

from aiohttp.test_utils import make_mocked_request

from pyflannel.api import app
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
