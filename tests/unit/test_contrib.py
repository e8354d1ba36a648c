"""Rules and dashboard use metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "contrib/prometheus/pyflannel.rules.yml").read_text()
DASHBOARD = json.loads((ROOT / "contrib/grafana/pyflannel.json").read_text())
PAGE = (ROOT / "docs/reference/metrics.md").read_text()
LISTED = set(re.findall(r"^\| (pyflannel_\w+) \|", PAGE, re.MULTILINE))
RECORDED = set(re.findall(r"record: (\S+)", RULES))


def used(text: str) -> set[str]:
    return set(re.findall(r"\bpyflannel[_:][\w:]+", text))


def test_rules_use_metrics_that_there_are():
    assert used(RULES) - RECORDED <= LISTED | {"pyflannel_rules"}


def test_the_dashboard_uses_metrics_and_rules_that_there_are():
    expressions = [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]
    assert used(" ".join(expressions)) <= LISTED | RECORDED
    assert all(panel["title"] for panel in DASHBOARD["panels"])


def test_panels_do_not_overlap():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
