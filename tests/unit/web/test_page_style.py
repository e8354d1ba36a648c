"""The page's colours can be read, in both schemes."""

from __future__ import annotations

import re
from importlib import resources

import pytest

STYLE = (resources.files("pyflannel.web") / "page" / "page.css").read_text()
SCHEMES = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
]
WORDS = ("text", "quiet", "accent", "up", "small-only", "down", "unknown", "focus")


def luminance(colour):
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", SCHEMES, ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["panel", "ground"])
@pytest.mark.parametrize("name", WORDS)
def test_each_colour_of_words_stands_out(colours, ground, name):
    assert contrast(colours[name], colours[ground]) >= 4.5  # WCAG 2.2, 1.4.3 (AA)


def test_both_schemes_have_the_same_colours():
    assert len(SCHEMES) == 2
    assert SCHEMES[0].keys() == SCHEMES[1].keys()


def test_no_state_is_told_by_colour_alone():
    script = (resources.files("pyflannel.web") / "page" / "page.js").read_text()
    signs = re.search(r"const SIGNS = \{(.*?)\};", script, re.DOTALL)[1]
    drawn = dict(re.findall(r'"?([\w-]+)"?: "(.*?)"', signs))
    # Both without a sign: one dot is filled, the other is not.
    assert sorted(name for name, path in drawn.items() if not path) == ["unknown", "up"]
    assert ".up .dot { fill: var(--c); }" in STYLE
    paths = [path for path in drawn.values() if path]
    assert len(set(paths)) == len(paths)
