"""Runs other programs: arguments in, output out, and never longer than agreed.

A child gets a session of its own, so that at its deadline, or when the caller is cancelled, it and
whatever it started are killed together. It is always reaped. What it writes beyond `OUTPUT_LIMIT`
is read (a full pipe would stop it) and thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pyflannel.core.errors import CommandError

OUTPUT_LIMIT: Final = 16 << 20
"""Bytes kept of each stream. The rules of a node with 10,000 services are some 5 MB."""
REAP_S: Final = 1.0
"""For a killed child to be gone; the kernel needs milliseconds."""
_CHUNK: Final = 1 << 16


class Completed(NamedTuple):
    """How a child ended."""

    returncode: int
    """Exit status, or the negative number of the signal that killed it."""
    stdout: bytes
    stderr: bytes


async def run(
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    timeout_s: float,
    env: Mapping[str, str] | None = None,
) -> Completed:
    """Runs a program to its end. A non-zero exit status is an answer, not an error.

    The end is when it has exited *and* closed its output: a child that leaves something running in
    the background which holds its output open is waited for until the deadline.

    Args:
        argv: program, found through PATH, and arguments; no shell.
        stdin: what it can read; a child that does not want it all is fine.
        timeout_s: deadline for all of it, in seconds.
        env: its whole environment; `None` = ours.

    Raises:
        CommandError: it could not be started, or did not end in time and was killed.
    """
    command = " ".join(argv)
    pipe = asyncio.subprocess.PIPE
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, start_new_session=True
        )
    )
    try:
        child = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Half started it would be orphaned: neither killed nor reaped.
        with contextlib.suppress(OSError, ValueError):
            await _reap(await starting, kill=True)
        raise
    except OSError as error:
        raise CommandError(f"{command}: cannot be started: {error.strerror}") from error
    except ValueError as error:  # a zero byte in an argument
        raise CommandError(f"{command!r}: cannot be started: {error}") from error
    assert child.stdin and child.stdout and child.stderr  # noqa: S101, PT018  they are pipes
    ended = False
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            name = f"child {argv[0]}"
            group.create_task(_feed(child.stdin, stdin), name=f"{name} stdin")
            out = group.create_task(_read(child.stdout), name=f"{name} stdout")
            err = group.create_task(_read(child.stderr), name=f"{name} stderr")
            returncode = await child.wait()
        ended = True
    except TimeoutError:
        raise CommandError(f"{command}: did not end within {timeout_s:g} s, killed") from None
    finally:
        await _reap(child, kill=not ended)
    return Completed(returncode, out.result(), err.result())


async def _feed(pipe: asyncio.StreamWriter, data: bytes) -> None:
    # A child may exit, or close its input, before it has read all of it. uvloop then says
    # RuntimeError where asyncio says ConnectionError (uvloop 0.23, `UVHandle._ensure_alive`).
    with contextlib.suppress(ConnectionError, RuntimeError):
        if data:
            pipe.write(data)
            await pipe.drain()
    with contextlib.suppress(ConnectionError, RuntimeError):
        pipe.close()
        await pipe.wait_closed()


async def _read(pipe: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await pipe.read(_CHUNK):
        kept += chunk[: OUTPUT_LIMIT - len(kept)]
    return bytes(kept)


async def _reap(child: asyncio.subprocess.Process, *, kill: bool) -> None:
    """Leaves neither a process nor an open pipe behind."""
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    try:
        # First of all the child itself: a loop that is closed before uvloop has heard of its end
        # complains.
        async with asyncio.timeout(REAP_S):
            await asyncio.shield(child.wait())
    except TimeoutError:
        pass
    finally:
        # There is no public way to close the pipes, and a grandchild that went into a session of
        # its own keeps them open: newer Pythons would wait for that in wait().
        child._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001
    await asyncio.shield(child.wait())
