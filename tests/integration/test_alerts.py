"""The rules of contrib/ under promtool, and in a real Prometheus that watches a lab."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec
from pyflannel.lab.nodes import Node
from tests.support.guests import need_devices
from tests.support.prometheus import program

PAGE = Path(__file__).parents[2] / "contrib/README.md"
RULES = PAGE.parent / "prometheus"
ASK = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9090/api/v1/{}').read().decode())"


def promtool(*words: str) -> str:
    done = subprocess.run(
        [program("promtool"), *words], cwd=RULES, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_promtool_finds_nothing_wrong_with_the_rules_and_their_tests_pass():
    assert "15 rules found" in promtool("check", "rules", "pyflannel.rules.yml")
    assert "SUCCESS" in promtool("test", "rules", "tests.yml")


@pytest.mark.slow
def test_promtool_takes_the_configuration_that_the_page_shows(tmp_path):
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "prometheus.yml").write_text(block)
    shutil.copy(RULES / "pyflannel.rules.yml", tmp_path)
    assert "15 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def firing(node: Node) -> set[str]:
    done = node.exec([sys.executable, "-c", ASK.format("alerts")], check=False)
    if done.returncode:
        return {"no answer"}
    alerts = json.loads(done.stdout)["data"]["alerts"]
    return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}


@pytest.mark.root
@pytest.mark.slow
def test_a_peer_that_dies_fires_an_alert_which_ends_when_it_is_back(tmp_path):
    need_devices("vxlan")
    # As shipped, but for the patience: minutes are seconds here.
    rules = re.sub(r"for: \d+m", "for: 2s", (RULES / "pyflannel.rules.yml").read_text())
    (tmp_path / "rules.yml").write_text(rules)
    config = """
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules.yml]
scrape_configs: [{job_name: pyflannel, static_configs: [{targets: ["127.0.0.1:9471"]}]}]
"""
    (tmp_path / "prometheus.yml").write_text(config)
    spec = LabSpec(
        nodes=2,
        backend="vxlan",
        name="alerts",
        daemon_args=("--healthz-port=9471", "--probe-interval=1"),
    )
    with Lab(spec) as lab:
        node = lab.node(1)
        server = node.space.popen(
            [
                program("prometheus"),
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}",
                "--web.listen-address=127.0.0.1:9090",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            lab.wait(lambda: firing(node) == set(), 60, what="a Prometheus without alerts")
            lab.node(2).unplug()
            lab.wait(lambda: "PyflannelPeersDown" in firing(node), 90, what="the alert")
            lab.node(2).plug_in()
            lab.wait(lambda: firing(node) == set(), 90, what="its end")
        finally:
            server.terminate()
            server.wait(20)
