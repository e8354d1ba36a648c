"""What of the checkout is packed for a guest."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.kernels import images


def test_a_guest_gets_the_checkout_and_what_is_added_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, beside = tmp_path / "checkout", tmp_path / "flanneld-0"
    for name in ("docs/a.md", ".git/config", ".venv/bin/python"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name)
    beside.write_text("a program")
    beside.chmod(0o755)
    monkeypatch.setattr(images, "ROOT", checkout)
    images.pack_checkout(tmp_path / "tar", {".upstream/flanneld": beside})
    with tarfile.open(tmp_path / "tar") as tar:
        files = {each.name: each for each in tar if each.isfile()}
    assert set(files) == {"./docs/a.md", ".upstream/flanneld"}
    assert files[".upstream/flanneld"].mode & 0o111
