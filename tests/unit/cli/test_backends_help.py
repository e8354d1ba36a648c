"""The backends and their settings, for people: all of them, from what they declare."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.cli import config
from pyflannel.cli.backends import help_text
from pyflannel.core.kind import every

ROOT = Path(__file__).parents[3]


def test_help_has_every_backend_with_every_setting_its_default_and_what_it_may_be():
    text = help_text(KINDS)
    for kind in every(KINDS):
        assert f"  {kind.name:<10} {kind.summary}\n" in text + "\n"
        for setting in kind.settings.declared().values():
            assert f"    {setting.key}: {setting.effect}\n" in text
            assert f"      {setting.wanted}; default {json.dumps(setting.default)}" in text


def test_it_is_part_of_the_commands_help_and_made_only_for_that(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        config.main(["--help"])
    assert help_text(KINDS) in capsys.readouterr().out
    monkeypatch.setattr(config, "keys_text", lambda _kinds: pytest.fail("help was not asked for"))
    assert config.main(["check", str(ROOT / "config" / "vxlan.json")]) == 0


def test_the_document_is_what_its_tool_writes(tmp_path):
    made = tmp_path / "backends.md"
    subprocess.run([sys.executable, ROOT / "tools" / "backends.py", made], check=True)
    assert (ROOT / "docs" / "backends.md").read_text() == made.read_text(), "run tools/backends.py"
