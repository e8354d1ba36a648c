"""docker in the leased subnet, on a booted node: any unit, both orders, every mistake."""

from __future__ import annotations

import json

import pytest

from tests.support.machine import ETCD, Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

UNIT = "/etc/systemd/system/docker.service"
DROP_IN = "/etc/systemd/system/docker.service.d/pyflannel.conf"
ENVIRONMENT = "/etc/default/pyflannel"

OWN = """
[Unit]
After=network-online.target docker.socket
Requires=docker.socket

[Service]
Type=notify
ExecStart=/usr/sbin/dockerd -H fd://
TimeoutStartSec=60
"""
"""As the one of docker's own packages: none of the variables."""
CENTOS = """
[Unit]
After=network.target

[Service]
Type=notify
NotifyAccess=main
EnvironmentFile=-/etc/sysconfig/docker
EnvironmentFile=-/etc/sysconfig/docker-network
Environment=PATH=/usr/libexec/docker:/usr/bin:/usr/sbin
ExecStart=/usr/bin/dockerd-current \\
          --exec-opt native.cgroupdriver=systemd \\
          $OPTIONS \\
          $DOCKER_NETWORK_OPTIONS \\
          $INSECURE_REGISTRY
ExecReload=/bin/kill -s HUP $MAINPID
TimeoutStartSec=60
"""
"""As that of CentOS 7's docker package, less what its own builds have."""


@pytest.fixture(scope="module")
def installed(package):
    """A node with docker and the package."""
    with Site("docker") as site:
        site.start_etcd()
        file = site.directory / "config.json"
        config = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}
        file.write_text(json.dumps(config))
        site.pyflannel("config", "set", file)
        node = site.add_node()
        node.install(package)
        yield node


