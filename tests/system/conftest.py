"""The package under test, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.machine import ROOT, run


@pytest.fixture(scope="session")
def package() -> Path:
    """The Debian package of the sources as they are."""
    return ROOT / run(ROOT / "tools/build-deb.sh", timeout=300).splitlines()[-1]
