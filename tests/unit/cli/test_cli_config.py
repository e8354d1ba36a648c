"""`pyflannel config check`, on files."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from pyflannel.cli import config
from pyflannel.testing.fakeetcd import FakeEtcd
from pyflannel.testing.fakestore import FakeStore
from tests.support.schema import check_printed

SAMPLES = Path(__file__).parents[3] / "config"


def test_a_config_that_runs_commands_is_fit_and_has_a_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert config.main(["check", str(SAMPLES / "extension.json"), "--json"]) == 0
    (problem,) = check_printed("config-check", capsys.readouterr().out)["problems"]
    assert problem["severity"] == "warning"
    assert "--allow-extension" in problem["remedy"]
    assert config.main(["check", str(SAMPLES / "extension.json")]) == 0
    assert "--allow-extension" in capsys.readouterr().err


def test_one_that_runs_none_has_no_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert config.main(["check", str(SAMPLES / "vxlan.json")]) == 0
    assert capsys.readouterr().err == ""


def test_a_net_conf_of_kubernetes_is_read_as_its_nodes_read_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net-conf.json"
    path.write_text('{"Network":"10.244.0.0/16","SubnetLen":31,"Backend":{"Type":"vxlan"}}')
    assert config.main(["check", str(path)]) == 78
    capsys.readouterr()
    assert config.main(["check", "--kubernetes", str(path), "--json"]) == 0
    shown = check_printed("config-check", capsys.readouterr().out)
    assert "SubnetLen" not in shown["config"]
    (problem,) = shown["problems"]
    assert problem["key"] == "SubnetLen"


def test_the_config_in_etcd_is_told_as_daemons_understand_it(monkeypatch, capsys):
    etcd = FakeEtcd()
    etcd.put(b"/coreos.com/network/config", b'{"network": "10.5.0.0/16"}')
    monkeypatch.setattr(
        config, "with_store", lambda _options, work: asyncio.run(work(FakeStore(etcd)))
    )
    assert config.main(["get", "--json"]) == 0
    told = check_printed("config-get", capsys.readouterr().out)
    assert told["config"]["Network"] == "10.5.0.0/16"
