"""The Debian package as a file: what its own checker says."""

from __future__ import annotations

import pytest

from tests.support.machine import ROOT, run

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_lintian_finds_nothing_that_is_not_explained(package):
    options = ("--allow-root", "--display-info", "--pedantic", "--fail-on=info,warning,error")
    assert run("lintian", *options, package, timeout=600) == ""


def test_every_override_has_its_reason():
    reason = False
    for line in (ROOT / "packaging/deb/lintian-overrides").read_text().splitlines():
        if line.startswith("pyflannel"):
            assert reason, line
        reason = line.startswith("#") or (reason and line != "")


def test_it_is_small_enough_to_be_copied_around(package):
    # 5.8 MB, of which 4 are aiohttp, pyroute2 and uvloop.
    assert package.stat().st_size < 10 << 20
