"""The book's walk-through as `docs/book-walkthrough.md` has it, on booted nodes with docker."""

from __future__ import annotations

import pytest

from tests.support.document import follow
from tests.support.machine import ROOT, Site

pytestmark = [pytest.mark.root, pytest.mark.slow]


def test_every_command_of_the_walk_through_prints_what_it_shows(package):
    with Site("docker") as site:
        site.start_etcd()
        nodes = [site.add_node() for _ in range(2)]
        for node in nodes:
            node.install(package)
        shells = {node.hostname: node.shell for node in nodes}
        assert follow(ROOT / "docs/book-walkthrough.md", shells) > 30
