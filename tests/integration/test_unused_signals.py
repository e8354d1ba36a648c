"""Signals, from the first moment on: what flanneld ignores we do, and a stop is granted at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pyflannel.cli.pyflanneld import UNUSED_SIGNALS

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
sys.argv[0] = "/usr/bin/pyflanneld"
import pyflannel.cli.pyflanneld
from pyflannel.node import process
import asyncio, subprocess

async def work():
    child = await asyncio.create_subprocess_exec("sh", "-c", "kill -USR1 $$; echo survived")
    print("child", await child.wait(), flush=True)
    print("ready", flush=True)
    await asyncio.sleep(60)

sys.exit(process.run(work))
"""


def test_a_running_daemon_outlives_all_of_them_and_its_children_do_not_inherit_that() -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout is not None
            assert daemon.stdout.readline() == f"child {-signal.SIGUSR1}\n".encode()
            assert daemon.stdout.readline() == b"ready\n"
            for number in UNUSED_SIGNALS:
                os.kill(daemon.pid, number)
            with pytest.raises(subprocess.TimeoutExpired):
                daemon.wait(0.5)
            daemon.terminate()
            assert daemon.wait(10) == 0
        finally:
            daemon.kill()


IMPORTING = """
import os, runpy, sys
sys.argv[:] = ["/usr/bin/pyflanneld"] + {arguments!r}

class Interrupts:
    left = {after}
    def find_spec(self, name, path=None, target=None):
        if "pyflannel.cli.pyflanneld" in sys.modules and name != "signal":
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), {signum})

sys.meta_path.insert(0, Interrupts())
from pyflannel.cli.pyflanneld import main
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("after", [2, 20, 80, 160])
def test_a_stop_that_comes_while_modules_are_imported_ends_with_0_and_no_word(
    signum: int, after: int, tmp_path
) -> None:
    """Imports are most of a start; the handlers of the event loop come only after them."""
    arguments = ["--etcd-endpoints=http://127.0.0.1:1", f"--subnet-file={tmp_path}/subnet.env"]
    program = IMPORTING.format(arguments=arguments, after=after, signum=int(signum))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "pyflanneld:" not in done.stderr
    assert "event" not in done.stderr
