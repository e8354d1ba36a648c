"""`pyflannel docker-setup`: what lets docker's containers into the overlay, on one command.

The drop-in that starts docker in the leased subnet; for docker 28 and later, which drops what other
nodes send to a container, the option against that in the same drop-in, and an accept in DOCKER-USER
that the daemon keeps from then on (`docker.userchain`). `pyflannel cleanup` takes all of it away.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pyflannel.cli.parsers import Branch, Parser
from pyflannel.core import subnetenv
from pyflannel.core.errors import EXIT_OK, CommandError, ConfigError, DeviceUnavailable, UsageError
from pyflannel.core.options import DaemonOptions
from pyflannel.docker import dropin, unitchecks, userchain
from pyflannel.docker import options as docker_options
from pyflannel.docker.dockerd import FLAG, Direct, direct_routing
from pyflannel.docker.facts import UNIT, is_enabled, read_text, read_unit
from pyflannel.docker.model import DROP_IN
from pyflannel.kernel.files import (
    FileMissing,
    FileText,
    inside,
    read_text_if_exists,
    write_atomically,
)

SYSTEMCTL_S: Final = 120.0
"""For docker to stop its containers and start, with an agent that is ready or nearly so."""


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    parser = branch().parser
    given = parser.parse_args(argv)
    if "/" in given.unit:
        raise UsageError(f"--unit {given.unit}: expected a name like {UNIT}")
    root = Path(given.root)
    if given.networks:
        if given.show or given.now:
            parser.error("--networks writes no drop-in: nothing to print, nothing to restart")
        _accept(root, given.state_dir, given.subnet_file, drop_in=None)
        return EXIT_OK
    unit = read_unit(root, given.unit, without_ours=True)
    if unit is None and (not given.show or given.unit != UNIT):
        raise DeviceUnavailable(
            "set up", given.unit, 0, "no such unit; install docker first, or name it with --unit"
        )
    direct = Direct.NOTHING if unit is None else _direct(root, unit.command_line)
    text = dropin.drop_in(unit, given.docker_opts_file, direct)
    if given.show:
        print(text, end="")
        return EXIT_OK
    directory = f"etc/systemd/system/{given.unit}.d"
    target = root / directory / DROP_IN
    # Links are followed inside the tree. At the drop-in itself stands a file of ours or nothing.
    place = inside(root, directory) / DROP_IN
    found = _content(place)
    if found not in (None, text) and not str(found).startswith(dropin.MARK) and not given.force:
        raise ConfigError(f"{target} is not from pyflannel; look at it, then --force overwrites it")
    if found != text:
        if place.is_symlink():
            place.unlink()  # --force; one to /dev/null would not be replaced
        write_atomically(place, text.encode(), make_parents=True)
    print(f"{target} is as it should be" if found == text else f"wrote {target}")
    _accept(root, given.state_dir, given.subnet_file, drop_in=target)
    _check(root, given.unit, target, given.docker_opts_file)
    if given.now:
        _systemctl("daemon-reload")
        # A restart that is refused for having come too often (docker's unit allows three starts a
        # minute) leaves docker stopped.
        with contextlib.suppress(CommandError):
            _systemctl("reset-failed", given.unit)
        _systemctl("restart", given.unit)
    elif found != text:
        print(
            "now: systemctl daemon-reload && systemctl restart docker (or --now); "
            "pyflannel doctor docker",
            file=sys.stderr,
        )
    if found != text and is_enabled(root) is False:
        print("pyflannel is not enabled: systemctl enable pyflannel", file=sys.stderr)
    return EXIT_OK


def _content(path: Path) -> str | None:
    """What stands there, `None` for nothing; what cannot be a drop-in of ours is empty."""
    match read_text_if_exists(path):
        case FileText(text=text) if not path.is_symlink():
            return text
        case FileMissing() if not path.is_symlink():
            return None
    return ""


def branch() -> Branch:
    """The command line."""
    parser = Parser(
        "pyflannel docker-setup",
        "start docker in the leased subnet",
        "Writes the drop-in for that, fitting the unit that is\n"
        "installed (Debian's, docker's own, CentOS's). For docker 28 and later also what lets\n"
        "other nodes' containers in: dockerd's option, and an accept in DOCKER-USER that the\n"
        "daemon keeps. `pyflannel cleanup` takes it all away.",
        examples=(
            "pyflannel docker-setup --print",
            "pyflannel docker-setup --now",
            "pyflannel docker-setup --networks",
        ),
    )
    defaults = DaemonOptions()
    parser.add_argument("--print", action="store_true", dest="show", help="print it, write nothing")
    parser.add_argument(
        "--now", action="store_true", help="restart docker afterwards (its containers, too)"
    )
    parser.add_argument(
        "--networks",
        action="store_true",
        help="only the accept, for docker networks in the leased subnet; no drop-in",
    )
    parser.add_argument("--unit", metavar="NAME", default=UNIT, help="docker's unit")
    parser.add_argument("--root", metavar="DIR", default="/", help="of another machine's tree")
    for name, default in (
        ("docker-opts-file", docker_options.DOCKER_ENV),
        ("subnet-file", defaults.subnet_file),
        ("state-dir", defaults.state_dir),
    ):
        parser.add_argument(f"--{name}", metavar="PATH", default=default, help="as pyflanneld's")
    parser.add_argument(
        "--force", action="store_true", help="overwrite a drop-in that is not from here"
    )
    return Branch(parser)


def _direct(root: Path, command_line: str) -> Direct:
    """How this docker is told; not at all where daemon.json does so already."""
    configured = unitchecks.configured(read_text(inside(root, "etc/docker/daemon.json")))
    if configured is not None and FLAG in configured:
        return Direct.NOTHING
    return direct_routing(root, command_line)


def _accept(root: Path, state_dir: str, subnet_file: str, *, drop_in: Path | None) -> None:
    """Leaves word for the daemon, and does it at once on this machine."""
    directory = inside(root, state_dir)
    known = userchain.load(directory)
    former = known.drop_in if known is not None else ""
    userchain.save(directory, userchain.SetUp(drop_in=str(drop_in or former)))
    if root != Path("/"):
        return
    env = subnetenv.parse(read_text(Path(subnet_file)) or "")
    written = asyncio.run(userchain.UserChain(state_dir).ensure(userchain.overlays_of_file(env)))
    for overlay in written:
        print(f"accepted from {overlay.network} to {overlay.subnet} in {userchain.CHAIN}")
    if not written:
        print(f"pyflanneld keeps an accept for the overlay in docker's chain {userchain.CHAIN}")


def _systemctl(*words: str) -> None:
    command = ["systemctl", *words]
    try:
        done = subprocess.run(command, timeout=SYSTEMCTL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CommandError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise CommandError(f"{' '.join(command)}: exit code {done.returncode}")


def _check(root: Path, name: str, target: Path, options_file: str) -> None:
    """Whether the drop-in does anything, or another one behind it takes that back."""
    unit = read_unit(root, name)
    if unit is None or (dropin.referenced(unit) and options_file in unit.environment_files):
        return
    later = unit.sources[unit.sources.index(str(target)) + 1 :]
    raise ConfigError(
        f"{target} has no effect: what it sets is set again by {', '.join(later)};"
        f" give that file a name before {DROP_IN}, and run this again"
    )
