"""Who starts whom: docker, pyflannel and flanneld on one booted node.

docker's package is the distribution's; what apt runs when docker is installed is run here again.
"""

from __future__ import annotations

import json
import time

import pytest

from tests.support.machine import ETCD, Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

WANT = "/etc/systemd/system/docker.service.wants/pyflannel.service"
OWN_DROP_IN = "/etc/systemd/system/docker.service.d/pyflannel.conf"
BOUND = "/run/systemd/system/pyflannel.service.d/bound.conf"
CONFIGURE_DOCKER = (
    *("env", "DPKG_MAINTSCRIPT_PACKAGE=docker.io", "DPKG_MAINTSCRIPT_NAME=postinst"),
    *("/var/lib/dpkg/info/docker.io.postinst", "configure", ""),
)
"""What dpkg calls at the end of an installation of docker; it starts docker, and waits for that."""
FLANNELD = """
[Service]
ExecStart=/usr/local/bin/flanneld infinity

[Install]
WantedBy=multi-user.target
"""
"""A flanneld that does nothing but run, from sleep(1)."""


@pytest.fixture(scope="module")
def site():
    """etcd does not run unless a test starts it."""
    with Site("docker") as site:
        node = site.add_node()
        node.run("mkdir", "-p", "/usr/local/bin")
        node.run("cp", "/bin/sleep", "/usr/local/bin/flanneld")
        node.write("/etc/systemd/system/flanneld.service", FLANNELD)
        yield site


@pytest.fixture
def node(site, package):
    """The package installed, and nothing enabled or running."""
    (node,) = site.nodes
    node.run("systemctl", "disable", "--now", "pyflannel", check=False)
    node.run("systemctl", "disable", "--now", "flanneld", check=False)
    node.run("systemctl", "stop", "docker.socket", "docker")
    node.run("dpkg", "--purge", "pyflannel", check=False)
    node.shell(
        f"rm -rf {OWN_DROP_IN} {BOUND} /run/docker_opts.env /run/flannel /var/lib/docker/network\n"
        "ip link del docker0 2>/dev/null || true\n"
        "systemctl daemon-reload; systemctl reset-failed"
    )
    site.stop_etcd()
    node.install(package)
    node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    return node


def configure(site):
    """Starts etcd, with a network config in it."""
    site.start_etcd()
    file = site.directory / "config.json"
    file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}))
    site.pyflannel("config", "set", file)


def problems(node):
    """What the doctor finds, by check."""
    report = json.loads(node.run("pyflannel", "doctor", "docker", "--json", check=False))
    return {f["check"]: f for f in report["findings"] if f["state"] == "problem"}


def is_active(node, unit):
    return node.show("ActiveState", unit) == "active"


def test_docker_is_installed_at_once_beside_a_pyflannel_that_is_not_enabled(node):
    begin = time.monotonic()
    node.run("timeout", "30", *CONFIGURE_DOCKER)
    assert time.monotonic() - begin < 20.0
    assert is_active(node, "docker")
    assert node.show("ActiveState") == "inactive"


def test_a_restart_of_docker_leaves_a_running_flanneld_alone(node):
    node.run("systemctl", "start", "flanneld")
    pid = node.main_pid("flanneld")
    node.run("timeout", "30", "systemctl", "restart", "docker")
    assert is_active(node, "docker")
    assert node.main_pid("flanneld") == pid != 0
    assert node.show("ActiveState") == "inactive"


def test_the_way_back_to_flanneld_holds_over_restarts_of_docker_and_a_reboot(site, node):
    configure(site)
    node.run("systemctl", "enable", "--now", "pyflannel")
    node.run("systemctl", "restart", "docker")
    node.run("systemctl", "disable", "pyflannel")
    node.run("systemctl", "enable", "--now", "flanneld")
    assert node.show("ActiveState") == "inactive"
    for _ in range(2):
        node.run("timeout", "30", "systemctl", "restart", "docker")
        assert is_active(node, "docker")
        assert is_active(node, "flanneld")
        assert node.show("ActiveState") == "inactive"
        node.reboot()
        until("docker is up", lambda: is_active(node, "docker"))


def test_an_enabled_pyflannel_is_started_with_docker_and_waited_for(site, node):
    configure(site)
    node.run("systemctl", "enable", "pyflannel")
    node.run("systemctl", "start", "docker")
    assert is_active(node, "pyflannel")
    assert f"--bip={node.subnet()}" in node.run("cat", f"/proc/{node.main_pid('docker')}/cmdline")
    assert problems(node) == {}
    node.run("systemctl", "stop", "pyflannel")
    assert is_active(node, "docker")


def test_without_etcd_docker_waits_no_longer_than_the_setting_says(site, node):
    node.write(BOUND, "[Unit]\nJobRunningTimeoutSec=6\n")
    node.run("systemctl", "enable", "pyflannel")
    begin = time.monotonic()
    node.run("timeout", "60", *CONFIGURE_DOCKER)
    assert 5.0 < time.monotonic() - begin < 30.0
    assert is_active(node, "docker")
    assert node.show("ActiveState") == "activating"
    assert {"lease", "options file"} <= set(problems(node))
    assert "subnet of its own" in problems(node)["options file"]["consequence"]
    configure(site)
    until("the agent is up", lambda: is_active(node, "pyflannel"))
    assert node.show("NRestarts") == "0"
    found = problems(node)
    assert set(found) == {"running docker", "docker0", "MTU"}
    assert "JobRunningTimeoutSec" in found["running docker"]["consequence"]
    node.shell(found["docker0"]["remedy"])
    assert problems(node) == {}


def test_two_agents_that_would_take_turns_are_named(site, node):
    configure(site)
    node.run("systemctl", "enable", "--now", "pyflannel")
    node.run("systemctl", "start", "flanneld")
    assert "systemctl disable pyflannel" in problems(node)["two agents"]["remedy"]


@pytest.fixture
def upgraded(node, former_package, package):
    """Gives a function that installs the former package, has something done, and then ours."""

    def upgrade(*script):
        node.run("dpkg", "--purge", "pyflannel")
        node.install(former_package)
        for line in script:
            node.shell(line)
        node.install(package)
        return node

    return upgrade


def test_an_upgrade_takes_the_want_out_of_what_docker_setup_wrote(upgraded):
    node = upgraded("pyflannel docker-setup", f"grep -qx Wants=pyflannel.service {OWN_DROP_IN}")
    assert "Wants=" not in node.read(OWN_DROP_IN)
    assert not node.exists(WANT)
    node.run("timeout", "30", "systemctl", "restart", "docker")
    assert node.show("ActiveState") == "inactive"
    assert "want" not in problems(node)


def test_an_upgrade_of_an_enabled_one_keeps_docker_starting_it(upgraded):
    node = upgraded("systemctl enable pyflannel")
    assert node.exists(WANT)
    assert "pyflannel.service" in node.show("Wants", "docker").split()
    node.run("systemctl", "disable", "pyflannel")
    assert not node.exists(WANT)


def test_a_want_that_was_removed_does_not_come_back_with_an_upgrade(node, package):
    node.run("systemctl", "enable", "pyflannel")
    node.run("rm", WANT)
    node.install(package)
    assert not node.exists(WANT)