@pytest.fixture
def node(installed):
    """The same, with both stopped and as they were installed."""
    node = installed
    node.shell(
        "systemctl stop docker.socket docker pyflannel\n"
        f"rm -rf {UNIT} {DROP_IN} /etc/docker/daemon.json /etc/default/docker /etc/sysconfig\n"
        # docker remembers the subnet that its bridge had.
        "rm -rf /var/lib/docker/network; ip link del docker0 2>/dev/null || true\n"
        "iptables -P FORWARD ACCEPT; rm -f /run/docker_opts.env /run/flannel/subnet.env\n"
        "systemctl daemon-reload; systemctl reset-failed"
    )
    node.write(ENVIRONMENT, f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    node.run("systemctl", "enable", "pyflannel")
    return node


def problems(node):
    """What the doctor finds, by check."""
    report = json.loads(node.run("pyflannel", "doctor", "docker", "--json", check=False))
    return {f["check"]: f for f in report["findings"] if f["state"] == "problem"}


def bridge(node):
    """The address of docker0."""
    return json.loads(node.run("ip", "-j", "-4", "addr", "show", "docker0"))[0]["addr_info"][0]


def is_in_the_subnet(node):
    address = bridge(node)
    assert f"{address['local']}/{address['prefixlen']}" == node.subnet()
    return True


def test_docker_that_is_asked_for_first_brings_the_agent_up_and_waits_for_it(node):
    node.run("systemctl", "start", "docker")
    assert node.show("ActiveState") == "active"
    assert is_in_the_subnet(node)
    assert problems(node) == {}


def test_docker_that_is_started_afterwards_finds_its_options(node):
    node.run("systemctl", "start", "pyflannel")
    node.run("systemctl", "start", "docker")
    assert is_in_the_subnet(node)
    assert problems(node) == {}


def test_docker_that_ran_before_is_told_from_one_that_was_started_since(node):
    node.run("systemctl", "mask", "--runtime", "pyflannel")
    try:
        node.run("systemctl", "start", "docker")
    finally:
        node.run("systemctl", "unmask", "--runtime", "pyflannel")
    assert bridge(node)["local"].startswith("172.")
    node.run("systemctl", "start", "pyflannel")
    found = problems(node)
    assert {"running docker", "docker0"} <= set(found)
    assert "started before the file was there" in found["running docker"]["consequence"]
    node.shell(found["docker0"]["remedy"])
    assert is_in_the_subnet(node)
    assert problems(node) == {}


@pytest.mark.parametrize("text", [OWN, CENTOS], ids=["docker's own", "CentOS's"])
def test_docker_setup_fits_other_units(node, text):
    node.shell("test -e /usr/bin/dockerd-current || cp /usr/sbin/dockerd /usr/bin/dockerd-current")
    node.write("/etc/sysconfig/docker-network", "DOCKER_NETWORK_OPTIONS=\n")
    node.write(UNIT, text)
    node.run("systemctl", "daemon-reload")
    node.run("pyflannel", "docker-setup")
    node.run("systemctl", "daemon-reload")
    assert node.run("systemd-analyze", "--man=no", "verify", UNIT, check=False) == ""
    node.run("systemctl", "start", "docker")
    assert is_in_the_subnet(node)
    assert problems(node) == {}
    report = node.run("pyflannel", "doctor", "docker")
    assert "dockerd runs with --bip=" in report


def test_a_unit_without_the_variable_is_named_and_the_advice_cures_it(node):
    node.write(UNIT, OWN)
    node.run("systemctl", "daemon-reload")
    node.run("systemctl", "start", "docker")
    found = problems(node)
    assert "ExecStart refers to none of $DOCKER_OPTS" in found["command line"]["seen"]
    assert "docker0" in found
    node.shell(found["command line"]["remedy"])
    assert is_in_the_subnet(node)
    assert problems(node) == {}


def test_an_option_that_daemon_json_has_too_is_named_while_dockerd_refuses_to_start(node):
    node.write("/etc/docker/daemon.json", '{"bip": "10.9.0.1/24"}')
    node.run("systemctl", "start", "docker", check=False)
    until("it has failed", lambda: node.show("NRestarts", "docker") != "0")
    assert "specified both as a flag and in the configuration file" in node.journal("docker")
    found = problems(node)
    assert found["daemon.json"]["remedy"] == "remove bip from /etc/docker/daemon.json"
    node.write("/etc/docker/daemon.json", "{}")
    node.shell("systemctl reset-failed docker; systemctl restart docker")
    assert problems(node) == {}


def test_both_masquerading_is_named_and_the_advice_cures_it(node):
    node.run("systemctl", "start", "docker")
    node.write(ENVIRONMENT, f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_IP_MASQ=true\n")
    node.run("systemctl", "restart", "pyflannel")
    found = problems(node)
    assert set(found) == {"masquerade", "running docker"}
    assert "docker as well" in found["masquerade"]["seen"]
    node.run("systemctl", "restart", "docker")
    assert problems(node) == {}


def test_a_forward_chain_that_drops_is_named_if_our_rules_are_off(node):
    node.write(
        ENVIRONMENT, f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_IPTABLES_FORWARD_RULES=false\n"
    )
    node.run("systemctl", "start", "docker")
    node.run("iptables", "-P", "FORWARD", "DROP")
    assert set(problems(node)) == {"FORWARD"}
    node.write(ENVIRONMENT, f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    node.run("systemctl", "restart", "pyflannel")
    assert problems(node) == {}


def test_options_that_docker_had_in_its_own_file_are_not_lost_in_silence(node):
    node.write("/etc/default/docker", 'DOCKER_OPTS="--dns=192.0.2.53"\n')
    node.run("systemctl", "start", "docker")
    assert "--dns" not in node.run("cat", f"/proc/{node.main_pid('docker')}/cmdline")
    found = problems(node)
    assert "--dns=192.0.2.53" in found["other options"]["seen"]
    assert is_in_the_subnet(node)


def test_a_purge_takes_along_what_docker_setup_wrote(node):
    """The last one: the package is gone then."""
    node.run("systemctl", "start", "docker")
    node.run("pyflannel", "docker-setup")
    node.run("dpkg", "--purge", "pyflannel")
    assert not node.exists("/etc/systemd/system/docker.service.d")
    assert not node.exists("/run/docker_opts.env")
    node.run("systemctl", "restart", "docker")
    assert "--bip" not in node.run("cat", f"/proc/{node.main_pid('docker')}/cmdline")
