"""Prometheus and promtool: this machine's, or Debian's package, unpacked and not installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

DOWNLOAD_S = 120.0


def _cache() -> Path:
    chosen = os.environ.get("PYFLANNEL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyflannel"
    return (Path(chosen) if chosen else base) / "prometheus"


def program(name: str) -> str:
    """Path of `prometheus` or `promtool`; skips the test where neither way leads to it.

    Installing the package would start a server; so it is unpacked into the cache folder.
    """
    found = shutil.which(name)
    if found:
        return found
    unpacked = _cache() / "usr/bin" / name
    if not unpacked.exists():
        _cache().mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(
                ["apt-get", "download", "prometheus"],
                cwd=_cache(),
                check=True,
                capture_output=True,
                timeout=DOWNLOAD_S,
            )
            package = next(_cache().glob("prometheus_*.deb"))
            subprocess.run(["dpkg", "-x", package, _cache()], check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError, StopIteration) as error:
            pytest.skip(f"no {name} here, and Debian's package cannot be had: {error}")
    return str(unpacked)
