"""`pyflannel docker-setup`: the drop-in that starts docker in the leased subnet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pyflannel.cli.common import Parser
from pyflannel.core.errors import EXIT_OK, ConfigError, DeviceUnavailable, UsageError
from pyflannel.docker import dropin
from pyflannel.docker import options as docker_options
from pyflannel.docker.checks import DROP_IN
from pyflannel.docker.facts import UNIT, is_enabled, read_unit
from pyflannel.kernel.files import (
    FileMissing,
    FileText,
    inside,
    read_text_if_exists,
    write_atomically,
)


def main(argv: Sequence[str]) -> int:
    """Runs the command."""
    parser = Parser(
        "pyflannel docker-setup",
        "Writes the drop-in that starts docker in the leased subnet, fitting the unit that is\n"
        "installed (Debian's, docker's own, CentOS's).",
    )
    parser.add_argument("--print", action="store_true", dest="show", help="print it, write nothing")
    parser.add_argument("--unit", metavar="NAME", default=UNIT, help=f"docker's unit ({UNIT})")
    parser.add_argument("--root", metavar="DIR", default="/", help="of another machine's tree (/)")
    parser.add_argument(
        "--docker-opts-file",
        metavar="PATH",
        default=docker_options.DOCKER_ENV,
        help=f"as pyflanneld's ({docker_options.DOCKER_ENV})",
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite a drop-in that is not from here"
    )
    given = parser.parse_args(argv)
    if "/" in given.unit:
        raise UsageError(f"--unit {given.unit}: expected a name like {UNIT}")
    root = Path(given.root)
    unit = read_unit(root, given.unit, without_ours=True)
    if unit is None and not given.show:
        raise DeviceUnavailable(
            "set up", given.unit, 0, "no such unit; install docker first, or name it with --unit"
        )
    text = dropin.drop_in(unit, given.docker_opts_file)
    if given.show:
        print(text, end="")
        return EXIT_OK
    directory = f"etc/systemd/system/{given.unit}.d"
    target = root / directory / DROP_IN
    # Links are followed inside the tree. At the drop-in itself stands a file of ours or nothing.
    place = inside(root, directory) / DROP_IN
    found = _content(place)
    if found == text:
        _check(root, given.unit, target, given.docker_opts_file)
        print(f"{target} is as it should be")
        return EXIT_OK
    if found is not None and not found.startswith(dropin.MARK) and not given.force:
        raise ConfigError(f"{target} is not from pyflannel; look at it, then --force overwrites it")
    if place.is_symlink():
        place.unlink()  # --force; one to /dev/null would not be replaced
    write_atomically(place, text.encode(), make_parents=True)
    print(f"wrote {target}")
    _check(root, given.unit, target, given.docker_opts_file)
    print(
        "now: systemctl daemon-reload && systemctl restart docker; pyflannel doctor docker",
        file=sys.stderr,
    )
    if is_enabled(root) is False:
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
