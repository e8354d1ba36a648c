"""From flannel's daemon to ours and back, as `docs/migrating-from-flannel.md` has it.

Needs upstream's binary: `PYFLANNEL_UPSTREAM=/path/to/flanneld`.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest

from tests.support.document import follow
from tests.support.machine import ETCD, ROOT, Site, pinging, until

UPSTREAM = os.environ.get("PYFLANNEL_UPSTREAM", "")
pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(
        not UPSTREAM, reason="PYFLANNEL_UPSTREAM (path of upstream's flanneld) is not set"
    ),
]

UNIT = """
[Unit]
After=network-online.target

[Service]
Type=notify
EnvironmentFile=/etc/default/flanneld
Environment=NODE_NAME=%H
ExecStart=/usr/local/bin/flanneld
Restart=always

[Install]
WantedBy=multi-user.target
"""


def flannel_on(site, backend):
    """Two nodes that run flannel, each with a bridge in its subnet."""
    file = site.directory / "config.json"
    file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": backend}}))
    site.pyflannel("config", "set", file)
    nodes = [site.add_node() for _ in range(2)]
    for node in nodes:
        (node.root / "usr/local/bin").mkdir(parents=True, exist_ok=True)
        shutil.copy(UPSTREAM, node.root / "usr/local/bin/flanneld")
        node.write(
            "/etc/default/flanneld",
            f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_IP_MASQ=true\n",
        )
        node.write("/etc/systemd/system/flanneld.service", UNIT)
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "enable", "--now", "flanneld")
        until("flannel's files", lambda node=node: node.exists("/run/flannel/subnet.env"))
        node.bridge()
    return nodes


@pytest.fixture(params=["vxlan", "host-gw"])
def cluster(request, package):
    with Site() as site:
        site.start_etcd()
        nodes = flannel_on(site, request.param)
        for node in nodes:
            shutil.copy(package, node.root / "var/tmp")
        yield request.param, nodes


def test_nodes_change_over_and_back_without_losing_a_packet(cluster):
    backend, nodes = cluster
    if backend == "vxlan":
        shells = {node.hostname: node.shell for node in nodes}
        with pinging(*nodes) as counted:
            assert follow(ROOT / "docs/migrating-from-flannel.md", shells) > 20
    else:
        for node in nodes:
            node.install(ROOT / "dist" / next((node.root / "var/tmp").glob("*.deb")).name)
            node.run("cp", "/etc/default/flanneld", "/etc/default/pyflannel")
        with pinging(*nodes) as counted:
            for node in nodes:
                node.run("systemctl", "start", "pyflannel")
            nodes[0].run("systemctl", "start", "flanneld")
            until("it is back", lambda: nodes[0].show("ActiveState", "flanneld") == "active")
    ((sent, received),) = counted
    assert sent > 50
    assert received == sent
