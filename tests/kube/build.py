"""Builds a Kubernetes API server and controller manager, one program, from their Go module.

The module proxy has the sources; no binary is fetched. What is built lies in the cache folder
(`PYFLANNEL_CACHE` or the XDG cache folder) and is built once: ten minutes of CPU, 2.2 GB of memory.

    python -m tests.kube.build      prints where it is
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from pyflannel.testing.etcdbuild import cache
from pyflannel.testing.gobuild import built

VERSION: Final = "1.36.3"
MODULE: Final = "k8s.io/kubernetes"
GO: Final = "1.26.0"
"""What the module itself asks for."""
BUILD_S: Final = 3600.0
SOURCE: Final = Path(__file__).with_name("main.go")
_STAGED: Final = re.compile(r"^\s*(k8s\.io/[a-z.-]+) => \./staging", re.MULTILINE)


class CannotBuild(Exception):
    """Why there is no API server here."""


def api_server() -> Path:
    """The program; as `kube-controller-manager` it is that one.

    Raises:
        CannotBuild: with the reason.
    """
    program = cache() / "kube" / f"kube-apiserver-{VERSION}"
    return built(
        program,
        lambda go: _build(go, program),
        lambda why: CannotBuild(f"kube-apiserver {VERSION} {why}"),
    )


def _build(go: str, program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        place = Path(scratch)
        module = json.loads(_run(go, place, "mod", "download", "-json", f"{MODULE}@v{VERSION}"))
        staged = _STAGED.findall(Path(module["GoMod"]).read_text())
        # The parts that its repository has beside it are modules of their own, one minor each.
        replaced = "".join(f"replace {name} => {name} v0{VERSION[1:]}\n" for name in staged)
        requires = f"require {MODULE} v{VERSION}\n"
        text = f"module pyflannel.test/kube\n\ngo {GO}\n\n{requires}\n{replaced}"
        place.joinpath("go.mod").write_text(text)
        place.joinpath("main.go").write_bytes(SOURCE.read_bytes())
        _run(go, place, "mod", "tidy", "-e")
        # Without it clients see the version v0.0.0.
        named = f"-X k8s.io/component-base/version.gitVersion=v{VERSION}"
        _run(go, place, "build", "-o", "server", "-ldflags", f"-s -w {named}", ".")
        place.joinpath("server").rename(program)


def _run(go: str, place: Path, *arguments: str) -> str:
    done = subprocess.run(
        [go, *arguments],
        cwd=place,
        env={**os.environ, "GOFLAGS": "-mod=mod -buildvcs=false"},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if done.returncode:
        raise CannotBuild(f"kube-apiserver {VERSION}: go {arguments[0]}: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    print(api_server())
