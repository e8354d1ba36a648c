"""The container image: built twice the same, whole, small, and in flannel's place with docker.

The commands are those of flannel's own manifest, in containers with the rights that it gives them
and a read-only root. docker runs on booted nodes, the API server beside them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyflannel
from pyflannel.core.cni import CONFLIST
from tests.support import arm64
from tests.support.machine import HUB, ROOT, Node, Site, pinging, run, until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(1800)]

MOST_BYTES = 120_000_000
BUILD_S = 1500
EPOCH = "1750000000"
IMAGE = f"pyflannel:{pyflannel.__version__}"
API = f"http://{HUB}:8080"
PAGE = (ROOT / "docs/kubernetes.md").read_text()
(IMPORT,) = re.findall(r"^node1# (ctr .*\.tar)$", PAGE, re.MULTILINE)
(LOAD,) = re.findall(r"`(docker load -i)`", PAGE)
"""As the page has an operator do it."""
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]")
CONFIG = {"Network": "10.244.0.0/16", "EnableNFTables": False, "Backend": {"Type": "vxlan"}}


def build(target: Path, machine: str, **environment: str) -> Path:
    command = (sys.executable, "-m", "tools.image", machine, str(target))
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH, **environment},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(done.stdout.splitlines()[-1])


def unpack(image: Path, place: Path) -> Path:
    place.mkdir(exist_ok=True)
    script = 'tar -xO -f "$1" --wildcards "*.tar.gz" | tar -xz -C "$2"'
    run("sh", "-ec", script, "sh", image, place, timeout=300)
    return place


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Path]:
    """For this machine."""
    place = tmp_path_factory.mktemp("image")
    yield build(place, "amd64")
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def tree(image, tmp_path_factory) -> Iterator[Path]:
    """The same, unpacked."""
    place = tmp_path_factory.mktemp("tree")
    yield unpack(image, place)
    shutil.rmtree(place)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_built_twice_it_is_the_same_bytes(image, tmp_path):
    again = build(tmp_path, "amd64", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    assert again.name == image.name
    assert digest(again) == digest(image)
    again.unlink()


def elves(tree: Path) -> Iterator[Path]:
    """Programs and libraries."""
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def test_it_is_small_and_whole_and_names_no_place_of_this_machine(tree):
    files = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    there = {path.name for path in tree.rglob("*.so*")}
    for path in elves(tree):
        named = NEEDED.findall(run("readelf", "--wide", "--dynamic", path))
        assert set(named) <= there, path
    for path in tree.rglob("*"):
        if path.is_symlink() and not str(path.readlink()).startswith(("/proc", "../proc")):
            target = path.readlink()
            inside = (
                tree / str(target).lstrip("/") if target.is_absolute() else path.parent / target
            )
            assert inside.exists() or inside.is_symlink(), path
    ours = str(ROOT).encode()
    assert [path for path in files if ours in path.read_bytes()] == []


def test_what_it_is_made_of_stands_in_it(tree):
    bill = json.loads((tree / "usr/share/doc/pyflannel/sbom.cdx.json").read_text())
    assert bill["metadata"]["component"]["name"] == "pyflannel"
    named = {part["name"]: part for part in bill["components"]}
    for library in ("aiohttp", "pyroute2", "pyyaml", "uvloop"):
        assert named[library]["purl"].startswith(f"pkg:pypi/{library}@")
    debian = {path.name for path in (tree / "var/lib/dpkg/status.d").iterdir()}
    assert {"libc6", "python3-minimal", "iptables", "busybox"} <= debian
    assert {name for name, part in named.items() if "pkg:deb" in part["purl"]} == debian
    for package in debian:
        licence = tree / f"usr/share/doc/{package}/copyright"
        assert licence.exists() or licence.parent.is_symlink(), package


# In flannel's place


def start_api(site: Site) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", f"{site.name}hub", sys.executable),
            *("-m", "tests.support.kubeserver", HUB, "8080"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _answers(site: Site) -> bool:
    try:
        return "nodes" in control(site)
    except AssertionError:
        return False


def control(site: Site, call: str = "", *args: object) -> dict:
    ask = (
        "import sys, urllib.request as r;"
        f"print(r.urlopen('{API}/control', sys.argv[1].encode(), timeout=10).read().decode())"
    )
    order = json.dumps({"call": call, "args": args})
    return json.loads(site.in_hub(sys.executable, "-c", ask, order))


def flannel(*words: str, of: str, extra: str = "") -> str:
    """`docker run` as flannel's manifest has it, with a read-only root."""
    rights = "--read-only --network host --cap-drop ALL --cap-add NET_ADMIN --cap-add NET_RAW"
    mounts = " ".join(
        f"-v {path}:{path}" for path in ("/run/flannel", "/etc/kube-flannel", "/run/xtables.lock")
    )
    pod = f"-e NODE_NAME={of} -e EVENT_QUEUE_DEPTH=5000 -e CONT_WHEN_CACHE_NOT_READY=false"
    entry, *arguments = words
    return f"docker run {rights} {mounts} {pod} {extra} --entrypoint {entry} {IMAGE} " + " ".join(
        arguments
    )


