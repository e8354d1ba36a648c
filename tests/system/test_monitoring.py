"""What docs/monitoring.md has an operator do from a machine of their own, over a real sshd."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.document import follow
from tests.support.machine import ETCD, ROOT, Node, Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {"Network": "10.5.0.0/20", "Backend": {"Type": "udp"}}
LOOK = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8780/').read().decode())"
SSH = "Host *\n  StrictHostKeyChecking accept-new\n  LogLevel ERROR\n"
SEEN = "/run/seen"
CTRL_C = "\x03"


def trust(client: Node, server: Node) -> None:
    """Root of one node may log in as root of the other."""
    if not client.exists("/root/.ssh/id_ed25519"):
        client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        client.write("/root/.ssh/config", SSH)
    server.write("/root/.ssh/authorized_keys", client.read("/root/.ssh/id_ed25519.pub"))


@pytest.fixture
def nodes(package):
    """A cluster of two, the second of which is the operator's machine as well."""
    with Site("ssh") as site:
        site.start_etcd()
        file = site.directory / "config.json"
        file.write_text(json.dumps(CONFIG))
        site.pyflannel("config", "set", file)
        nodes = [site.add_node() for _ in range(2)]
        for node in nodes:
            node.install(package)
            node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
            node.run("systemctl", "enable", "--now", "pyflannel")
        first, second = nodes
        second.shell(f"echo {first.address} node1 >>/etc/hosts")
        trust(first, second)
        trust(second, first)
        yield nodes


def looked_at(machine: Node, script: str) -> str:
    """What a command prints on a terminal that serves a page, until Ctrl-C when it was seen."""
    child = machine.popen("script", "-qefc", script, SEEN, stdin=subprocess.PIPE)
    try:
        until("its first line", lambda: "http" in machine.run("cat", SEEN, check=False))
        until("the page", lambda: "<title>" in machine.run("python3", "-c", LOOK, check=False))
        printed, _ = child.communicate(CTRL_C, timeout=30)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    return printed.replace("\r", "")


def test_every_command_does_what_the_page_says(nodes):
    first, second = nodes

    def laptop(script: str) -> str:
        if script.endswith("pyflannel web"):
            return looked_at(second, script)
        return second.shell(script)

    hosts = {"node1": first.shell, "laptop": laptop}
    assert follow(ROOT / "docs/monitoring.md", hosts) == 2
    # Nothing goes on serving when the operator has left.
    until("its end", lambda: not first.run("pgrep", "-fa", "pyflannel web", check=False))
