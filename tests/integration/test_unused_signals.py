"""Signals, from the first moment on: what flanneld ignores we do, and a stop is granted at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyflannel.cli.pyflanneld import UNUSED_SIGNALS

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
import time
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
sys.argv[:] = ["/usr/bin/{program}"] + {arguments!r}

class Interrupts:
    left = {after}
    def find_spec(self, name, path=None, target=None):
        if name not in {first!r}:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), {signum})

sys.meta_path.insert(0, Interrupts())
from pyflannel.cli.{module} import main
main()
"""
FIRST = {
    "__future__",
    "pyflannel",
    "pyflannel.cli",
    "pyflannel.cli.pyflanneld",
    "pyflannel.cli.start",
}
"""What is imported before the handlers are there: next to nothing."""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("after", [1, 2, 20, 80, 160])
@pytest.mark.parametrize("program", ["pyflanneld", "pyflanneld-start"])
def test_a_stop_that_comes_while_modules_are_imported_ends_with_0_and_no_word(
    signum: int, after: int, program: str, tmp_path
) -> None:
    """Imports are most of a start; the handlers of the event loop come only after them."""
    arguments = ["--etcd-endpoints=http://127.0.0.1:1", f"--subnet-file={tmp_path}/subnet.env"]
    module = "start" if program == "pyflanneld-start" else "pyflanneld"
    text = IMPORTING.format(
        arguments=arguments,
        after=after,
        signum=int(signum),
        program=program,
        module=module,
        first=FIRST,
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "pyflanneld:" not in done.stderr
    assert "event" not in done.stderr


@pytest.mark.parametrize("program", ["pyflanneld", "pyflanneld-start"])
def test_a_stop_at_any_moment_of_a_start_ends_with_0_where_the_starter_blocks_it(
    program: str, tmp_path
) -> None:
    """From exec on: Python itself takes a while until a line of ours runs."""
    name = Path(sys.executable).with_name(program)
    flags = ["--etcd-endpoints=http://127.0.0.1:1", f"--subnet-file={tmp_path}/subnet.env"]
    flags += [f"--state-dir={tmp_path}", f"--status-socket={tmp_path}/s", "--docker-opts-file="]
    for number in (signal.SIGTERM, signal.SIGINT):
        for moment in range(0, 100, 10):
            # As `env --block-signal=TERM,INT` does: what is blocked here stays so over exec.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
            try:
                daemon = subprocess.Popen([name, *flags], stderr=subprocess.PIPE)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            with daemon:
                try:
                    time.sleep(moment / 1000)
                    daemon.send_signal(number)
                    _, said = daemon.communicate(timeout=30)
                finally:
                    daemon.kill()
            assert (daemon.returncode, b"Traceback" in said) == (0, False), (number, moment, said)
