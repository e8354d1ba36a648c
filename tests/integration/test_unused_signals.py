"""Signals that flanneld ignores do not end us either, from the first moment on."""

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
