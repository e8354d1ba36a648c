"""Several daemons on one booted node, each from its own instance of the unit."""

from __future__ import annotations

import json

import pytest

from tests.support.machine import ETCD, Site

pytestmark = [pytest.mark.root, pytest.mark.slow]

PREFIX = "/storage/network"


@pytest.fixture(scope="module")
def node(package):
    """The default daemon and one called `storage`, each with a network of its own."""
    with Site() as site:
        site.start_etcd()
        file = site.directory / "config.json"
        for prefix, network, vni in (
            ("/coreos.com/network", "10.5.0.0/16", 1),
            (PREFIX, "10.6.0.0/16", 2),
        ):
            backend = {"Type": "vxlan", "VNI": vni}
            file.write_text(json.dumps({"Network": network, "Backend": backend}))
            site.pyflannel("config", "set", file, prefix=prefix)
        node = site.add_node()
        node.install(package)
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        options = f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_ETCD_PREFIX={PREFIX}\n"
        node.write("/etc/default/pyflannel-storage", options)
        node.run("systemctl", "enable", "--now", "pyflannel")
        node.run("systemctl", "enable", "--now", "pyflannel@storage")
        yield node


def test_each_has_its_own_lease_files_and_device(node):
    assert node.subnet().startswith("10.5.")
    assert "FLANNEL_SUBNET=10.6." in node.read("/run/flannel/storage/subnet.env")
    assert "--bip=10.5." in node.read("/run/docker_opts.env")
    assert not node.exists("/run/flannel/storage/docker_opts.env")
    for directory in ("/var/lib/pyflannel", "/var/lib/pyflannel/storage"):
        assert node.exists(f"{directory}/lease.json")
    for device in ("flannel.1", "flannel.2"):
        assert node.exists(f"/sys/class/net/{device}")
    status = node.run(
        *("pyflannel", "status", "--json"),
        *("--status-socket", "/run/flannel/storage/pyflannel.sock"),
        check=False,
    )
    assert "10.6." in status


def test_what_one_does_leaves_the_others_files_alone(node):
    before = node.shell("cat /run/flannel/subnet.env; cat /run/docker_opts.env")
    node.run("systemctl", "restart", "pyflannel@storage")
    node.run("systemctl", "stop", "pyflannel@storage")
    assert node.shell("cat /run/flannel/subnet.env; cat /run/docker_opts.env") == before
    assert node.show("ActiveState") == "active"
    node.run("systemctl", "start", "pyflannel@storage")
    node.run("systemctl", "restart", "pyflannel")
    assert node.show("ActiveState", "pyflannel@storage") == "active"


def test_an_upgrade_restarts_both_and_a_purge_stops_both(node, package):
    pids = [node.main_pid(unit) for unit in ("pyflannel", "pyflannel@storage")]
    node.install(package)
    now = [node.main_pid(unit) for unit in ("pyflannel", "pyflannel@storage")]
    assert 0 not in now
    assert not set(pids) & set(now)
    rules = node.run("iptables-save")
    assert "10.5." in rules
    assert "10.6." in rules
    node.run("dpkg", "--purge", "pyflannel")
    assert "FLANNEL" not in node.run("iptables-save")
    assert not node.exists("/run/flannel")
    left = node.shell(
        "find / -xdev \\( -path /proc -o -path /sys \\) -prune -o -name '*flannel*' -print"
    )
    left = [x for x in left.splitlines() if not x.startswith("/var/tmp/")]
    assert set(left) <= {"/etc/default/pyflannel-storage"}
