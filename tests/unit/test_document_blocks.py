"""Every block of a page is run, or used, by a test; it stands here by which one.

A block of commands with their output is fenced as `console` and followed by a test of the page
(`tests/support/document.py`). Every other block says what it is, and has a test that takes it from
the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = (
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "contrib/README.md")),
)
FENCE: Final = re.compile(r"^ *```(.*)$", re.MULTILINE)
INDENTED: Final = re.compile(r"(?<=\n\n) {4}(?=\S).*", re.MULTILINE)
USED: Final = {
    ("CONTRIBUTING.md", "diff"): ["unit/test_contributing.py"],
    ("CONTRIBUTING.md", "python"): ["unit/test_contributing.py"],
    ("CONTRIBUTING.md", "sh"): ["unit/test_contributing.py"],
    ("README.md", "sh"): ["system/test_first_run.py", "integration/test_readme.py"],
    ("contrib/README.md", "yaml"): ["integration/test_alerts.py"],
    ("docs/book-walkthrough.md", "console"): ["system/test_book.py"],
    ("docs/containers.md", "console"): ["system/test_containers.py"],
    ("docs/install.md", "console"): ["system/test_install.py"],
    ("docs/install.md", "ini"): ["system/test_drop_ins.py"],
    ("docs/kernels.md", "python"): ["unit/kernels/test_document.py"],
    ("docs/kernels.md", "sh"): ["unit/kernels/test_document.py"],
    ("docs/kubernetes.md", "console"): ["kube/test_pods.py", "system/test_image.py"],
    ("docs/learn.md", "console"): ["integration/test_lab_trouble.py"],
    ("docs/migrating-from-flannel.md", "console"): ["system/test_migration.py"],
    ("docs/monitoring.md", "console"): ["system/test_monitoring.py"],
    ("docs/operations.md", "console"): ["system/test_operations.py"],
    ("docs/performance.md", "console"): ["integration/test_lab_trouble.py"],
    ("docs/reference/commands.md", "sh"): ["unit/cli/test_tree.py"],
    ("docs/reference/network-config.md", "json"): ["unit/test_config_samples.py"],
    ("docs/security.md", "ini"): ["system/test_drop_ins.py"],
    ("docs/static-network.md", "json"): ["integration/test_static_network.py"],
    ("docs/static-network.md", "sh"): ["integration/test_static_network.py"],
}
"""Page and kind of block: the tests that take it."""
NOT_RUN: Final = {
    ("docs/architecture.md", "text"): "a drawing",
    (
        "docs/ebpf.md",
        "sh",
    ): "traces the kernel of the whole machine, on an underlay without offloads",
}
"""With the reason."""


def blocks(page: Path) -> set[tuple[str, str]]:
    """The kinds of blocks of a page, `""` for one that does not say."""
    opening = FENCE.findall(page.read_text())[::2]
    return {(str(page.relative_to(ROOT)), kind.strip()) for kind in opening}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_has_its_test_or_its_reason(page):
    assert blocks(page) - USED.keys() - NOT_RUN.keys() == set()
    text = page.read_text()
    assert len(FENCE.findall(text)) % 2 == 0
    assert (
        INDENTED.findall("".join(re.split(r"^```.*?^```$", text, flags=re.MULTILINE | re.DOTALL)))
        == []
    )


def test_nothing_stands_here_that_no_page_has():
    found = set().union(*map(blocks, PAGES))
    assert (USED.keys() | NOT_RUN.keys()) - found == set()


@pytest.mark.parametrize(("block", "tests"), USED.items(), ids="-".join)
def test_the_test_takes_it_from_the_page(block, tests):
    name = Path(block[0]).name
    for test in tests:
        assert name in (ROOT / "tests" / test).read_text(), f"{test} does not name {name}"
