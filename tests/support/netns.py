"""Runs a function in a network namespace of its own, in a child process, and brings back what
became of it: the result, or the exception with the child's traceback as a note.

A new namespace is not always empty but for `lo`: a tunnel module, once loaded, puts a device of its
own into each (`FALLBACK_DEVICES`), and devices that are made there later have higher indexes.
"""

import contextlib
import gc
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar, cast

from pyflannel.kernel import netns
from pyflannel.kernel.base import Link

T = TypeVar("T")

DEADLINE_S = 60
"""Long after any test should have ended; then the child is killed by SIGALRM."""

FALLBACK_DEVICES: Final = frozenset(
    ("tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip_vti0", "ip6tnl0", "ip6gre0", "ip6_vti0")
)
"""For packets that fit none of the tunnels (`fb_tunnels_only_for_init_net` in the kernel's
Documentation/admin-guide/sysctl/net.rst)."""


def without_fallback(links: Iterable[Link]) -> list[Link]:
    """The links that were made here, and `lo`."""
    return [link for link in links if link.name not in FALLBACK_DEVICES]


def in_new_netns(function: Callable[..., T], *arguments: Any) -> T:
    """Calls the function in a new, empty network namespace that is gone afterwards.

    Warnings that would be lost in the child (an unclosed socket) are failures as well.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.alarm(DEADLINE_S)
        try:
            answer = _outcome(function, arguments)
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not answer:
        raise RuntimeError(f"the child in the namespace died: wait status {status}")
    error, value = pickle.loads(answer)
    if error is not None:
        raise error
    return cast("T", value)


def _outcome(function: Callable[..., object], arguments: tuple[object, ...]) -> bytes:
    unraisable: list[str] = []
    sys.unraisablehook = lambda what: unraisable.append(f"{what.exc_value!r} in {what.object!r}")
    try:
        netns.enter_new()
        value = function(*arguments)
        gc.collect()
        assert not unraisable, unraisable
        return pickle.dumps((None, value))
    except BaseException as error:  # noqa: BLE001  the parent raises it
        text = traceback.format_exc()
        # Exceptions with arguments of their own do not always survive; their text does.
        with contextlib.suppress(Exception):
            error.add_note(f"in the namespace:\n{text}")
            answer = pickle.dumps((error, None))
            pickle.loads(answer)
            return answer
        return pickle.dumps((AssertionError(text), None))
