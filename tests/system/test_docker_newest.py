"""The newest docker that Debian has, on two booted nodes: 28 keeps other nodes' packets out.

The nodes are of Debian's unstable suite, with its Python: pyflannel is installed from wheels, as
`docs/install.md` has it.
"""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.support.machine import ETCD, ROOT, Site, run, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

BUSYBOX = (
    "mkdir -p /tmp/image/bin; cp /bin/busybox /tmp/image/bin/; ln -sf busybox /tmp/image/bin/sh\n"
    "tar -C /tmp/image -c . | docker import - busybox\n"
)
SHARE = "/opt/pyflannel/share/pyflannel"
INSTALL = f"""
python3 -m venv /opt/pyflannel
/opt/pyflannel/bin/pip install --quiet --no-index --find-links /var/tmp/wheels pyflannel
ln -s /opt/pyflannel/bin/pyflannel* /usr/local/bin/
cp {SHARE}/systemd/pyflannel.service /etc/systemd/system/
mkdir -p /etc/systemd/system/docker.service.d
cp {SHARE}/systemd/sysctl.d/80-pyflannel.conf /etc/sysctl.d/
echo FLANNELD_ETCD_ENDPOINTS={ETCD} >/etc/default/pyflannel
systemctl daemon-reload
systemctl enable --now pyflannel
"""


def restart_docker(node):
    """As often as we like: docker's unit allows three starts a minute."""
    node.shell("systemctl daemon-reload; systemctl reset-failed docker; systemctl restart docker")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    wheels = tmp_path_factory.mktemp("wheels")
    run(ROOT / ".venv/bin/python", "-m", "build", "--wheel", "--outdir", wheels, ROOT, timeout=300)
    with Site("docker-newest") as site:
        site.start_etcd()
        file = site.directory / "config.json"
        file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}))
        site.pyflannel("config", "set", file)
        nodes = [site.add_node() for _ in range(2)]
        version = (
            nodes[0]
            .run("python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
            .strip()
        )
        run(
            *(ROOT / ".venv/bin/python", "-m", "pip", "download", "--quiet", "--dest", wheels),
            *("--only-binary=:all:", f"--python-version={version}", next(wheels.glob("*.whl"))),
            timeout=300,
        )
        for node in nodes:
            shutil.copytree(wheels, node.root / "var/tmp/wheels")
            node.shell(INSTALL, timeout=120)
            restart_docker(node)
            node.shell(BUSYBOX)
        yield nodes


def problems(node):
    """What the doctor finds, by check."""
    report = json.loads(node.run("pyflannel", "doctor", "docker", "--json", check=False))
    return {f["check"]: f for f in report["findings"] if f["state"] == "problem"}


def lost(nodes, *options):
    """Percent of five pings from a container on the first node to one on the second."""
    there, here = nodes[1], nodes[0]
    name = there.run("docker", "run", "-d", *options, "busybox", "busybox", "sleep", "60").strip()
    try:
        networks = json.loads(there.run("docker", "inspect", name))[0]["NetworkSettings"][
            "Networks"
        ]
        (network,) = networks.values()
        ping = ("busybox", "ping", "-c", "5", "-W", "1", network["IPAddress"])
        said = here.run("docker", "run", "--rm", *options, "busybox", *ping, check=False)
    finally:
        there.run("docker", "rm", "-f", name)
    counted = re.search(r"(\d+)% packet loss", said)
    assert counted, said
    return int(counted[1])


def test_it_is_one_that_drops_them(nodes):
    """Otherwise the tests below prove nothing."""
    version = nodes[0].run("docker", "version", "--format", "{{.Server.Version}}")
    assert int(version.split(".")[0]) >= 28


def test_docker_networks_in_the_leased_subnet_need_the_accept_and_the_option(nodes):
    create = (
        ". /run/flannel/subnet.env; docker network create"
        " --subnet ${FLANNEL_SUBNET%.1/*}.0/${FLANNEL_SUBNET#*/} --gateway ${FLANNEL_SUBNET%/*}"
        " -o com.docker.network.driver.mtu=$FLANNEL_MTU"
        " -o com.docker.network.bridge.trusted_host_interfaces=flannel.1 flannel"
    )
    for node in nodes:
        node.shell(create)
    try:
        assert lost(nodes, "--network=flannel") == 100
        assert "pyflannel docker-setup" in problems(nodes[1])["direct routing"]["remedy"]
        for node in nodes:
            assert "accepted from" in node.run("pyflannel", "docker-setup", "--networks")
        assert lost(nodes, "--network=flannel") == 0
        assert "direct routing" not in problems(nodes[1])
    finally:
        for node in nodes:
            node.run("docker", "network", "rm", "flannel", check=False)
            node.shell("iptables -F DOCKER-USER; rm -f /var/lib/pyflannel/docker-setup.json")


def test_docker_setup_alone_is_enough(nodes):
    for node in nodes:
        # What the package brings: docker gets the options, and no more.
        node.shell(f"cp {SHARE}/systemd/docker.service.d/* /etc/systemd/system/docker.service.d/")
        restart_docker(node)
    assert lost(nodes) == 100
    for node in nodes:
        node.run("pyflannel", "docker-setup", "--now")
    assert lost(nodes) == 0
    for node in nodes:
        assert problems(node) == {}
        arguments = node.run("cat", f"/proc/{node.main_pid('docker')}/cmdline").split("\0")
        assert f"--bip={node.subnet()}" in arguments
        assert "--allow-direct-routing" in arguments
        assert "allow-direct-routing" not in node.read("/run/docker_opts.env")


def test_it_holds_over_a_flush_a_restart_of_docker_and_a_reboot(nodes):
    second = nodes[1]
    second.shell("iptables -F DOCKER-USER")
    until("the accept is back", lambda: "ACCEPT" in second.run("iptables", "-S", "DOCKER-USER"), 5)
    restart_docker(second)
    assert lost(nodes) == 0
    second.reboot()
    until("docker is up", lambda: second.show("ActiveState", "docker") == "active", 60)
    until("the accept is there", lambda: "pyflannel" in second.run("iptables", "-S", "DOCKER-USER"))
    assert lost(nodes) == 0


def test_cleanup_takes_option_accept_and_drop_in_away(nodes):
    node = nodes[0]
    node.run("systemctl", "disable", "--now", "pyflannel")
    node.run("pyflannel", "cleanup")
    assert not node.exists("/etc/systemd/system/docker.service.d/pyflannel.conf")
    assert "pyflannel" not in node.run("iptables", "-S", "DOCKER-USER")
    assert not node.exists("/var/lib/pyflannel/docker-setup.json")
    restart_docker(node)
    assert "direct" not in node.run("cat", f"/proc/{node.main_pid('docker')}/cmdline")
