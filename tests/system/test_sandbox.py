"""The unit's sandbox, from inside: a hostile process in the daemon's place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support import intruder
from tests.support.machine import Site, until

pytestmark = [pytest.mark.root, pytest.mark.slow]

UNIT = "/usr/lib/systemd/system/pyflannel.service"
REPORT = "/var/lib/pyflannel/report.json"
PROGRAM = "/usr/local/lib/intruder.py"
NOT_OF_THE_SANDBOX = ("Type", "ExecStart", "ExecReload", "WatchdogSec", "Restart", "RestartSec")
"""Settings about how the daemon is run; all others are what is tested."""
LISTENER = """
import os, socket, time
kept = []
for path in ("/run/docker.sock", "/run/containerd/containerd.sock", "/run/other.sock",
             "/var/lib/lxd/unix.socket"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(path)
    kept[-1].listen()
open("/run/listening", "w").close()
time.sleep(3600)
"""
PREPARE = """
mkdir -p /etc/ssh /var/lib/docker /root /run/netns
for file in /etc/ssh/key /var/lib/docker/secret /root/secret; do echo secret >$file; done
ip netns add other
systemd-run --quiet --unit=listener python3 /usr/local/lib/listener.py
"""
PIN = """
import ctypes, struct
libc = ctypes.CDLL(None)
attr = ctypes.create_string_buffer(struct.pack("<5I", 2, 4, 4, 1, 0), 128)
fd = libc.syscall(321, 0, attr, 128)
path = ctypes.create_string_buffer(b"/sys/fs/bpf/foreign")
attr = ctypes.create_string_buffer(struct.pack("<QII", ctypes.addressof(path), fd, 0), 128)
assert libc.syscall(321, 6, attr, 128) == 0
"""
"""Pins an array of one element, as another program on the node would."""


@pytest.fixture(scope="module")
def node(package):
    """A node with what an attacker would like to reach."""
    with Site() as site:
        node = site.add_node()
        node.install(package)
        node.write(PROGRAM, Path(intruder.__file__).read_text())
        node.write("/usr/local/lib/listener.py", LISTENER)
        node.shell(PREPARE)
        node.run("python3", "-c", PIN)
        until("the listener is up", lambda: node.exists("/run/listening"))
        yield node


def other_process(node):
    """One of the same user, without rights of its own that would protect it."""
    return node.main_pid("listener")


def confined(node):
    """What the hostile process could do in the daemon's place."""
    lines = [
        line
        for line in node.read(UNIT).splitlines()
        if line.partition("=")[0] not in NOT_OF_THE_SANDBOX
    ]
    lines.insert(
        lines.index("[Service]") + 1,
        f"Type=oneshot\nExecStart=/usr/bin/python3 {PROGRAM} {other_process(node)}",
    )
    node.write("/run/systemd/system/hostile.service", "\n".join(lines) + "\n")
    node.run("systemctl", "daemon-reload")
    node.run("rm", "-f", REPORT)
    said = node.run("systemctl", "start", "hostile", check=False)
    assert node.exists(REPORT), said + node.journal("hostile")
    return json.loads(node.read(REPORT))


@pytest.fixture(scope="module")
def report(node):
    return confined(node)


def test_outside_of_the_sandbox_everything_that_is_tried_works(node):
    """Else it would be no news that it does not work inside."""
    node.run("mkdir", "-p", "/var/lib/pyflannel", "/run/flannel")
    node.run("python3", PROGRAM, str(other_process(node)))
    found = json.loads(node.read(REPORT))
    failed = {k: v for part in found.values() for k, v in part.items() if v != "worked"}
    # A node is a container itself, whose own limits come first.
    assert set(failed) <= {"write core_pattern", "open the kernel's log", "make a device"}, failed


def test_no_escape_works(report):
    assert len(report["escapes"]) > 30
    worked = [name for name, answer in report["escapes"].items() if answer == "worked"]
    assert worked == [], {name: report["escapes"][name] for name in worked}


def test_what_the_daemon_needs_works(report):
    assert set(report["needs"].values()) == {"worked"}, report["needs"]


def test_systemd_rates_it_two_at_most(node):
    rating = node.run("systemd-analyze", "--no-pager", "security", "pyflannel")
    level = re.search(r"Overall exposure level.*: ([0-9.]+)", rating)
    assert level
    assert float(level[1]) <= 2.0, rating


def test_dockers_options_are_readable_where_they_always_were(node):
    """Also after an upgrade from a release that wrote them there, and after a clean-up."""
    node.run("systemctl", "stop", "hostile")
    for before in (
        "rm -f /run/docker_opts.env",
        "echo A=1 >/run/.new; mv /run/.new /run/docker_opts.env",
    ):
        node.shell(f"{before}; rm -f /run/flannel/docker_opts.env")
        confined(node)
        assert node.run("readlink", "/run/docker_opts.env") == "flannel/docker_opts.env\n"
    assert node.read("/run/docker_opts.env") == "A=1\n"
    confined(node)
    assert node.read("/run/docker_opts.env") == "A=1\n"
