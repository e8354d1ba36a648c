"""The unit on a real systemd: started, stopped, killed, frozen, rebooted, without its etcd."""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import contextmanager

import pytest

from tests.support.machine import ETCD, PINGS, Node, Site, lost_after, pinging, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

LATE_S = float(os.environ.get("PYFLANNEL_LATE_S", "15"))
"""How long etcd is away while a unit with `TimeoutStartSec=5` starts."""
COMMANDS = ("pyflanneld", "pyflanneld-start", "pyflannel", "pyflannel-mk-docker-opts")


@pytest.fixture(scope="module")
def site(package):
    """Two nodes with the package installed, and an etcd."""
    with Site() as site:
        site.start_etcd()
        for _ in range(2):
            node = site.add_node()
            node.install(package)
            node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        configure(site, "vxlan")
        yield site


def configure(site: Site, backend: str) -> None:
    """Another network config; the nodes' daemons are stopped and their traces removed before."""
    for node in site.nodes:
        node.run("systemctl", "stop", "pyflannel")
        node.run("pyflannel", "cleanup", check=False)
        node.run("ip", "link", "del", "cni0", check=False)
        node.run("systemctl", "reset-failed", check=False)
    config = {"Network": "10.5.0.0/16", "Backend": {"Type": backend}}
    file = site.directory / "config.json"
    file.write_text(json.dumps(config))
    site.pyflannel("config", "set", file)


def start(node: Node) -> None:
    """Starts the daemon and puts a bridge into the leased subnet, as docker would."""
    node.run("systemctl", "start", "pyflannel", check=False)
    assert active(node), node.journal()
    node.bridge()


@contextmanager
def drop_in(node: Node, text: str):
    """The unit with other settings."""
    path = "/run/systemd/system/pyflannel.service.d/test.conf"
    node.write(path, f"[Service]\n{text}\n")
    node.run("systemctl", "daemon-reload")
    try:
        yield
    finally:
        node.run("rm", path)
        node.run("systemctl", "daemon-reload")


def active(node: Node) -> bool:
    """Whether the unit is up."""
    return node.show("ActiveState") == "active"


def test_the_package_brings_its_commands_pages_and_units(site):
    node = site.nodes[0]
    for command in COMMANDS:
        assert node.exists(f"/usr/bin/{command}")
    node.run("pyflannel", "--version")
    output = node.run("/usr/libexec/pyflannel/mk-docker-opts.sh", "-h", check=False)
    assert "COMBINED-KEY" in output
    for page in ("pyflanneld", "pyflannel", "pyflannel-mk-docker-opts"):
        assert node.exists(f"/usr/share/man/man8/{page}.8.gz")
    native = "from pyflannel.datapath.native import _native"
    node.run("/usr/lib/pyflannel/bin/python", "-c", native)


def test_systemd_finds_nothing_wrong_with_the_unit_and_rates_it_well(site):
    node = site.nodes[0]
    unit = "/usr/lib/systemd/system/pyflannel.service"
    assert node.run("systemd-analyze", "--man=no", "verify", unit) == ""
    rating = node.run("systemd-analyze", "--no-pager", "security", "pyflannel")
    level = re.search(r"Overall exposure level.*: ([0-9.]+)", rating)
    assert level
    assert float(level[1]) <= 2.0, rating


def test_network_managers_keep_off_the_device(site):
    """Even if other files match it: people have files for all devices, with low numbers."""
    node = site.nodes[0]
    node.run("systemctl", "start", "pyflannel")
    everything = "/etc/systemd/network/10-all.network"
    node.write(everything, "[Match]\nName=fl*\n[Network]\nAddress=10.99.0.1/24\n")
    try:
        node.run("systemctl", "start", "systemd-networkd")
        line = until(
            "networkd has looked at it",
            lambda: re.search(r"flannel\.1 .*(managed|config\w+)", node.run("networkctl", "list")),
        )
        assert line[1] == "managed"
        assert " unmanaged" in line[0]
        link = node.run("udevadm", "test-builtin", "net_setup_link", "/sys/class/net/flannel.1")
        assert "05-flannel.link is applied" in link
        assert "10.99." not in node.run("ip", "-br", "addr")
    finally:
        node.run("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd")
        node.run("rm", everything)


