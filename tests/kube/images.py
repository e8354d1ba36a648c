"""The images that nodes of a real cluster run, and CNI's plugins: nothing is pulled.

They are made of our own tree, of busybox, and of what is given from outside:
`PYFLANNEL_UPSTREAM_CNI` names flannel's CNI plugin, `PYFLANNEL_UPSTREAM` its daemon and
`PYFLANNEL_UPSTREAM_MANIFEST` its manifest.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from tests.support.machine import ROOT, run
from tools import debs, image, wheels

PLUGINS: Final = ("bridge", "host-local", "loopback", "portmap")
"""Those that are not flannel's."""
APPLETS: Final = ("cp", "httpd", "ls", "sh", "sleep", "wget")
DATE: Final = 1_750_000_000
TOKEN: Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"
"""Where a pod has what it shows the API server."""
TOKEN_S: Final = 600
NEXT: Final = "pyflannel:next"
"""Ours under another name, for an update."""


def missing(*suffixes: str) -> str:
    """The first variable `PYFLANNEL_UPSTREAM…` of those that is not set; empty if all are."""
    names = [f"PYFLANNEL_UPSTREAM{suffix}" for suffix in suffixes]
    return next((name for name in names if not os.environ.get(name)), "")


@contextlib.contextmanager
def images() -> Iterator[Path]:
    """A directory with an archive of each image, and the plugins below `cni`."""
    with tempfile.TemporaryDirectory(prefix="pyflannel-images-", dir="/var/tmp") as name:
        place = Path(name)
        cache = wheels.cache_folder() / f"debs-{debs.release()}-amd64"
        wanted = ("busybox-static", "containernetworking-plugins")
        for package in debs.fetch(wanted, "amd64", cache):
            if package.name.startswith(wanted):
                run("dpkg-deb", "-x", package, place / "debian")
        (place / "cni").mkdir()
        for plugin in PLUGINS:
            shutil.copy(place / "debian/usr/lib/cni" / plugin, place / "cni")
        tree = _tree(place / "tree", place / "debian/bin/busybox")
        _archive(place, tree, "busybox:test")
        _archive(place, tree, "pause:test", "sleep", "1000000000")
        shutil.copy(os.environ["PYFLANNEL_UPSTREAM_CNI"], tree / "flannel")
        (tree / "flannel").chmod(0o755)
        for tag in sorted(named_in(manifest()) | named_in(upstream_manifest())):
            if "cni-plugin" in tag:
                _archive(place, tree, tag)
        _daemons(place)
        yield place


def _tree(place: Path, busybox: Path) -> Path:
    (place / "bin").mkdir(parents=True)
    shutil.copy(busybox, place / "bin")
    for name in APPLETS:
        (place / "bin" / name).symlink_to("busybox")
    return place


def _archive(place: Path, tree: Path, tag: str, *command: str) -> None:
    config = {"Env": ["PATH=/bin"], "Cmd": list(command) or ["sh"]}
    target = place / f"{tag.replace(':', '-')}.tar"
    image.archive(tree, target, "amd64", DATE, tag=tag, config=config, level=1)


def _daemons(place: Path) -> None:
    """Ours under two tags, and flannel's daemon in the tree of ours, if it is given."""
    built = image.build("amd64", place)
    tree = place / "own"
    tree.mkdir()
    run("sh", "-ec", 'tar -xO -f "$1" --wildcards "*.tar.gz" | tar -xz -C "$2"', "sh", built, tree)
    image.archive(tree, place / "next.tar", "amd64", DATE, tag=NEXT, level=1)
    if upstream := os.environ.get("PYFLANNEL_UPSTREAM"):
        shutil.copy(upstream, tree / "opt/bin/flanneld")
        for tag in named_in(upstream_manifest()):
            if "cni-plugin" not in tag:
                image.archive(tree, place / "upstream.tar", "amd64", DATE, tag=tag, level=1)
    shutil.rmtree(tree)


def manifest() -> str:
    """Ours, as it is."""
    return (ROOT / "kubernetes/pyflannel.yaml").read_text()


def with_short_tokens(text: str) -> str:
    """That manifest with tokens that the daemon has for ten minutes, the least that there is."""
    objects = list(yaml.safe_load_all(text))
    (pod,) = (made["spec"]["template"]["spec"] for made in objects if made["kind"] == "DaemonSet")
    # What is mounted otherwise is the same, but for an hour.
    pod["automountServiceAccountToken"] = False
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_S}}
    authority = {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [token, {"configMap": authority}]
    pod["volumes"].append({"name": "token", "projected": {"sources": sources}})
    mount = {"name": "token", "mountPath": str(Path(TOKEN).parent), "readOnly": True}
    pod["containers"][0]["volumeMounts"].append(mount)
    return yaml.safe_dump_all(objects)


def upstream_manifest() -> str:
    """flannel's, with its images named without a registry; empty if it is not given."""
    path = os.environ.get("PYFLANNEL_UPSTREAM_MANIFEST")
    if not path:
        return ""
    return re.sub(r"(image: )\S*/([^/\s]+)", r"\1\2", Path(path).read_text())


def named_in(text: str) -> set[str]:
    """The images that a manifest names."""
    return set(re.findall(r"^\s*image: (\S+)$", text, re.MULTILINE))


def daemon_of(text: str) -> str:
    """The image of the daemon that a manifest names."""
    (name,) = {each for each in named_in(text) if "cni-plugin" not in each}
    return name
