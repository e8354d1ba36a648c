"""`pyflannel static check`."""

from __future__ import annotations

import json

from pyflannel.cli import static
from tests.support.schema import check_printed

NETWORK = {
    "config": {"Network": "10.5.0.0/16", "Backend": {"Type": "host-gw"}},
    "nodes": [{"subnet": "10.5.1.0/24", "publicIP": "192.0.2.1"}],
}


def test_a_file_is_told_as_json(tmp_path, capsys):
    path = tmp_path / "network.json"
    path.write_text(json.dumps(NETWORK))
    assert static.main(["check", str(path), "--json"]) == 0
    told = check_printed("static-check", capsys.readouterr().out)
    assert [node["public_ip"] for node in told["nodes"]] == ["192.0.2.1"]


def test_a_wrong_file_has_problems_and_no_nodes(tmp_path, capsys):
    path = tmp_path / "network.json"
    path.write_text("{}")
    assert static.main(["check", str(path), "--json"]) == 78
    told = check_printed("static-check", capsys.readouterr().out)
    assert (told["config"], told["nodes"]) == (None, [])
    assert told["problems"][0]["severity"] == "error"