def test_what_is_set_up_at_boot_is_there(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    node.run("rm", "-r", "/run/flannel")
    node.run("systemd-tmpfiles", "--create", "pyflannel.conf")
    assert node.run("stat", "-c", "%a %U", "/run/flannel") == "755 root\n"
    node.run("sysctl", "-q", "net.ipv4.ip_forward=0")
    node.run("/usr/lib/systemd/systemd-sysctl", "80-pyflannel.conf")
    assert node.read("/proc/sys/net/ipv4/ip_forward") == "1\n"
    assert "br_netfilter" in node.run("systemd-analyze", "cat-config", "modules-load.d")


def test_start_returns_when_the_files_exist(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    node.run("rm", "-rf", "/run/docker_opts.env", "/run/flannel/subnet.env")
    node.run("systemctl", "start", "pyflannel")
    found = node.shell("cat /run/flannel/subnet.env /run/docker_opts.env")
    assert "FLANNEL_SUBNET=10.5." in found
    assert 'DOCKER_OPTS=" --bip=10.5.' in found
    assert 'DOCKER_NETWORK_OPTIONS=" --bip=10.5.' in found
    assert "running with subnet 10.5." in node.show("StatusText")


def test_with_a_full_disk_the_start_ends_when_the_files_could_be_written(site):
    """Packets flow meanwhile, the state directory may be as full, and docker waits."""
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    directories = ("/run/flannel", "/var/lib/pyflannel")
    size = 16 << 10  # room for the files, a page each
    with drop_in(node, "TimeoutStartSec=5"):
        for directory in directories:
            node.run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", directory)
            node.shell(f"head -c {size} /dev/zero >{directory}/ballast || :")
        try:
            node.run("systemctl", "start", "--no-block", "pyflannel")
            until("it says why", lambda: "ENOSPC" in node.show("StatusText"))
            assert node.show("ActiveState") == "activating"
            assert "UP" in node.run("ip", "-br", "link", "show", "flannel.1")
            begin = time.monotonic()
            while time.monotonic() - begin < 6.0:  # longer than the unit's time-out
                assert node.show("ActiveState") == "activating", node.journal()
                time.sleep(0.5)
            node.run("rm", "/run/flannel/ballast")
            until("it is up", lambda: active(node))
            assert node.subnet().startswith("10.5.")
            assert "running with subnet" in node.show("StatusText")
            assert node.show("NRestarts") == "0"
        finally:
            node.run("systemctl", "stop", "pyflannel")
            for directory in directories:
                node.run("umount", directory)


def test_in_the_sandbox_peers_are_probed_and_the_journal_can_be_asked_for_one(site):
    one, two = site.nodes[:2]
    for node in (one, two):
        start(node)
    ask = ("pyflannel", "status", "--json")
    until(
        "the peer answers",
        lambda: '"state": "up"' in one.run(*ask, check=False),
    )
    two.run("systemctl", "stop", "pyflannel")
    two.run("ip", "link", "del", "flannel.1")
    words = ("journalctl", "--no-pager", "-o", "cat", "-u", "pyflannel", "CODE=PF171")
    until("the failure is in the journal", lambda: "does not any more" in one.run(*words), 60)
    assert "PEER=10.5." in one.run(*words[:2], "-o", "export", "-u", "pyflannel", "CODE=PF171")
    warnings = one.run("journalctl", "--no-pager", "-p", "warning", "-o", "cat", "-u", "pyflannel")
    assert "does not any more" in warnings
    start(two)
    until("it answers again", lambda: '"state": "up"' in one.run(*ask, check=False), 60)


def test_stop_takes_less_than_two_seconds_and_is_no_failure(site):
    node = site.nodes[0]
    node.run("systemctl", "start", "pyflannel")
    begin = time.monotonic()
    node.run("systemctl", "stop", "pyflannel")
    assert time.monotonic() - begin < 2.0
    assert node.show("Result") == "success"
    assert node.exists("/run/flannel/subnet.env")


def test_a_reload_tells_whether_a_restart_would_work_and_leaves_the_daemon_alone(site):
    node = site.nodes[0]
    node.run("systemctl", "start", "pyflannel")
    pid = node.main_pid()
    node.run("systemctl", "reload", "pyflannel")
    try:
        node.write("/etc/default/pyflannel", "FLANNEL_OPTIONS=--iptables-resync=0\n")
        node.run("systemctl", "reload", "pyflannel", check=False)
        assert "iptables-resync" in node.journal()
        options = f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_IFACE=nosuch\n"
        node.write("/etc/default/pyflannel", options)
        assert "failed" in node.run("systemctl", "reload", "pyflannel", check=False)
        assert "nosuch" in node.journal()
    finally:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    assert active(node)
    assert node.main_pid() == pid


def test_a_wrong_option_fails_the_start_and_is_tried_again_once_it_is_corrected(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    try:
        node.write("/etc/default/pyflannel", "FLANNEL_OPTIONS=--iptables-resync=0\n")
        output = node.run("systemctl", "start", "pyflannel", check=False)
        assert "failed" in output
        assert node.show("ExecMainStatus") == "78"
        serious = node.run("journalctl", "-p", "err", "-o", "cat", "--no-pager", "-u", "pyflannel")
        said = [line for line in serious.splitlines() if line.startswith("pyflanneld: ")]
        assert any("-iptables-resync" in line for line in said), node.journal()
    finally:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    until("it has come up by itself", lambda: active(node))


def test_a_command_line_that_cannot_be_read_is_not_tried_again(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    try:
        node.write("/etc/default/pyflannel", "FLANNEL_OPTIONS=--no-such-flag\n")
        node.run("systemctl", "start", "pyflannel", check=False)
        assert node.show("ActiveState") == "failed"
        assert node.show("ExecMainStatus") == "2"
        assert node.show("NRestarts") == "0"
    finally:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        node.run("systemctl", "reset-failed", "pyflannel")


def doctor(node: Node) -> set[str]:
    """The codes of what the doctor finds."""
    report = json.loads(node.run("pyflannel", "doctor", "--json", check=False))
    return {one["code"] for one in report["findings"]}


def test_the_doctor_tells_a_unit_that_is_not_enabled_or_has_failed(site):
    node = site.nodes[0]
    node.run("systemctl", "enable", "pyflannel")
    start(node)
    before = doctor(node)
    node.run("systemctl", "disable", "pyflannel")
    assert doctor(node) - before == {"PF231"}
    node.run("systemctl", "enable", "pyflannel")
    assert doctor(node) == before
    node.run("systemctl", "stop", "pyflannel")
    stopped = doctor(node)
    try:
        node.write("/etc/default/pyflannel", "FLANNEL_OPTIONS=--no-such-flag\n")
        node.run("systemctl", "start", "pyflannel", check=False)
        assert doctor(node) - stopped == {"PF231"}
    finally:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        node.run("systemctl", "reset-failed", "pyflannel")


def test_the_doctor_tells_a_clock_that_is_not_synchronised(site):
    """The nodes have this machine's clock, which is not theirs to set."""
    node = site.nodes[0]
    start(node)
    line = node.run("timedatectl", "show", "--property=NTPSynchronized", "--value").strip()
    assert line in {"yes", "no"}
    assert ("PF232" in doctor(node)) is (line == "no")


def test_the_names_of_centos_are_understood_and_a_contradiction_is_named(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    try:
        node.write(
            "/etc/sysconfig/flanneld",
            f'FLANNEL_ETCD="{ETCD}"\nFLANNEL_ETCD_KEY="/coreos.com/network"\n'
            'FLANNEL_OPTIONS="-iface=eth0 -ip-masq"\n',
        )
        node.write("/etc/default/pyflannel", "FLANNELD_ETCD_ENDPOINTS=http://192.0.2.99:2379\n")
        node.run("systemctl", "start", "pyflannel")
        assert "FLANNEL_IPMASQ=true" in node.read("/run/flannel/subnet.env")
        assert "contradict each other; FLANNEL_ETCD counts" in node.journal()
    finally:
        node.run("rm", "/etc/sysconfig/flanneld")
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        node.run("systemctl", "restart", "pyflannel")


def test_with_etcd_late_nothing_fails_and_it_comes_up_by_itself(site):
    node = site.nodes[0]
    node.run("systemctl", "stop", "pyflannel")
    with drop_in(node, "TimeoutStartSec=5"):
        site.stop_etcd()
        node.run("systemctl", "start", "--no-block", "pyflannel")
        until("it is starting", lambda: node.show("ActiveState") == "activating")
        begin = time.monotonic()
        while time.monotonic() - begin < LATE_S:
            assert node.show("ActiveState") == "activating", node.journal()
            time.sleep(0.5)
        assert "etcd" in node.show("StatusText")
        site.start_etcd()
        until("it is up", lambda: active(node), 20)
    assert node.show("NRestarts") == "0"
    assert "timeout" not in node.show("Result")


@pytest.fixture(scope="class", params=["vxlan", "host-gw", "udp", "udp native", "udp python"])
def backend(site, request):
    """Each backend in turn, running on both nodes; with a data path, for one that has several."""
    name, _, datapath = request.param.partition(" ")
    configure(site, name)
    for node in site.nodes:
        options = f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_DATAPATH={datapath}\n"
        node.write("/etc/default/pyflannel", options)
        start(node)
    yield request.param
    for node in site.nodes:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")


class TestUnderTraffic:
    """What a hundred pings a second across the overlay see of it."""

    def test_a_restart_loses_no_packet(self, site, backend):
        """Backend udp neither: its eBPF programs are pinned, else systemd keeps its descriptors."""
        a, b = site.nodes
        with pinging(a, b) as counted:
            b.run("systemctl", "restart", "pyflannel")
        ((sent, received),) = counted
        print(f"restart, {backend}: {sent - received} of {sent} pings lost")
        assert sent > 50
        assert received == sent

    def test_after_kill_9_it_is_restarted_with_the_same_subnet(self, site, backend):
        a, b = site.nodes
        subnet, pid = b.subnet(), b.main_pid()
        with pinging(a, b) as counted:
            killed = float(b.run("sh", "-c", f"kill -9 {pid}; date +%s.%N"))
            until("another daemon is up", lambda: active(b) and b.main_pid() not in {0, pid})
        ((sent, received),) = counted
        print(f"kill -9, {backend}: {sent - received} of {sent} pings lost")
        assert b.subnet() == subnet
        if backend in {"udp native", "udp python"}:
            # A process that carries packets may die with some in its hands: all that it has just
            # read, where it had to wait for a processor. What comes after it waits in a queue.
            output = a.run("cat", PINGS)
            before = lost_after(output, 0.0) - lost_after(output, killed)
            assert sent - received <= before
        else:
            assert received == sent


def test_an_upgrade_keeps_config_subnet_and_traffic(site, package):
    configure(site, "vxlan")
    for node in site.nodes:
        start(node)
    a, b = site.nodes
    config = f"# mine\nFLANNELD_ETCD_ENDPOINTS={ETCD}\n"
    b.write("/etc/default/pyflannel", config)
    subnet, pid = b.subnet(), b.main_pid()
    with pinging(a, b) as counted:
        b.install(package)
    ((sent, received),) = counted
    assert received == sent
    assert b.read("/etc/default/pyflannel") == config
    assert active(b)
    assert b.main_pid() != pid
    assert b.subnet() == subnet


def test_what_systemd_keeps_of_backend_udp_is_used_again_and_ends_with_a_stop(site):
    """With any data path or backend of the next daemon."""
    configure(site, "udp")
    node = site.nodes[0]
    index = "cat /sys/class/net/flannel0/ifindex"

    def restart(datapath, chosen):
        options = f"FLANNELD_ETCD_ENDPOINTS={ETCD}\nFLANNELD_DATAPATH={datapath}\n"
        node.write("/etc/default/pyflannel", options)
        node.run("systemctl", "restart", "pyflannel")
        assert f'"{chosen}"' in node.run("pyflannel", "status", "--json")
        assert int(node.show("NFileDescriptorStore")) == (0 if chosen == "ebpf" else 2)

    try:
        restart("native", "native")
        before = node.shell(index)
        restart("native", "native")
        assert node.shell(index) == before
        for other in ("python", "native", "ebpf", "native", "python", "ebpf"):
            restart(other, other)
        restart("native", "native")
        node.run("systemctl", "stop", "pyflannel")
        until("the device is gone", lambda: not node.exists("/sys/class/net/flannel0"))
        restart("native", "native")
        node.run("ip", "link", "del", "flannel0")
        until("it is made anew", lambda: node.exists("/sys/class/net/flannel0"))
        until("systemd has both", lambda: node.show("NFileDescriptorStore") == "2")
        restart("native", "native")
        file = site.directory / "config.json"
        file.write_text(json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}))
        site.pyflannel("config", "set", file)
        node.run("systemctl", "restart", "pyflannel")
        assert node.exists("/sys/class/net/flannel.1")
        until("nothing is left", lambda: not node.exists("/sys/class/net/flannel0"))
        assert node.show("NFileDescriptorStore") == "0"
    finally:
        node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
        configure(site, "vxlan")


def test_a_frozen_daemon_is_killed_by_the_watchdog_and_started_again(site):
    node = site.nodes[0]
    with drop_in(node, "WatchdogSec=2"):
        node.run("systemctl", "restart", "pyflannel")
        subnet, pid = node.subnet(), node.main_pid()
        node.run("kill", "-STOP", str(pid))
        until("another daemon", lambda: active(node) and node.main_pid() not in {0, pid}, 30)
    assert "watchdog" in node.journal().lower()
    assert node.subnet() == subnet


def test_after_a_reboot_the_node_has_its_subnet_again(site):
    node = site.nodes[0]
    node.run("systemctl", "enable", "pyflannel")
    node.run("systemctl", "start", "pyflannel")
    subnet = node.subnet()
    node.reboot()
    until("the daemon is up after the boot", lambda: active(node), 30)
    assert node.subnet() == subnet
    assert node.read("/proc/sys/net/ipv4/ip_forward").strip() == "1"


def test_removal_leaves_nothing_behind(site, package):
    node = site.nodes[1]
    node.run("systemctl", "start", "pyflannel")
    node.run("dpkg", "--purge", "pyflannel")
    left = node.shell(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /var/lib/docker \\) -prune"
        " -o -name '*flannel*' -print"
    )
    left = "\n".join(x for x in left.splitlines() if not x.startswith("/var/tmp/"))
    assert left == ""
    assert "flannel" not in node.run("ip", "link")
    assert "10.5." not in node.run("ip", "route", "show", "proto", "boot")
    assert "flannel" not in node.run("nft", "list", "ruleset", check=False).lower()
    node.install(package)
    node.write("/etc/default/pyflannel", f"FLANNELD_ETCD_ENDPOINTS={ETCD}\n")
    node.run("systemctl", "start", "pyflannel")
