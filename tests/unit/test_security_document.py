"""docs/security.md names the test behind each claim; these tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def test_every_test_that_a_claim_names_exists() -> None:
    text = (ROOT / "docs/security.md").read_text()
    named = NAMED.findall(text)
    assert len(named) == text.count("::")
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"def {name}\(", (ROOT / path).read_text())
    ]
    assert missing == []


def test_every_claim_names_one_or_says_that_it_is_not_done() -> None:
    """A claim is a paragraph that begins in bold."""
    text = (ROOT / "docs/security.md").read_text()
    claims = re.findall(r"^\*\*.+?(?=^\*\*|^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(claims) > 10
    assert [c for c in claims if not NAMED.search(c) and "*not done*" not in c.lower()] == []
