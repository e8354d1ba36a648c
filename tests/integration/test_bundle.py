"""`pyflannel bundle` on a node of a lab: what is inside, and what is not."""

from __future__ import annotations

import json
import tarfile

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow]

SECRET = "hunter2-S"


def test_an_archive_of_a_node_has_what_it_lists_and_no_secret(tmp_path):
    path = tmp_path / "b.tar.gz"
    with Lab(LabSpec(nodes=1, name="bundle")) as lab:
        node = lab.node(1)
        with node.path("/run/docker_opts.env").open("a") as file:
            file.write(f"REGISTRY_PASSWORD={SECRET}\n")
        words = ["pyflannel", "bundle", str(path)]
        done = node.exec([*words, "--json"], check=False)
        assert done.returncode == 0, done.stderr
        again = node.exec(words, check=False)
        assert again.returncode == 69
        assert "name another FILE" in again.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    said = check_printed("bundle", done.stdout)
    with tarfile.open(path) as archive:
        names = {each.name.removeprefix("pyflannel-bundle/") for each in archive}
        there = {each["name"] for each in said["members"] if not each["missing"]}
        assert names == there | {"MANIFEST.txt"}
        assert {"status.json", "doctor.json", "ip-link.txt", "nft-ruleset.txt"} <= names
        texts = {
            each.name: archive.extractfile(each).read().decode() for each in archive.getmembers()
        }
    assert "REGISTRY_PASSWORD=***" in texts["pyflannel-bundle/files/run/docker_opts.env"]
    assert SECRET not in "".join(texts.values())
    listed = texts["pyflannel-bundle/MANIFEST.txt"]
    assert all(name in listed for name in there)
    assert json.loads(texts["pyflannel-bundle/status.json"])["ready"] is True