@pytest.fixture(scope="module")
def cluster(image) -> Iterator[tuple[Site, list[Node]]]:
    """Two nodes on which flannel's manifest has been applied, but for the image's name."""
    with Site("docker") as site:
        api = start_api(site)
        try:
            until("the API server answers", lambda: _answers(site), 20)
            nodes = [site.add_node() for _ in range(2)]
            for number, node in enumerate(nodes, 1):
                shutil.copy(image, node.root / "var/tmp")
                node.shell(f"cd /var/tmp; {LOAD} {IMPORT.split()[-1]}", timeout=180)
                node.write("/etc/kube-flannel/net-conf.json", json.dumps(CONFIG))
                node.write("/etc/kube-flannel/cni-conf.json", CONFLIST.decode())
                node.shell("touch /run/xtables.lock; mkdir -p /run/flannel /etc/cni/net.d")
                control(site, "create", f"n{number}", f"10.244.{number}.0/24")
                start(node, number)
            for node in nodes:
                until("subnet.env", lambda n=node: n.exists("/run/flannel/subnet.env"), 60)
                node.bridge()
            yield site, nodes
        finally:
            api.terminate()
            api.wait(20)


def start(node: Node, number: int) -> None:
    words = ("/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081")
    extra = "-d --name flannel"
    node.shell(flannel(*words, f"--kube-api-url={API}", of=f"n{number}", extra=extra))


def test_the_manifest_s_commands_work_with_a_read_only_root(cluster):
    site, (first, second) = cluster
    first.shell(
        "docker run --rm --read-only -v /etc/cni/net.d:/etc/cni/net.d"
        " -v /etc/kube-flannel:/etc/kube-flannel/ --entrypoint /opt/bin/install-conf"
        f" {IMAGE} /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist"
    )
    assert first.read("/etc/cni/net.d/10-flannel.conflist") == CONFLIST.decode()
    for path in ("healthz", "readyz"):
        ask = f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:8081/{path}').status)"
        until(path, lambda a=ask: "200" in first.run("python3", "-c", a, check=False), 20)
    status = json.loads(first.run("docker", "exec", "flannel", "pyflannel", "status", "--json"))
    assert status["problems"] == []
    assert status["store"]["kind"] == "kubernetes"
    annotations = control(site)["annotations"]
    assert annotations["n1"]["backend-type"] == "vxlan"
    with pinging(first, second) as result:
        # A rolling update of one node: the former container goes, the next one comes.
        first.run("docker", "rm", "-f", "-t", "5", "flannel", check=False)
        first.run("docker", "rm", "-f", "flannel", check=False)
        start(first, 1)
        until("a daemon that is ready", lambda: _ready(first), 60)
    ((sent, received),) = result
    assert sent == received
    assert control(site)["annotations"] == annotations


def _ready(node: Node) -> bool:
    said = node.run("docker", "exec", "flannel", "pyflannel", "status", "--json", check=False)
    return '"ready": true' in said


