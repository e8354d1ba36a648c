"""Builds parts of Kubernetes from their Go module, as two programs.

The API server and the controller manager are one, and what nodes run, with the scheduler, is the
other: an older release, because newer kubelets need a newer containerd than Debian has. The module
proxy has the sources; no binary is fetched. What is built lies in the cache folder
(`PYFLANNEL_CACHE` or the XDG cache folder) and is built once: ten minutes of CPU and 2.3 GB of
memory for each.

    python -m tests.kube.build      prints where they are
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyflannel.testing.etcdbuild import cache
from pyflannel.testing.gobuild import built

MODULE: Final = "k8s.io/kubernetes"
BUILD_S: Final = 3600.0
HERE: Final = Path(__file__).parent
_STAGED: Final = re.compile(r"^\s*(k8s\.io/[a-z.-]+) => \./staging", re.MULTILINE)


@dataclass(frozen=True)
class Program:
    """One of the two."""

    name: str
    version: str
    go: str
    """What the module itself asks for."""
    source: Path

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


SERVER: Final = Program("kube-apiserver", "1.36.3", "1.26.0", HERE / "main.go")
NODE: Final = Program("kube-node", "1.34.4", "1.24.0", HERE / "node" / "main.go")


class CannotBuild(Exception):
    """Why there is no such program here."""


def api_server() -> Path:
    """The program; as `kube-controller-manager` it is that one.

    Raises:
        CannotBuild: with the reason.
    """
    return _program(SERVER)


def node_parts() -> Path:
    """The program; it is called `kubelet`, `kube-proxy` or `kube-scheduler`.

    Raises:
        CannotBuild: with the reason.
    """
    return _program(NODE)


def _program(which: Program) -> Path:
    program = cache() / "kube" / f"{which.name}-{which.version}"
    return built(
        program, lambda go: _build(go, program, which), lambda why: CannotBuild(f"{which} {why}")
    )


def _build(go: str, program: Path, which: Program) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [go, *arguments],
            cwd=place,
            env={
                **os.environ,
                "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -mod=mod -buildvcs=false",
            },
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        if done.returncode:
            raise CannotBuild(f"{which}: go {arguments[0]}: {done.stderr[-2000:]}")
        return done.stdout

    with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
        place = Path(scratch)
        module = json.loads(run("mod", "download", "-json", f"{MODULE}@v{which.version}"))
        staged = _STAGED.findall(Path(module["GoMod"]).read_text())
        # The parts that its repository has beside it are modules of their own, one minor each.
        replaced = "".join(f"replace {name} => {name} v0{which.version[1:]}\n" for name in staged)
        requires = f"require {MODULE} v{which.version}\n"
        text = f"module pyflannel.test/kube\n\ngo {which.go}\n\n{requires}\n{replaced}"
        place.joinpath("go.mod").write_text(text)
        place.joinpath("main.go").write_bytes(which.source.read_bytes())
        run("mod", "tidy", "-e")
        # Without it clients see the version v0.0.0.
        named = f"-X k8s.io/component-base/version.gitVersion=v{which.version}"
        run("build", "-o", "program", "-ldflags", f"-s -w {named}", ".")
        place.joinpath("program").rename(program)


if __name__ == "__main__":
    print(api_server(), node_parts(), sep="\n")
