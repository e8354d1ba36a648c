"""The documents as a site: what they name is there, and every page can be found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tools import docsite
from tools.docslinks import linked, named

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_a_page_names_and_links_is_there(page):
    text = page.read_text()
    assert [each for each in named(text) if not (DOCS / each).is_file()] == []
    targets = re.findall(r"\]\(([^)#\s]+)", text)
    inside = [each for each in targets if "://" not in each]
    assert [each for each in inside if not (page.parent / each).is_file()] == []


def in_nav(entries):
    for entry in entries:
        (value,) = entry.values()
        yield from [value] if isinstance(value, str) else in_nav(value)


def test_every_page_is_in_the_sites_menu_once():
    menu = list(in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_documents_that_are_named_become_links():
    text = "see `docs/install.md` and `docs/reference/flags.md`\n\n```\n`docs/install.md`\n```\n"
    assert linked(text, "reference/files.md") == (
        "see [`docs/install.md`](../install.md) and [`docs/reference/flags.md`](flags.md)\n\n"
        "```\n`docs/install.md`\n```\n"
    )
    assert linked("[`docs/a.md`](a.md) `tools/a.py`", "b.md") == "[`docs/a.md`](a.md) `tools/a.py`"


HEAD = '<html><head><link rel="canonical" href="https://x/"></head><body><h1 id="top">x</h1>'


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ('<a href="#top">x</a><a href="b.html">b</a><a href="https://x.org">x</a>', []),
        ('<img src="data:image/png;base64,AAAA">', []),
        ('<a href="c.html">x</a>', ["a.html: c.html is not there"]),
        ('<a href="b.html#no">x</a>', ["a.html: b.html#no has no such anchor"]),
        ('<img src="p.svg">', ["a.html: p.svg is not there"]),
        ('<script src="//x.org/a.js">', ["a.html: loads //x.org/a.js from another host"]),
        (
            '<link href="https://x.org/a.css">',
            ["a.html: loads https://x.org/a.css from another host"],
        ),
    ],
)
def test_dead_links_and_foreign_hosts_are_found(tmp_path, content, wanted):
    (tmp_path / "a.html").write_text(HEAD + content)
    (tmp_path / "b.html").write_text(HEAD)
    assert list(docsite.problems(tmp_path)) == wanted


def test_a_style_sheet_loads_nothing_either(tmp_path):
    (tmp_path / "a.css").write_text("a{background:url(https://x.org/a.png)}")
    assert list(docsite.problems(tmp_path)) == ["a.css: loads something from another host"]
