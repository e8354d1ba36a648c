"""The scripts of the Debian package: dpkg holds its lock while they run, so none may hang."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "packaging/deb"
WAITING = re.compile(
    r"(?<!command -v )(?<![\w/.-])((?:/usr/lib/systemd/)?(?:systemctl|systemd-[\w-]+|pyflannel)) "
)
"""A call of something that talks to a daemon, or to etcd."""


@pytest.mark.parametrize("name", ["preinst", "postinst", "prerm", "postrm"])
def test_every_command_that_may_wait_has_a_time_out(name: str) -> None:
    for line in (SCRIPTS / name).read_text().splitlines():
        code = re.sub(r"'[^']*'", "''", line)
        if code.lstrip().startswith("#") or (found := WAITING.search(code)) is None:
            continue
        assert re.search(rf"\btimeout \d+ {re.escape(found[1])} ", code), line


def test_the_pattern_finds_such_calls() -> None:
    assert WAITING.search("        systemctl stop pyflannel.service || true")
    assert WAITING.search("    pyflannel cleanup >/dev/null || true")
    assert not WAITING.search("    if command -v systemctl >/dev/null; then")
