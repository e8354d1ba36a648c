"""Builds the wheels: for x86-64 and aarch64 with the native core, and one without it.

    tools/wheels.py [DIRECTORY]        default: dist

All on one machine: Zig's C compiler has the headers and symbol versions of every glibc, so that the
result loads where that of this system's compiler would not. The sources are those of a source
archive that is made first. The Zig of `tools/wheels.lock` is installed once, below PYFLANNEL_CACHE
(default: XDG_CACHE_HOME/pyflannel, ~/.cache/pyflannel).

A wheel gets its tag after a look at what was built: the libraries that it names, and the newest
symbol version that it asks for (PEP 599). Anything else ends the build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
LOCK: Final = ROOT / "tools" / "wheels.lock"
MACHINES: Final = ("x86_64", "aarch64")
GLIBC: Final = (2, 17)
"""Of manylinux2014 (PEP 599): CentOS 7's. All that we support has a newer one."""
TAG: Final = "manylinux2014"
LIBRARIES: Final = frozenset({"libc.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"})
"""What the core may name. The policy allows a few more, none of which it needs."""
_NEEDED: Final = re.compile(r"\(NEEDED\).*\[(.+)\]")
_GLIBC: Final = re.compile(r"\bGLIBC_(\d+(?:\.\d+)+)")
_MACHINE: Final = re.compile(r"^ *Machine: *(.+)$", re.MULTILINE)
_READELF_NAMES: Final = {"x86_64": "X86-64", "aarch64": "AArch64"}


def cache_folder() -> Path:
    """Where downloads are kept."""
    chosen = os.environ.get("PYFLANNEL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(chosen) if chosen else Path(base, "pyflannel")


def objection(machine: str, described: str) -> str:
    """Why a shared object may not have the tag for a machine; empty if it may.

    Args:
        machine: as the kernel spells it, `aarch64`.
        described: what `readelf --wide --file-header --dynamic --version-info` says about it.
    """
    found = _MACHINE.search(described)
    if found is None or _READELF_NAMES[machine] not in found[1]:
        return f"is not for {machine}"
    if others := set(_NEEDED.findall(described)) - LIBRARIES:
        return f"needs {', '.join(sorted(others))}"
    versions = {tuple(map(int, each.split("."))) for each in _GLIBC.findall(described)}
    if not versions:
        return "names no version of glibc: it was not linked as was meant"
    if max(versions) > GLIBC:
        return f"needs glibc {'.'.join(map(str, max(versions)))}"
    return ""


def _run(*command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}\nwheels: {shlex.join(map(str, command))}: failed")
    return done.stdout


def zig() -> Path:
    """The directory with Zig's distribution; installed if it is not there yet."""
    name = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    target = cache_folder() / f"zig-{name}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"==> installing {LOCK.read_text().split(' ', 1)[0]} in {target}", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="zig-") as half:
        _run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--require-hashes", "--only-binary=:all:", "--target", Path(half, "zig")),
            *("--requirement", LOCK),
            cwd=ROOT,
        )
        Path(half, "zig").rename(target)
    return target


def _python_headers(place: Path) -> None:
    """What Debian's pyconfig.h, the same for all machines, includes for each.

    The one of this machine serves all: they are 64 bits wide with the same sizes of every type, and
    the stable ABI asks for nothing else.
    """
    include = Path(sysconfig.get_path("include"))
    ours = include.parent / str(sysconfig.get_config_var("MULTIARCH")) / include.name / "pyconfig.h"
    if not ours.exists():
        return  # not a Debian: it is in the one place where all headers are
    for machine in MACHINES:
        target = place / f"{machine}-linux-gnu" / include.name
        target.mkdir(parents=True)
        shutil.copy(ours, target)


def _compiler(machine: str, headers: Path) -> dict[str, str]:
    """The environment in which setuptools builds for a machine."""
    version = ".".join(map(str, GLIBC))
    compiler = f"{sys.executable} -m ziglang cc -target {machine}-linux-gnu.{version}"
    return {
        "CC": f"{compiler} -isystem {headers}",
        "LDSHARED": f"{compiler} -shared -s",
        "PYTHONPATH": str(zig()),
        "ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig-objects"),
        "ZIG_LOCAL_CACHE_DIR": str(headers),
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
        "PYFLANNEL_REQUIRE_NATIVE": "1",
        "PYFLANNEL_SKIP_NATIVE": "",
    }


def _wheel(tree: Path, target: Path, environment: Mapping[str, str], *options: str) -> Path:
    """Builds one from an unpacked source archive."""
    shutil.rmtree(tree / "build", ignore_errors=True)
    before = set(target.glob("*.whl"))
    _run(
        *(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", target),
        *(f"--config-setting=--build-option={each}" for each in options),
        tree,
        cwd=tree,
        environment=environment,
    )
    (made,) = set(target.glob("*.whl")) - before
    return made


def _verify(wheel: Path, machine: str, place: Path) -> None:
    """Looks at every shared object in a wheel.

    Raises:
        SystemExit: one does not deserve the tag, or there is none.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if not names:
            raise SystemExit(f"wheels: {wheel.name}: the native core is missing")
        for name in names:
            path = archive.extract(name, place)
            options = ("--wide", "--file-header", "--dynamic", "--version-info")
            reason = objection(machine, _run("readelf", *options, path, cwd=place))
            if reason:
                raise SystemExit(f"wheels: {wheel.name}: {name} {reason}")


def build(target: Path) -> Iterable[Path]:
    """Builds all three; they appear in the target one by one, each when it has been looked at."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pyflannel-wheels-") as name:
        place = Path(name)
        _run(
            *(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", place, ROOT),
            cwd=ROOT,
        )
        (archive,) = place.glob("*.tar.gz")
        _run("tar", "-xzf", archive, cwd=place)
        tree = place / archive.name.removesuffix(".tar.gz")
        headers, made = place / "headers", place / "made"
        headers.mkdir()
        _python_headers(headers)
        made.mkdir()
        for machine in MACHINES:
            option = f"--plat-name={TAG}_{machine}"
            wheel = _wheel(tree, made, _compiler(machine, headers), option)
            _verify(wheel, machine, place / machine)
            yield Path(shutil.copy(wheel, target))
        without = {"PYFLANNEL_SKIP_NATIVE": "1", "PYFLANNEL_REQUIRE_NATIVE": ""}
        yield Path(shutil.copy(_wheel(tree, made, without), target))


def main() -> None:
    """Entry point."""
    for wheel in build(Path(sys.argv[1] if len(sys.argv) > 1 else "dist").absolute()):
        print(wheel, flush=True)


if __name__ == "__main__":
    main()
