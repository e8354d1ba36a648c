"""Under limits that are too low a start ends with 69 and a sentence, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.core.errors import EXIT_UNAVAILABLE
from pyflannel.core.limits import MIN_ADDRESS_SPACE, MIN_FILES, MIN_TASKS
from pyflannel.lab import Lab, LabSpec

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("limit", "words"),
    [(f"-n {n}", "open files") for n in (10, 16, 20, 24, 28, 32, 48)]
    + [(f"-v {n * 1024}", "address space") for n in (200, 400, 700)],
)
def test_the_limit_is_named(tmp_path, limit, words):
    """Before there was a traceback (70), an exit of a library (3), or a signal."""
    command = [
        sys.executable, "-m", "pyflannel.cli.pyflanneld",
        "--etcd-endpoints=http://127.0.0.1:1", f"--subnet-file={tmp_path}/subnet.env",
        f"--status-socket={tmp_path}/s.sock", f"--state-dir={tmp_path}/state",
        "--docker-opts-file=",
    ]  # fmt: skip
    done = subprocess.run(
        ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_UNAVAILABLE, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert words in last
    assert "ulimit" in last
    assert "Traceback" not in done.stderr


@pytest.mark.root
@pytest.mark.parametrize("backend", ["udp", "vxlan"])
def test_at_the_floors_a_node_works_and_stops_when_asked_to(backend):
    """Descriptors and address space are bounded; how many threads there are is looked at."""
    command = (
        f"prlimit --nofile={MIN_FILES}:{MIN_FILES} --as={MIN_ADDRESS_SPACE}:{MIN_ADDRESS_SPACE} "
        "pyflanneld --healthz-port=10254"
    )
    spec = LabSpec(nodes=2, backend=backend, name=f"floors-{backend}", node_commands={1: command})
    with Lab(spec) as lab:
        lab.wait(lambda: lab.ping_all().ok, 10, what="all pairs")
        node = lab.node(1)
        status = json.loads(node.exec(["pyflannel", "status", "--json"]).stdout)
        assert status["ready"] is True
        threads = len(list(Path(f"/proc/{node.daemon.pid}/task").iterdir()))
        assert threads <= MIN_TASKS * 2 // 3
        lab.etcd.kill()
        lab.etcd.start()
        lab.wait(lambda: "etcd answers again" in node.log(), 20, what="the watch")
        assert "Traceback" not in node.log()
        assert node.stop_daemon() == 0
