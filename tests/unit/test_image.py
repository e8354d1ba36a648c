"""The container image's own parts: what a package says, and the archive of a tree."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

import pyflannel
from tools import debs, image, sbom

DATE = 1_750_000_000
CONTROL = """Package: iptables
Version: 1.8.9-2
Architecture: amd64
Depends: libip4tc2 (= 1.8.9-2), netbase
Description: administration tools for packet filtering
 The iptables command.
 .
 And others.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    for name in ("usr/bin", "etc", "tmp"):
        (place / name).mkdir(parents=True)
    (place / "tmp").chmod(0o1777)
    (place / "usr/bin/tool").write_text("#!/bin/sh\n")
    (place / "usr/bin/tool").chmod(0o4755)
    os.link(place / "usr/bin/tool", place / "usr/bin/twin")
    (place / "bin").symlink_to("usr/bin")
    (place / "etc/passwd").write_text("root\n")
    return place


def test_fields_of_a_package_are_kept_with_the_lines_that_go_on():
    fields = image.control(CONTROL)
    assert fields["Version"] == "1.8.9-2"
    assert fields["Description"].splitlines()[-1] == " And others."
    assert sbom.debian(fields, "arm64")["purl"] == "pkg:deb/debian/iptables@1.8.9-2?arch=amd64"


def test_what_apt_would_install_is_read():
    said = (
        "NOTE: This is only a simulation!\n"
        "Inst libc6 (2.36-9+deb12u14 Debian:12/stable [amd64])\n"
        "Inst busybox (1:1.35.0-4 Debian:12/stable, Security:12/stable-security [amd64])\n"
        "Conf libc6 (2.36-9+deb12u14 Debian:12/stable [amd64])\n"
    )
    assert debs.archives(said) == [
        "busybox_1%3a1.35.0-4_amd64.deb",
        "libc6_2.36-9+deb12u14_amd64.deb",
    ]


def test_a_layer_is_sorted_and_of_one_owner_and_date_for_any_tree(tree):
    plain = image.layer(tree, DATE)
    os.utime(tree / "etc/passwd", (1, 1))
    assert image.layer(tree, DATE) == plain
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        entries = archive.getmembers()
    assert [entry.name for entry in entries] == [
        *("bin", "etc", "etc/passwd", "tmp", "usr", "usr/bin", "usr/bin/tool", "usr/bin/twin")
    ]
    assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in entries} == {(0, 0, "", "", DATE)}
    modes = {entry.name: entry.mode for entry in entries}
    assert modes["usr/bin/tool"] == 0o755, "no program of the image changes its user"
    assert modes["tmp"] == 0o1777
    # One cannot be kept and the other thrown away.
    assert all(entry.isreg() for entry in entries if entry.name.startswith("usr/bin/t"))
    assert next(entry for entry in entries if entry.name == "bin").linkname == "usr/bin"


def test_the_archive_is_what_a_runtime_loads(tree, tmp_path):
    target = tmp_path / "image.tar"
    image.archive(tree, target, "arm64", DATE)
    with tarfile.open(target) as archive:
        read = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    (manifest,) = json.loads(read["manifest.json"])
    assert manifest["RepoTags"] == [f"pyflannel:{pyflannel.__version__}"]
    config = json.loads(read[manifest["Config"]])
    assert (config["architecture"], config["os"]) == ("arm64", "linux")
    assert config["config"]["Entrypoint"] == ["/opt/bin/flanneld"]
    (layer,) = manifest["Layers"]
    assert layer == hashlib.sha256(read[layer]).hexdigest() + ".tar.gz"
    with tarfile.open(fileobj=io.BytesIO(read[layer])) as unpacked:
        assert unpacked.getmember("etc/passwd").size == 5
    plain = hashlib.sha256(image.layer(tree, DATE)).hexdigest()
    assert config["rootfs"]["diff_ids"] == [f"sha256:{plain}"]


def test_of_the_documentation_licences_stay(tree):
    docs = tree / "usr/share/doc"
    for name in ("one/copyright", "one/README", "two/NEWS.gz", "three/examples/x"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).touch()
    (docs / "four").symlink_to("one")
    (tree / "usr/share/man/man8").mkdir(parents=True)
    image.trim(tree)
    assert sorted(str(p.relative_to(docs)) for p in docs.rglob("*")) == [
        *("four", "one", "one/copyright")
    ]
    assert not (tree / "usr/share/man").exists()


def test_the_image_s_own_scripts_may_be_run():
    for name in ("flanneld", "iptables", "iptables-variant"):
        assert (image.PARTS / name).stat().st_mode & stat.S_IXUSR