def test_a_shell_a_script_and_the_tools_of_the_image_work(cluster):
    _, (first, _) = cluster

    def inside(script: str) -> str:
        return first.run("docker", "exec", "flannel", "sh", "-ec", script).strip()

    subnet = first.subnet()
    assert inside("source /run/flannel/subnet.env; echo $FLANNEL_SUBNET") == subnet
    options = inside("/opt/bin/mk-docker-opts.sh -d /run/flannel/docker && cat /run/flannel/docker")
    assert f"--bip={subnet}" in options
    assert "flannel.1" in inside("ip -o link")
    assert "Debian" in inside("cat /etc/os-release")
    lookup = "import socket; print(socket.gethostbyname('localhost'))"
    assert inside(f'python3 -c "{lookup}"') == "127.0.0.1", "/etc/hosts is asked"
    assert "FLANNEL-POSTRTG" in inside("iptables -t nat -S")
    assert "flannel.1" in inside("pyflannel doctor || true; ip link show flannel.1")
    assert inside("touch /etc/x 2>/dev/null || echo read-only") == "read-only"


def test_iptables_is_the_variant_in_which_the_node_has_its_rules(cluster):
    _, (_, second) = cluster
    variant = "/usr/libexec/pyflannel/iptables-variant"

    def inside(*command: str) -> str:
        rights = "--rm --network host --cap-add NET_ADMIN --cap-add NET_RAW"
        words = f"docker run {rights} --entrypoint {command[0]} {IMAGE} {' '.join(command[1:])}"
        return second.shell(words).strip()

    assert inside(variant) == "nft"
    assert "nf_tables" in inside("iptables", "--version")
    second.run("iptables-legacy", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT")
    try:
        assert inside(variant) == "legacy"
        assert "legacy" in inside("ip6tables-save", "--version")
        # kubelet's chain in the other one goes first, as in flannel's image.
        second.run("iptables-nft", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
        assert inside(variant) == "nft"
    finally:
        second.run("iptables-nft", "-t", "mangle", "-X", "KUBE-KUBELET-CANARY", check=False)
        second.run("iptables-legacy", "-t", "mangle", "-X", "KUBE-IPTABLES-HINT")


def test_containerd_takes_the_same_archive(cluster):
    _, (first, _) = cluster
    first.shell("mkdir -p /var/lib/docker/ctr")
    # Its storage cannot lie on an overlay, which the node's root is.
    first.write("/run/ctr.toml", 'version = 2\nroot = "/var/lib/docker/ctr"\nstate = "/run/ctr"\n')
    words = "--config /run/ctr.toml --address /run/ctr.sock"
    first.shell(f"containerd {words} >/run/ctr.log 2>&1 & echo $! >/run/ctr.pid")
    ours = "ctr --address /run/ctr.sock"
    ctr = f"{ours} -n k8s.io"
    try:
        until("containerd", lambda: "Server" in first.shell(f"{ctr} version", check=False), 30)
        first.shell(f"cd /var/tmp; {IMPORT.replace('ctr', ours, 1)}", timeout=180)
        names = first.shell(f"{ctr} image list -q").split()
        (name,) = [each for each in names if each.endswith(f"/{IMAGE}")]
        first.shell(f"{ctr} image mount {name} /mnt")
        assert "flanneld install-conf" in " ".join(first.run("ls", "/mnt/opt/bin").split())
        first.run("umount", "/mnt")
    finally:
        first.shell("kill $(cat /run/ctr.pid)", check=False)


# Another machine's


def test_for_arm64_the_same_command_makes_one_whose_interpreter_runs_it(tmp_path):
    """As far as QEMU's user-mode emulation goes: the command line, and the modules of a start."""
    tree = unpack(build(tmp_path, "arm64"), tmp_path / "tree")
    for path in elves(tree):
        machine = "BPF" if path.suffix == ".o" else "AArch64"
        assert machine in run("readelf", "--file-header", path), path
    emulated = (arm64.EMULATOR, "-L", tree, tree / "usr/bin/python3", "-B", "-P")
    said = run(*emulated, tree / "usr/bin/pyflanneld", "--version", timeout=120)
    assert f"pyflanneld {pyflannel.__version__}" in said
    script = (
        "import platform; from pyflannel.datapath import native; import pyflannel.daemon, uvloop;"
        "import aiohttp, yaml; print(platform.machine(), native.probe())"
    )
    assert run(*emulated, "-c", script, timeout=240).startswith("aarch64 Capabilities(")
    shutil.rmtree(tmp_path)
