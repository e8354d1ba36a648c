"""`pyflannel cleanup`: every trace of a stopped daemon goes, nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec
from tests.support.guests import need_devices
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

FOREIGN = (
    "ip route add 10.0.77.0/25 via 192.0.2.254",
    "ip route add 198.51.100.0/24 via 192.0.2.254",
    "ip link add flannel9x type bridge",
    "iptables -A FORWARD -s 198.51.100.0/24 -j ACCEPT",
)


def state(node):
    """What others could miss: routes, links, rules."""
    return [
        node.exec(command.split()).stdout
        for command in ("ip route", "ip -o -br link show type bridge", "iptables -S")
    ]


@pytest.mark.parametrize("backend", ["udp", "vxlan", "host-gw", "ipip"])
def test_all_of_ours_goes_and_nothing_else(backend, tmp_path):
    if backend == "ipip":
        need_devices("ipip")
    spec = LabSpec(nodes=2, backend=backend, name=f"clean-{backend}", start_daemons=False)
    spec_args = ["--ip-masq", "--ip-blackhole-route", "--iptables-resync=1"]
    with Lab(spec) as lab:
        node = lab.node(1)
        for command in FOREIGN:
            node.exec(command.split())
        before = state(node)
        for number in (1, 2):
            lab.node(number).start_daemon(spec_args)
        lab.wait_ready(15)
        lab.wait(
            lambda: "blackhole" in node.exec(["ip", "route"]).stdout, 10, what="the blackhole route"
        )
        refused = node.exec(["pyflannel", "cleanup"], check=False)
        assert refused.returncode == 69
        assert f"pid {node.pid}" in refused.stderr
        elsewhere = ["pyflannel", "cleanup", "--subnet-file=/run/flannel/another.env"]
        refused = node.exec(elsewhere, check=False)
        assert refused.returncode == 69
        assert f"pid {node.pid}" in refused.stderr
        assert node.stop_daemon() == 0
        shutil.copy("/bin/sleep", tmp_path / "flanneld")
        child = node.space.popen([str(tmp_path / "flanneld"), "60"])
        comm = Path(f"/proc/{child.pid}/comm")
        lab.wait(lambda: comm.read_text() == "flanneld\n", 15, what="the other daemon")
        try:
            refused = node.exec(["pyflannel", "cleanup"], check=False)
            assert refused.returncode == 69
            assert f"flanneld runs (pid {child.pid})" in refused.stderr
        finally:
            child.kill()
            child.communicate()

        planned = check_printed(
            "cleanup", node.exec(["pyflannel", "cleanup", "--dry-run", "--json"]).stdout
        )
        assert planned["found"]
        assert node.path("/run/flannel/subnet.env").exists()
        done = check_printed("cleanup", node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert done["failed"] == {}
        assert done["found"] == planned["found"]
        after = state(node)
        assert after[0] == before[0]
        assert after[1] == before[1]
        assert after[2] == before[2]
        links = node.exec(["ip", "-o", "link"]).stdout
        assert "flannel0" not in links
        assert "flannel.1" not in links
        assert "flannel.ipip" not in links
        nat = node.exec(["iptables", "-t", "nat", "-S"]).stdout
        assert "FLANNEL" not in nat
        assert not node.path("/run/flannel/subnet.env").exists()
        again = json.loads(node.exec(["pyflannel", "cleanup", "--json"]).stdout)
        assert again["found"] == []
        lock = node.path("/run/flannel/subnet.env.lock")
        assert not lock.exists()
        assert "nothing of flannel's" in node.exec(["pyflannel", "cleanup", "--dry-run"]).stdout
        assert not lock.exists(), "looking leaves nothing either"


def test_files_that_are_not_ours_stay_and_looking_makes_nothing(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious\n")
    spec = LabSpec(nodes=1, name="clean-files", start_daemons=False)
    with Lab(spec) as lab:
        node = lab.node(1)
        for path in (precious, tmp_path):
            command = ["pyflannel", "cleanup", "--json", f"--subnet-file={path}"]
            planned = json.loads(node.exec([*command, "--dry-run"]).stdout)
            assert planned["found"] == []
            assert f"file {path}" in planned["left"]
            assert sorted(tmp_path.iterdir()) == [precious]
            done = json.loads(node.exec(command).stdout)
            assert done["found"] == []
            assert f"file {path}" in done["left"]
        missing = tmp_path / "missing" / "subnet.env"
        for more in ([], ["--dry-run"]):
            node.exec(["pyflannel", "cleanup", f"--subnet-file={missing}", *more])
        said = node.exec(["pyflannel", "cleanup", f"--subnet-file={precious}"]).stdout
        assert f"left alone: file {precious}" in said
    assert precious.read_text() == "precious\n"
    assert sorted(tmp_path.iterdir()) == [precious]
