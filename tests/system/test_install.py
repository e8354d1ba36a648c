"""The ways to install pyflannel as `docs/install.md` has them: on this machine and on nodes."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.support.document import follow
from tests.support.machine import ROOT, Site

pytestmark = [pytest.mark.root, pytest.mark.slow]


class Builder:
    """A shell in this checkout whose tools are installed into a home of its own."""

    def __init__(self, home, nodes) -> None:
        self.nodes = nodes
        tools = [
            f"{home}/.local/bin",
            str(ROOT / ".venv/bin"),
            "/usr/local/bin",
            "/usr/bin",
            "/bin",
        ]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_", "PYTHON"))}
        self.env = {
            **kept,
            "HOME": str(home),
            # Where the tools' own data lies, should the machine's environment name another place.
            "XDG_DATA_HOME": f"{home}/.local/share",
            "PIPX_HOME": f"{home}/.local/pipx",
            "PIPX_BIN_DIR": f"{home}/.local/bin",
            "UV_TOOL_BIN_DIR": f"{home}/.local/bin",
            "UV_TOOL_DIR": f"{home}/.local/uv",
            "PATH": ":".join(tools),
        }

    def __call__(self, script: str) -> str:
        # `pyflannel` shall be the one that was installed, not the checkout's.
        guard = 'pyflannel() { "$HOME/.local/bin/pyflannel" "$@"; }\n'
        done = subprocess.run(
            ["sh", "-ec", guard + script],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}"
        self.hand_over()
        return done.stdout

    def hand_over(self) -> None:
        """What has been built is copied to the nodes."""
        for node in self.nodes:
            target = node.root / "var/tmp"
            for package in (ROOT / "dist").glob("*.deb"):
                shutil.copy(package, target)
            if (ROOT / "build/wheels").is_dir():
                shutil.copytree(ROOT / "build/wheels", target / "wheels", dirs_exist_ok=True)


def test_every_way_to_install_works_as_it_is_written(tmp_path):
    for left_over in ("build/wheels", "build/from-source"):
        shutil.rmtree(ROOT / left_over, ignore_errors=True)
    with Site() as site:
        site.start_etcd()
        nodes = [site.add_node() for _ in range(2)]
        shells = {node.hostname: node.shell for node in nodes}
        shells["build"] = Builder(tmp_path, nodes)
        try:
            assert follow(ROOT / "docs/install.md", shells) > 30
        except AssertionError:
            for node in nodes:
                print(node.hostname, node.journal())
            raise
        finally:
            for left_over in ("build/wheels", "build/from-source"):
                shutil.rmtree(ROOT / left_over, ignore_errors=True)
