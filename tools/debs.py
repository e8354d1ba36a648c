"""Debian packages for any machine, fetched by an apt with lists of its own; nothing is installed.

They come from where this machine's apt gets its own (`tools/debian-mirror.sh`), of its release, and
are checked with its keys. No script of a package is run, so this needs no root, and one machine
serves all architectures.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
FETCH_S: Final = 600.0
_CHOSEN: Final = re.compile(r"^Inst (\S+) \((\S+) .*\[(\w+)\]\)", re.MULTILINE)
"""A line of `apt-get --simulate install`: name, version, architecture."""


class CannotFetch(Exception):
    """What apt said."""


def fetch(packages: Sequence[str], machine: str, place: Path) -> list[Path]:
    """Packages and all that they depend on, by name; recommended ones are left out.

    Args:
        machine: Debian's word for it, `arm64`.
        place: a directory for the lists and the packages. What an earlier call left there is used.

    Raises:
        CannotFetch: apt has no sources here, or does not get or find something.
    """
    environment = _own_apt(machine, place)

    def apt(*words: str) -> str:
        done = subprocess.run(
            ["apt-get", "-q", "--yes", *words],
            env=environment,
            capture_output=True,
            text=True,
            timeout=FETCH_S,
            check=False,
        )
        if done.returncode:
            raise CannotFetch(f"apt-get {words[0]}: {done.stderr.strip()}")
        return done.stdout

    apt("update")
    names = archives(apt("install", "--simulate", *packages))
    apt("install", "--download-only", *packages)
    return [place / "archives" / name for name in names]


def archives(simulated: str) -> list[str]:
    """The files that apt makes of what it says it would install."""
    return sorted(
        f"{name}_{version.replace(':', '%3a')}_{of}.deb"
        for name, version, of in _CHOSEN.findall(simulated)
    )


def _own_apt(machine: str, place: Path) -> dict[str, str]:
    """The environment in which apt knows packages of one machine alone, none of them installed."""
    for name in ("lists/partial", "archives/partial"):
        Path(place, name).mkdir(parents=True, exist_ok=True)
    Path(place, "sources.list").write_text(_sources())
    Path(place, "status").write_text("")
    configuration = Path(place, "apt.conf")
    configuration.write_text(
        # The machine's own hooks and extra indexes have no business here.
        "#clear APT::Update;\n#clear DPkg::Post-Invoke;\n"
        "#clear Acquire::IndexTargets::deb::DEP-11;\n"
        f'APT::Architecture "{machine}"; APT::Architectures {{ "{machine}"; }};\n'
        'APT::Install-Recommends "false"; Acquire::Languages "none";\n'
        # The cache folder belongs to who runs this.
        f'APT::Sandbox::User "{"root" if os.geteuid() == 0 else ""}";\n'
        # A mirror that is a snapshot of an older day is as good.
        'Acquire::Check-Valid-Until "false";\n'
        f'Dir::State "{place}"; Dir::State::status "{place}/status";\n'
        f'Dir::Cache "{place}"; Dir::Cache::archives "{place}/archives";\n'
        f'Dir::Etc::sourcelist "{place}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
    )
    environment = {"APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}
    return {**os.environ, **environment, "LC_ALL": "C.UTF-8"}


def release() -> str:
    """Debian's name for the release of this machine, `bookworm`."""
    lines = Path("/etc/os-release").read_text().splitlines()
    words = dict(line.split("=", 1) for line in lines if "=" in line)
    return words.get("VERSION_CODENAME", "").strip('"')


def _sources() -> str:
    done = subprocess.run(
        [ROOT / "tools/debian-mirror.sh"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CannotFetch(done.stderr.strip())
    known = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
    lines = [f"deb {known['main']} {release()} main"]
    if "security" in known:
        lines.append(f"deb {known['security']} {release()}-security main")
    return "\n".join([*lines, ""])
