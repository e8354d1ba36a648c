"""docs/kubernetes.md: its flags exist, and what it says the daemon says, it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from pyflannel import __version__ as VERSION
from pyflannel.cli import pyflannel
from pyflannel.core.kube import annotations
from pyflannel.core.options import FLAGS
from pyflannel.gocompat.flags import Mode

ROOT = Path(__file__).parents[2]
KUBE_FLAGS = [flag for flag in FLAGS if flag.mode is Mode.KUBE]
TEXT = (ROOT / "docs/kubernetes.md").read_text()
OTHERS = {
    *("allocate-node-cidrs", "cluster-cidr", "pod-network-cidr", "kubernetes"),
    "service-account-key-file",
}
"""Of kube-controller-manager, kubeadm, pyflannel's own tool and kube-apiserver."""


def test_every_flag_exists_and_every_flag_of_kubernetes_is_there() -> None:
    ours = re.sub(r"^admin# .*kubectl .*$", "", TEXT, flags=re.MULTILINE)
    named = set(re.findall(r"--([a-z][a-z-]+)", ours)) - OTHERS
    assert named <= {flag.name for flag in FLAGS}
    assert {flag.name for flag in KUBE_FLAGS} <= named


COMMANDS = re.findall(r"^(?:admin|node\d)# (.*)$", TEXT, re.MULTILINE)


def test_every_command_is_one_that_there_is(tmp_path, monkeypatch, capsys) -> None:
    """What they name as well."""
    manifest = yaml.safe_load_all((ROOT / "kubernetes/pyflannel.yaml").read_text())
    data = [each["data"] for each in manifest if each["kind"] == "ConfigMap"]
    (tmp_path / "net-conf.json").write_text(data[0]["net-conf.json"])
    monkeypatch.chdir(tmp_path)
    seen = set()
    for line in COMMANDS:
        program, *words = shlex.split(line)
        if program == "kubectl" and "exec" in words:
            assert words[words.index("-n") + 1] == "kube-flannel"
            program, *words = words[words.index("--") + 1 :]
            assert [program, *words] in [["pyflannel", name] for name in pyflannel.COMMANDS]
            seen.add(words[0])
        elif program == "pyflannel":
            assert pyflannel.run(words) == 0, capsys.readouterr()
            seen.add(words[0])
        elif program == "ctr":
            assert words[-1] == f"pyflannel-image-{VERSION}-amd64.tar"
            seen.add(program)
    assert seen == {"ctr", "config", "status", "peers", "doctor"}


def test_every_variable_is_one_of_its_flags() -> None:
    named = set(re.findall(r"FLANNELD_[A-Z_]+", TEXT))
    assert named <= {flag.variable() for flag in KUBE_FLAGS}


def test_every_annotation_is_one_that_is_read() -> None:
    table = TEXT.partition("## Annotations")[2].partition("## ")[0]
    for name in re.findall(r"^\| `([a-z0-9-]+)`, `([a-z0-9-]+)`", table, re.MULTILINE):
        assert set(name) <= set(annotations.NAMES)


def test_what_is_waited_for_is_said_in_these_words() -> None:
    table = TEXT.partition("## What it waits for")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE)
    assert len(rows) == 7
    sources = [*(ROOT / "pyflannel/store/kubernetes").glob("*.py")]
    sources += [ROOT / "pyflannel/core/kube/nodes.py", ROOT / "tests/support/kubeapi.py"]
    said = re.sub(r'["\']\s*f?["\']|\\', "", " ".join(path.read_text() for path in sources))
    for row in rows:
        for part in re.split(r"…", row):
            assert part.strip() in said, part
