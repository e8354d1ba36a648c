"""Children: input, output, deadlines, and that nothing of them is left."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
import uvloop

from pyflannel.core.errors import CommandError
from pyflannel.kernel import process
from pyflannel.kernel.process import Completed
from tests.support.coroutines import on_both_loops


def _children() -> list[str]:
    """Ids of our children, zombies included."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True, scope="module")
def loops_are_warm():
    """uvloop opens two descriptors for signals with its first child, and keeps them."""
    uvloop.run(process.run(["true"], timeout_s=5))


@pytest.fixture(autouse=True)
def nothing_is_left(loops_are_warm: None):
    """Neither a child nor a descriptor. (The loop is gone by now, and what it had open.)"""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert _children() == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@on_both_loops
async def test_output_and_exit_status_are_told() -> None:
    """Both streams by themselves; a status that is not 0 is no error."""
    script = "cat; echo oops >&2; exit 3"
    done = await process.run(["sh", "-c", script], stdin=b"in\n", timeout_s=5)
    assert done == Completed(3, b"in\n", b"oops\n")


@on_both_loops
async def test_big_input_and_output_pass_each_other() -> None:
    """More than any pipe holds, both ways at once."""
    data = b"0123456789abcdef" * 65536

    done = await process.run(["cat"], stdin=data, timeout_s=10)
    assert done.stdout == data


@on_both_loops
async def test_a_child_need_not_read_its_input() -> None:
    """A broken pipe is its own affair."""
    done = await process.run(["true"], stdin=b"x" * 1_000_000, timeout_s=5)
    assert done.returncode == 0


@on_both_loops
async def test_the_environment_is_what_is_given() -> None:
    """All of it, or ours."""
    env = {"SUBNET": "10.5.1.0/24"}
    done = await process.run(["/usr/bin/env"], env=env, timeout_s=5)
    assert done.stdout == b"SUBNET=10.5.1.0/24\n"
    done = await process.run(["env"], timeout_s=5)
    assert b"PATH=" in done.stdout


@on_both_loops
async def test_a_child_that_takes_too_long_is_killed_with_all_it_started() -> None:
    """The error names the command and the deadline."""
    start = time.monotonic()
    script = "sleep 60 & echo $! >&2; wait"
    with pytest.raises(CommandError, match=r"sh -c .* did not end within 0\.2 s"):
        await process.run(["sh", "-c", script], timeout_s=0.2)
    assert time.monotonic() - start < 5


@on_both_loops
async def test_a_grandchild_that_keeps_the_output_open_is_killed_at_the_deadline(
    tmp_path: Path,
) -> None:
    """The child itself ended long ago."""
    note = tmp_path / "pid"

    script = f"sleep 60 & echo $! > {note}"
    with pytest.raises(CommandError):
        await process.run(["sh", "-c", script], timeout_s=0.2)
    pid = int(note.read_text())
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def _alive(pid: int) -> bool:
    """Whether a process runs. A zombie that init has not reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@on_both_loops
async def test_a_child_in_a_session_of_its_own_cannot_hold_us_up() -> None:
    """It escapes the kill and keeps the pipe; the call ends all the same."""
    start = time.monotonic()
    with pytest.raises(CommandError):
        await process.run(["sh", "-c", "setsid sleep 2 & exit 0"], timeout_s=0.2)
    assert time.monotonic() - start < 1.5


@on_both_loops
async def test_a_cancelled_call_kills_its_child() -> None:
    """And reaps it."""
    call = asyncio.create_task(process.run(["sleep", "60"], timeout_s=60))
    deadline = time.monotonic() + 5
    while not _children():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


@on_both_loops
@pytest.mark.parametrize("program", ["/nonexistent/program", "/etc/passwd", "nul\0byte"])
async def test_a_program_that_cannot_be_started_is_named(program: str) -> None:
    """Missing, not executable, or no name at all."""
    with pytest.raises(CommandError, match="cannot be started"):
        await process.run([program], timeout_s=5)


async def test_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much is read and forgotten, so that the child can end."""
    monkeypatch.setattr(process, "OUTPUT_LIMIT", 1000)

    script = "import sys; sys.stdout.write('x' * 1_000_000)"
    done = await process.run([sys.executable, "-c", script], timeout_s=10)
    assert done.returncode == 0
    assert done.stdout == b"x" * 1000


async def test_many_children_at_once() -> None:
    """Each gets its own answer."""
    calls = [process.run(["echo", str(i)], timeout_s=10) for i in range(20)]
    answers = await asyncio.gather(*calls)
    assert [int(done.stdout) for done in answers] == list(range(20))
