"""`pyflanneld`: the daemon's command line.

Parses first, before anything is imported that costs time, so that `--version` and a mistyped flag
answer at once. Whatever ends the daemon is said in one last line on stderr, with the exit code that
belongs to it; a traceback is a defect of ours.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal  # the interpreter's own part of it, which is there already


def _stop_at_once(_number: int, _frame: object) -> None:
    """Before there is anything to take down, a request to stop is granted on the spot."""
    os._exit(0)


def _do_nothing(_number: int, _frame: object) -> None:
    """A handler, because what is ignored stays so in children, and handlers do not."""


STOP_SIGNALS = (_signal.SIGTERM, _signal.SIGINT)
UNUSED_SIGNALS = (
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGALRM,
    _signal.SIGVTALRM,
    _signal.SIGPROF,
    _signal.SIGIO,
    _signal.SIGPWR,
    _signal.SIGXCPU,
    *range(_signal.SIGRTMIN, _signal.SIGRTMAX + 1),
)
"""Signals whose default is to end the process. A Go program ignores them (os/signal), and flanneld
with it; so scripts, `logrotate` and supervisors may send them."""

if __name__ == "__main__" or "pyflanneld" in sys.argv[0]:
    # Before the imports, which are most of the start: a daemon that is stopped ends with 0 at any
    # time. The event loop's own handlers take over later.
    for _each in STOP_SIGNALS:
        _signal.signal(_each, _stop_at_once)
    for _each in UNUSED_SIGNALS:
        _signal.signal(_each, _do_nothing)
    # Until here the interpreter starts, for some 15 ms. Who wants a stop of that time to end with 0
    # as well has us started with these signals blocked (`env --block-signal=TERM,INT pyflanneld`).
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, STOP_SIGNALS)

import contextlib
import gc
from collections.abc import Sequence
from typing import NoReturn

import pyflannel
from pyflannel.cli import streams
from pyflannel.core.errors import EXIT_DEFECT, EXIT_OK, FlannelError
from pyflannel.foreign import MOST_IN_LOG, shown, shown_lines

SECRET_VARIABLES = ("FLANNELD_ETCD_PASSWORD", "FLANNEL_OPTIONS")
"""Variables with the password of the etcd user in them; no command that we run needs it."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    streams.make_whole()
    streams.watch_output()
    words = sys.argv if argv is None else ["pyflanneld", *argv]
    code = streams.finish("pyflanneld", lambda: run(words))
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # Threads of blocking libraries may still wait for an answer of etcd. Nothing is left that
    # needs them, and the two seconds that SIGTERM may take are not theirs to spend.
    os._exit(code)


def run(argv: Sequence[str]) -> int:
    """Parses, runs, and returns the exit code."""
    from pyflannel.core.commandline import ShowHelp, ShowVersion, parse_daemon

    try:
        parsed = parse_daemon(argv, os.environ)
        if isinstance(parsed, ShowVersion):
            print(f"pyflanneld {pyflannel.__version__}", file=sys.stderr)
            return EXIT_OK
        if isinstance(parsed, ShowHelp):
            print(parsed.text, file=sys.stderr, end="")
            return EXIT_OK
        for name in SECRET_VARIABLES:
            os.environ.pop(name, None)  # children inherit the rest
        check_limits()
        if parsed.options.etcd.has_secrets:
            from pyflannel.kernel.limits import forbid_core_dumps

            forbid_core_dumps()

        # Modules make objects that stay. To look through them again and again while more come in
        # takes the collector a tenth of the imports' time.
        gc.disable()
        from pyflannel.daemon import run_daemon

        gc.freeze()
        gc.enable()
        return run_daemon(parsed.options, parsed.warnings)
    except FlannelError as error:
        return last_words(error)
    except KeyboardInterrupt:
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the border of the process
        import logging
        import traceback

        from pyflannel import logs

        said = f"pyflanneld: defect: {shown(repr(error), MOST_IN_LOG)}"
        logs.say(logging.ERROR, shown_lines(traceback.format_exc()) + said)
        return EXIT_DEFECT


def check_limits() -> None:
    """Before anything is imported that ends in another way when it runs into one.

    Raises:
        DeviceUnavailable: a limit of this process is lower than a node can live with.
    """
    from pyflannel.core.errors import DeviceUnavailable
    from pyflannel.core.limits import too_low
    from pyflannel.kernel.limits import raise_files, read_limits, share_one_heap

    raise_files()
    share_one_heap()
    if reason := too_low(read_limits()):
        raise DeviceUnavailable("start", "", 0, reason)


def last_words(error: FlannelError) -> int:
    """Says why we end, as the last line on stderr, and returns the exit code."""
    import logging

    from pyflannel import logs

    logs.say(logging.ERROR, f"pyflanneld: {shown(error, MOST_IN_LOG)}")
    return error.exit_code


if __name__ == "__main__":
    main()
