"""Programs for arm64, run by this machine: Debian's interpreter under QEMU's user-mode emulation.

Nothing is installed in the system for it: the interpreter's packages are fetched by an apt with
lists of its own, and unpacked into a tree below the cache folder; no script of theirs is run. QEMU
translates each system call, and this kernel answers it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.kernels.cache import cache_folder, mirrors

EMULATOR: Final = "qemu-aarch64"
PACKAGES: Final = ("python3-minimal", "libpython3-stdlib")
FETCH_S: Final = 300.0


def _release() -> str:
    """Debian's name for the release of this machine."""
    words = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )
    return words["VERSION_CODENAME"].strip('"')


@contextmanager
def _own_apt(place: Path) -> Iterator[dict[str, str]]:
    """The environment in which apt knows nothing but packages for arm64, none of them installed."""
    for name in ("lists/partial", "archives/partial"):
        Path(place, name).mkdir(parents=True)
    known, release = mirrors(), _release()
    sources = [f"deb {known.main} {release} main"]
    if known.security:
        sources.append(f"deb {known.security} {release}-security main")
    Path(place, "sources.list").write_text("\n".join([*sources, ""]))
    Path(place, "status").touch()
    configuration = Path(place, "apt.conf")
    configuration.write_text(
        # The machine's own hooks and its own extra indexes are none of our business.
        "#clear APT::Update;\n#clear DPkg::Post-Invoke;\n"
        "#clear Acquire::IndexTargets::deb::DEP-11;\n"
        'APT::Architecture "arm64"; APT::Architectures { "arm64"; };\n'
        'APT::Install-Recommends "false"; APT::Sandbox::User "root"; Acquire::Languages "none";\n'
        f'Dir::State "{place}"; Dir::State::status "{place}/status";\n'
        f'Dir::Cache "{place}"; Dir::Cache::archives "{place}/archives";\n'
        f'Dir::Etc::sourcelist "{place}/sources.list"; Dir::Etc::sourceparts "/dev/null";\n'
    )
    yield {**os.environ, "APT_CONFIG": str(configuration), "DEBIAN_FRONTEND": "noninteractive"}


def tree() -> Path:
    """A tree with an interpreter for arm64; made when it is first asked for."""
    target = cache_folder() / f"arm64-{_release()}"
    if target.is_dir():
        return target
    half = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with _own_apt(half / "apt") as environment:
            for words in (("update",), ("install", "--yes", "--download-only", *PACKAGES)):
                subprocess.run(
                    ["apt-get", "-qq", *words],
                    env=environment,
                    check=True,
                    timeout=FETCH_S,
                    stdout=subprocess.DEVNULL,
                )
        for package in (half / "apt/archives").glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, half / "tree"], check=True)
        (half / "tree").rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return target


def run_python(
    arguments: Sequence[str | Path],
    *,
    search: Sequence[Path],
    cwd: Path,
    timeout: float = 120.0,
) -> subprocess.CompletedProcess[str]:
    """Runs the emulated interpreter.

    Args:
        search: directories in which it looks for modules, first ones first.
        cwd: where it runs; with `-c` or `-m` it looks for modules there before all others.
    """
    there = tree()
    path = os.pathsep.join(map(str, search))
    return subprocess.run(
        [
            *(EMULATOR, "-L", there, "-E", f"PYTHONPATH={path}"),
            *(there / "usr/bin/python3", "-B", *arguments),
        ],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
