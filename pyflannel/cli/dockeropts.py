"""`pyflannel-mk-docker-opts`: docker's options for the leased subnet, as an environment file.

Replaces `mk-docker-opts.sh`: same options, same bytes, same exit codes. What it computes is in
`docker.options`; here it is read, written and checked against the routes. Units run it between
flannel and docker, so start-up time counts: no asyncio, no netlink library, and `ip` for the one
question about routes, as the script does.

The output is whole or not at all: everything is read and computed before anything is written, so
the input may be the output file, too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyflannel.core.errors import ConfigError, KernelError, UsageError
from pyflannel.docker import options as docker_options
from pyflannel.kernel.files import write_atomically

OK: Final = 0
FAILED: Final = 1
UNREADABLE: Final = 2
"""What a shell ends with when it cannot read the file it was told to source."""

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        argv: arguments without the program's name; those of the process if `None`.

    Returns:
        The exit code.
    """
    program = Path(sys.argv[0]).name or "pyflannel-mk-docker-opts"
    words = sys.argv[1:] if argv is None else argv
    if argv is not None:
        program = "pyflannel mk-docker-opts"
    if words[:1] == ["--help"]:
        print(docker_options.usage(program), end="")
        return OK
    try:
        options = docker_options.parse_options(words)
    except UsageError as error:
        _complain(f"{error}\n{docker_options.usage(program)}".strip("\n"))
        return FAILED
    variables = {name: value for name, value in os.environ.items() if _VARIABLE.fullmatch(name)}
    try:
        if Path(options.flannel_env).is_file():
            from_file = docker_options.parse_shell(_read(options.flannel_env))
            docker_options.refuse_active(from_file, options.request)
            variables |= from_file
        content = docker_options.compose(variables, options.request)
    except OSError as error:
        _complain(f"{program}: {options.flannel_env}: {error.strerror or error}")
        return UNREADABLE
    except docker_options.UnfinishedQuote as error:
        _complain(f"{program}: {options.flannel_env}: {error}")
        return UNREADABLE
    except docker_options.RefusedLine as error:
        _complain(f"{program}: {options.flannel_env}: {error}; nothing was written")
        return FAILED
    except ConfigError as error:
        _complain(str(error))
        return FAILED
    _write(program, options.docker_env, content.encode("utf-8", "surrogateescape"))
    if not variables.get("FLANNEL_SUBNET"):
        return OK
    routed = docker_options.routed_already(variables, _routes(program))
    if routed:
        _complain(f"Your routing table already contains the subnet: {routed}")
        return FAILED
    return OK


def _complain(text: str) -> None:
    print(text, file=sys.stderr)


def _read(path: str) -> str:
    """The env file. A name without a slash is not looked for here: a shell searches PATH for it."""
    if "/" not in path:
        raise FileNotFoundError(0, "not found (a name without a slash; write ./ in front)")
    return Path(path).read_bytes().decode("utf-8", "surrogateescape")


def _write(program: str, name: str, content: bytes) -> None:
    """Writes the output; a failure is told and is not the end, as in the script.

    Like the script's redirection it follows symbolic links, makes no directory, and serves targets
    that cannot be replaced by a rename: those are written in place.
    """
    path = Path(name)
    try:
        if not _is_replaceable(path):
            path.write_bytes(content)
            return
        try:
            write_atomically(path.resolve(), content, make_parents=False)
        except KernelError as error:
            if error.errno != errno.EBUSY:  # a mount point: a file bind-mounted into a container
                raise
            path.write_bytes(content)
    except KernelError as error:
        _complain(f"{program}: {error}")
    except OSError as error:
        _complain(f"{program}: write {path}: {error.strerror or error}")


def _is_replaceable(path: Path) -> bool:
    """Whether a rename may take the target's place.

    Not that of `/dev/stdout`, of a pipe, or of a file in a directory that we may not write to.
    """
    if path.parts[:2] in {("/", "dev"), ("/", "proc")}:
        return False
    try:
        mode = path.stat().st_mode
    except OSError:
        return True  # a new file, or the reason why there cannot be one comes from the attempt
    return stat.S_ISREG(mode) and os.access(path.resolve().parent, os.W_OK | os.X_OK)


def _routes(program: str) -> str:
    """What `ip route show` prints; nothing if it cannot be run."""
    import subprocess

    try:
        listed = subprocess.run(
            ["ip", "route", "show"], stdout=subprocess.PIPE, check=False, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        _complain(f"{program}: ip route show: {error.strerror}; routes were not checked")
        return ""
    return listed.stdout.decode("utf-8", "replace")


if __name__ == "__main__":
    sys.exit(main())
