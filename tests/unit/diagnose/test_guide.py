"""The page on troubleshooting is made from the codes, and misses none."""

from __future__ import annotations

from pathlib import Path

from pyflannel.diagnose import finding
from pyflannel.diagnose.guide import GUIDES
from pyflannel.docker import checks as docker
from pyflannel.report import problems
from tools.troubleshooting import page

ROOT = Path(__file__).parents[3]


def test_every_code_has_a_guide_and_none_has_two_meanings():
    codes = [*problems.CODES, *finding.CODES, *docker.CODES]
    assert sorted(GUIDES) == sorted(codes)
    assert len(set(codes)) == len(codes)


def test_the_page_is_what_is_made_from_them():
    assert (ROOT / "docs/troubleshooting.md").read_text() == page()


def test_there_are_forty_kinds_of_fault_at_least():
    quiet = {finding.NOT_SEEN, problems.DEFECT, problems.PART}
    assert len(set(GUIDES) - quiet) >= 40
