"""Backend extension: the config's commands are run as root, so each node must have agreed."""

from __future__ import annotations

import json

import pytest

from pyflannel.lab import Lab, LabSpec

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {
    "Network": "10.9.0.0/16",
    "Backend": {"Type": "extension", "PreStartupCommand": "touch /run/ran-as-root"},
}


def test_a_node_runs_commands_from_etcd_only_if_it_agreed_to() -> None:
    spec = LabSpec(nodes=1, name="consent", config=json.dumps(CONFIG), start_daemons=False)
    with Lab(spec) as lab:
        node = lab.node(1)
        command = [word for word in node.daemon_command() if word != "--allow-extension"]
        refused = node.exec(command, check=False, timeout=20)
        assert refused.returncode == 78
        last = refused.stderr.splitlines()[-1]
        assert "--allow-extension" in last
        assert "FLANNELD_ALLOW_EXTENSION" in last
        assert not node.path("/run/ran-as-root").exists()

        check = ["pyflanneld-start", "--check-only", *command[1:]]
        assert node.exec(check, check=False).returncode == 78
        agreed = {"FLANNELD_ALLOW_EXTENSION": "true"}
        assert node.exec(check, check=False, env=agreed).returncode == 0
        assert not node.path("/run/ran-as-root").exists()

        node.start_daemon()
        lab.wait_ready(15)
        assert node.path("/run/ran-as-root").exists()
