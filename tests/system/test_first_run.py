"""README.md's `make demo` on a bare Debian: what it downloads and leaves, and once more offline."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.machine import ROOT, run

pytestmark = [pytest.mark.root, pytest.mark.slow]

MOST_DOWNLOADED = 60 << 20
MOST_ENVIRONMENT = 120 << 20

ENTER = r"""
set -e
tree=$1
mount --make-rprivate /
mount --bind "$tree" "$tree"
mount --bind /dev "$tree/dev"
mount --bind /proc "$tree/proc"
mount --rbind /sys "$tree/sys"
mount -t tmpfs tmpfs "$tree/run"
# What says how this machine reaches Debian and the package index.
proxies=$(grep -ls 'Acquire::https\?::' /etc/apt/apt.conf.d/* || true)
for path in /etc/resolv.conf /etc/hosts /etc/pip.conf $proxies \
    /etc/ssl/certs/ca-certificates.crt ${PIP_FIND_LINKS:+$PIP_FIND_LINKS}; do
    [ -e "$path" ] || continue
    if [ -d "$path" ]; then
        mkdir -p "$tree$path"
        mount --bind "$path" "$tree$path"
    else
        cat "$path" >"$tree$path"
    fi
done
exec chroot "$tree" sh -ec "$2"
"""
"""In a mount namespace of its own, so that nothing is left mounted."""


@pytest.fixture(params=["bookworm", "trixie"])
def bare(request, tmp_path_factory):
    """A Debian with `make` in it, and the sources as they are."""
    tree = tmp_path_factory.mktemp("bare") / "tree"
    sources = dict(
        line.split(maxsplit=1) for line in run(ROOT / "tools/debian-mirror.sh").splitlines()
    )
    line = f"deb {sources['main']} {request.param} main"
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=make,ca-certificates"]
    run(*command, request.param, tree, line, timeout=900)
    for name in run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard").splitlines():
        if (ROOT / name).is_file():
            (tree / "src" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / "src" / name)
    return tree


def inside(tree: Path, script: str, *, network: bool = True) -> str:
    spaces = ["-m"] if network else ["-m", "-n"]
    done = subprocess.run(
        ["unshare", *spaces, "sh", "-c", ENTER, "sh", tree, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def size(*paths: Path) -> int:
    files = (each for path in paths for each in path.rglob("*") if each.is_file())
    return sum(each.lstat().st_size for each in files if not each.is_symlink())


def test_a_bare_debian_shows_the_demo(bare):
    update = "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update; "
    shown = inside(bare, f"{update} cd /src; make demo")
    assert "installing system packages: " in shown
    assert "to undo: apt-get purge --autoremove " in shown
    assert "6 of 6 pairs answered" in shown
    downloaded = size(bare / "var/cache/apt/archives", bare / "root/.cache")
    assert downloaded <= MOST_DOWNLOADED
    assert size(bare / "src/.venv") <= MOST_ENVIRONMENT
    again = inside(bare, "cd /src; make demo", network=False)
    assert "==>" not in again
    assert "6 of 6 pairs answered" in again
