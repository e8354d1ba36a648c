"""Builds the container image: Debian's packages and our wheel, nothing else, as one layer.

    python -m tools.image [amd64|arm64] [DIRECTORY]        default: this machine, dist

makes `pyflannel-image-VERSION-ARCH.tar`, which `docker load`, `ctr image import` and `podman load`
take. No base image is pulled and no program of the tree is run, so any machine serves both
architectures, and no root is needed. The same sources and the same packages give the same bytes.

The tree has Debian's layout and no package manager. What a package's scripts would do (the list of
certificates, the compiled modules, the interpreter's name) is done here; what only installing and
reading need is left out. Scanners find the packages in `/var/lib/dpkg/status.d`, people find all of
it in `/usr/share/doc/pyflannel/sbom.cdx.json`.
"""

from __future__ import annotations

import configparser
import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pyflannel
from tools import debs, sbom, wheels

ROOT: Final = Path(__file__).resolve().parents[1]
PARTS: Final = ROOT / "packaging" / "container"
MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""The kernel's word for each of Debian's."""
PACKAGES: Final = (
    "python3",
    "iptables",         # both variants
    "nftables",         # libnftables, and nft for those who look
    "iproute2",         # commands of backend extension, `pyflannel trace`
    "busybox",          # a shell that knows `source`, and what people type in a pod
    "ca-certificates",  # etcd behind a certificate of a public authority
    "base-files",       # which Debian this is
    "libstdc++6",       # a module of aiohttp's
    "tzdata",           # log lines in the time zone of TZ
)  # fmt: skip
LEFT_OUT: Final = frozenset(
    {
        # For packages' own installation.
        *("debconf", "dpkg", "tar", "openssl", "mawk", "perl-base", "libc-bin"),
        *("libacl1", "libzstd1", "install-info"),
        # capsh, of which iproute2's own scripts make use.
        "libcap2-bin",
        # File types, for mail and browsers.
        *("media-types", "mime-support"),
    }
)
"""Packages that others depend on, and the daemon does without."""
TRIMMED: Final = (
    # Read by people, on other machines.
    *("usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug"),
    *("usr/share/bash-completion", "usr/share/pixmaps", "usr/share/applications", "usr/share/menu"),
    # Other character sets than UTF-8.
    *("usr/lib/*/gconv", "usr/share/i18n", "usr/share/python3", "usr/share/perl5"),
    # Of the standard library: a 2-to-3 translator, editor, toolkit, installer, and old databases.
    *(f"usr/lib/python3.*/{name}" for name in ("lib2to3", "idlelib", "tkinter", "pydoc_data")),
    *(f"usr/lib/python3.*/{name}" for name in ("ensurepip", "distutils", "turtledemo", "test")),
    "usr/lib/python3.*/lib-dynload/_dbm.*",
    "usr/lib/*/libdb-5.3.so",
    *("usr/sbin/arpd", "usr/lib/*/tc/q_atm.so"),
    *("usr/share/debconf", "usr/lib/tmpfiles.d", "usr/lib/systemd", "usr/share/initramfs-tools"),
    *("etc/cron.d", "etc/init.d", "etc/default", "etc/update-motd.d", "etc/skel", "usr/games"),
    *("usr/local/*", "boot", "home", "media", "mnt", "srv", "lost+found", "var/lib/dpkg/info"),
    *(f"usr/share/zoneinfo/{name}" for name in ("right", "posix", "localtime")),
    # Of the libraries: their tests, and C that was compiled.
    "usr/lib/python3/dist-packages/*/tests",
    *(f"usr/lib/python3/dist-packages/**/*.{end}" for end in ("c", "h", "pyx", "pxd", "pxi")),
)
"""Globs of what is not wanted in the tree."""
APPLETS: Final = (
    *("[", "ash", "awk", "base64", "basename", "cat", "chgrp", "chmod", "chown", "clear", "cp"),
    *("cut", "date", "dd", "df", "diff", "dirname", "dmesg", "du", "echo", "env", "expr", "false"),
    *(
        "find",
        "free",
        "grep",
        "gunzip",
        "gzip",
        "head",
        "hostname",
        "id",
        "kill",
        "killall",
        "less",
    ),
    *("ln", "logger", "ls", "lsmod", "md5sum", "mkdir", "mkfifo", "mktemp", "modprobe", "more"),
    *("mount", "mv", "nc", "nslookup", "pidof", "ping", "ping6", "printf", "ps", "pwd", "readlink"),
    *("realpath", "rm", "rmdir", "sed", "seq", "sh", "sha256sum", "sleep", "sort", "stat", "sync"),
    *("sysctl", "tail", "tar", "tee", "test", "timeout", "top", "touch", "tr", "true", "tty"),
    *("umount", "uname", "uniq", "uptime", "vi", "watch", "wc", "wget", "which", "xargs", "yes"),
)
"""What busybox is called by. Debian's own programs, where a package has them, go first."""
MERGED: Final = ("bin", "sbin", "lib", "lib64")
DIRECTORIES: Final = {
    **dict.fromkeys(("dev", "proc", "sys", "run", "root", "opt/bin", "run/flannel"), 0o755),
    "var/lib/pyflannel": 0o755,
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}
FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    # Without it glibc asks DNS before /etc/hosts.
    "etc/nsswitch.conf": "hosts: files dns\n",
}
LINKS: Final = {
    "opt/bin/mk-docker-opts.sh": "../../usr/bin/pyflannel-mk-docker-opts",
    "etc/ssl/cert.pem": "certs/ca-certificates.crt",
    "etc/mtab": "../proc/mounts",
}
XTABLES: Final = ("", "-save", "-restore")
TAG: Final = f"pyflannel:{pyflannel.__version__}"
CONFIG: Final[Mapping[str, object]] = {
    "Entrypoint": ["/opt/bin/flanneld"],
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin"],
    "WorkingDir": "/",
    "Labels": {
        "org.opencontainers.image.title": "pyflannel",
        "org.opencontainers.image.licenses": "Apache-2.0 AND (Apache-2.0 OR GPL-2.0-only)",
    },
}
SITE: Final = "usr/lib/python3/dist-packages"
INSTALL_CONF: Final = "pyflannel.cli.installconf:main"
LAUNCHER: Final = """#!/usr/bin/python3
import sys
from {module} import {function}
if __name__ == "__main__":
    sys.exit({function}())
"""


def _run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=ROOT,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}{done.stderr}\nimage: {words[0]}: failed")
    return done.stdout


def epoch() -> int:
    """The date of everything in the image: SOURCE_DATE_EPOCH, else the last commit's."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or _run("git", "log", "-1", "--format=%ct"))


# The tree


def unpack(packages: Sequence[Path], tree: Path) -> list[dict[str, str]]:
    """Debian's packages into an empty tree; gives what each says of itself, by name."""
    for name in MERGED:
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    known = []
    for package in packages:
        fields = control(_run("dpkg-deb", "--field", package))
        if fields["Package"] in LEFT_OUT:
            continue
        known.append(fields)
        script = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink'
        _run("sh", "-ec", f"{script} --no-same-owner", "sh", package, tree)
    return known


def control(text: str) -> dict[str, str]:
    """The fields of a control file; lines that go on are kept as they are."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line[:1].isspace():
            found[name] += f"\n{line}"
        else:
            name, _, value = line.partition(":")
            found[name] = value.strip()
    return found


def trim(tree: Path) -> None:
    """Takes away what the daemon does without; of the documentation the licences stay."""
    for pattern in TRIMMED:
        for path in sorted(tree.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    for path in sorted((tree / "usr/share/doc").rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.name != "copyright" and not path.is_symlink():
            path.unlink()
    for path in sorted((tree / "usr").rglob("*")):
        # A link to what has just been taken away; one out of the tree is not looked at.
        if path.is_symlink() and not path.readlink().is_absolute() and not path.exists():
            path.unlink()


def python_of(tree: Path) -> str:
    """The version of the tree's interpreter, `3.11`."""
    target = (tree / "usr/bin/python3").readlink()
    found = re.fullmatch(r"python(3\.\d+)", target.name)
    assert found is not None, target
    return found[1]


def install(tree: Path, wheel: Path, machine: str) -> None:
    """Our wheel and its libraries, those of `requirements.lock`, where the interpreter looks."""
    site = tree / SITE
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch, "wanted")
        wanted.write_text(f"{wheel}[kubernetes] --hash=sha256:{digest}\n")
        platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 16, -1)]
        platforms += [f"{old}_{machine}" for old in ("manylinux2014", "linux")]
        _run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-compile", "--only-binary=:all:", "--implementation=cp", "--target", site),
            *(f"--platform={each}" for each in platforms),
            f"--python-version={python_of(tree)}",
            *("--require-hashes", "--constraint=requirements.lock", f"--requirement={wanted}"),
        )
    for name in ("bin", "share", "include"):
        shutil.rmtree(site / name, ignore_errors=True)
    (own,) = site.glob("pyflannel-*.dist-info")
    (own / "direct_url.json").unlink(missing_ok=True)
    entries = configparser.ConfigParser()
    entries.read(own / "entry_points.txt")
    for name, entry in entries["console_scripts"].items():
        _launcher(tree / "usr/bin" / name, entry)
    _launcher(tree / "opt/bin/install-conf", INSTALL_CONF)
    for record in site.glob("*.dist-info/RECORD"):
        # Without what is gone: pip's own commands, and where the wheel was.
        lines = record.read_text().splitlines(keepends=True)
        kept = (x for x in lines if not x.startswith("../") and "/direct_url.json," not in x)
        record.write_text("".join(kept))


def _launcher(path: Path, entry: str) -> None:
    module, _, function = entry.partition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LAUNCHER.format(module=module, function=function))
    path.chmod(0o755)


def complete(tree: Path) -> None:
    """What packages' scripts would do, and what is ours."""
    for name, mode in DIRECTORIES.items():
        (tree / name).mkdir(parents=True, exist_ok=True)
        (tree / name).chmod(mode)
    for name, text in FILES.items():
        (tree / name).write_text(text)
    for name, target in LINKS.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(target)
    certificates = sorted((tree / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    bundle = tree / "etc/ssl/certs/ca-certificates.crt"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(path.read_text() for path in certificates))
    for name in APPLETS:
        if not any((tree / "usr" / place / name).exists() for place in ("bin", "sbin")):
            (tree / "usr/bin" / name).symlink_to("busybox")
    shutil.copy(PARTS / "flanneld", tree / "opt/bin")
    helper = tree / "usr/libexec/pyflannel/iptables-variant"
    helper.parent.mkdir(parents=True)
    shutil.copy(PARTS / "iptables-variant", helper)
    shutil.copy(PARTS / "iptables", tree / "usr/libexec/pyflannel")
    for family in ("iptables", "ip6tables"):
        for end in XTABLES:
            link = tree / "usr/sbin" / f"{family}{end}"
            link.unlink(missing_ok=True)
            link.symlink_to("../libexec/pyflannel/iptables")
    for path in (tree / "usr/bin", tree / "usr/sbin", tree / "opt/bin"):
        for each in path.iterdir():
            if not each.is_symlink():
                each.chmod(0o755)


def compile_modules(tree: Path) -> None:
    """By content, so that no date is in it: the image's root may be read-only."""
    python = f"python{python_of(tree)}"
    # Debian's, not another one in PATH: the same release writes the same bytes.
    interpreter = Path("/usr/bin", python)
    if not interpreter.exists():
        raise SystemExit(f"image: {interpreter}, which the image has, is not installed here")
    for place in (f"usr/lib/{python}", SITE):
        options = ("-q", "--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/")
        _run(interpreter, "-m", "compileall", *options, tree / place)


def describe(tree: Path, packages: Sequence[dict[str, str]], machine: str) -> None:
    """For people and scanners: what is in the tree."""
    status = tree / "var/lib/dpkg/status.d"
    status.mkdir(parents=True)
    for fields in packages:
        lines = [f"{name}: {value}" for name, value in fields.items()]
        (status / fields["Package"]).write_text("\n".join([*lines, ""]))
    bill = json.loads(sbom.cyclonedx(tree / SITE))
    bill["components"] += [sbom.debian(fields, machine) for fields in packages]
    refs = [entry["bom-ref"] for entry in bill["components"]]
    bill["dependencies"] = [{"ref": bill["metadata"]["component"]["bom-ref"], "dependsOn": refs}]
    bill["serialNumber"] = sbom.serial(bill["components"])
    target = tree / "usr/share/doc/pyflannel/sbom.cdx.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(bill, indent=2) + "\n")


# The archive


def layer(tree: Path, date: int) -> bytes:
    """The tree as a tar archive: sorted, of one owner and one date."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in walk(tree):
            entry = archive.gettarinfo(path, str(path.relative_to(tree)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = date
            # No program here changes its user.
            entry.mode &= ~(stat.S_ISUID | stat.S_ISGID)
            if entry.islnk():
                entry.type, entry.size = tarfile.REGTYPE, path.stat().st_size
            if entry.isreg():
                with path.open("rb") as file:
                    archive.addfile(entry, file)
            else:
                archive.addfile(entry)
    return buffer.getvalue()


def walk(tree: Path) -> Iterator[Path]:
    """Everything in a tree, directories before what is in them, by name."""
    for path in sorted(tree.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)


def archive(
    tree: Path,
    target: Path,
    machine: str,
    date: int,
    *,
    tag: str = TAG,
    config: Mapping[str, object] = CONFIG,
    level: int = 9,
) -> None:
    """Writes what `docker save` would.

    Args:
        tree: its one layer.
        target: the file.
        machine: Debian's word for it.
        date: of everything in it, in seconds since 1970.
        tag: its name.
        config: what a runtime starts, and how.
        level: of compression.
    """
    made = sbom.timestamp(date)
    plain = layer(tree, date)
    packed = gzip.compress(plain, level, mtime=0)
    whole = {
        "architecture": machine,
        "os": "linux",
        "created": made,
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
        "history": [{"created": made, "created_by": "tools/image.py"}],
    }
    described = json.dumps(whole, sort_keys=True).encode()
    names = [f"{hashlib.sha256(described).hexdigest()}.json"]
    names.append(f"{hashlib.sha256(packed).hexdigest()}.tar.gz")
    manifest = [{"Config": names[0], "RepoTags": [tag], "Layers": [names[1]]}]
    parts = {names[0]: described, names[1]: packed, "manifest.json": json.dumps(manifest).encode()}
    half = target.with_suffix(".part")
    with tarfile.open(half, "w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(data), date
            out.addfile(entry, io.BytesIO(data))
    half.rename(target)


# All of it


def wheel_for(machine: str, place: Path) -> Path:
    """Our wheel with its native core; this machine's compiler makes the one for this machine."""
    if MACHINES[machine] == platform.machine():
        _run(
            *(sys.executable, "-m", "build", "--no-isolation", "--outdir", place, ROOT),
            PYFLANNEL_REQUIRE_NATIVE="1",
        )
        (wheel,) = place.glob("*.whl")
        return wheel
    for wheel in wheels.build(place):
        if wheel.stem.endswith(MACHINES[machine]):
            return wheel
    raise AssertionError(machine)


def build(machine: str, directory: Path) -> Path:
    """Builds the image for a machine; gives the archive."""
    os.umask(0o022)
    date = epoch()
    os.environ["SOURCE_DATE_EPOCH"] = str(date)
    directory.mkdir(parents=True, exist_ok=True)
    cache = wheels.cache_folder() / f"debs-{debs.release()}-{machine}"
    try:
        packages = debs.fetch(PACKAGES, machine, cache)
    except debs.CannotFetch as error:
        raise SystemExit(f"image: {error}") from error
    with tempfile.TemporaryDirectory(prefix="pyflannel-image-", dir="/var/tmp") as name:
        tree = Path(name, "tree")
        tree.mkdir()
        known = unpack(packages, tree)
        install(tree, wheel_for(machine, Path(name)), MACHINES[machine])
        trim(tree)
        complete(tree)
        compile_modules(tree)
        describe(tree, known, machine)
        target = directory / f"pyflannel-image-{pyflannel.__version__}-{machine}.tar"
        archive(tree, target, machine, date)
    return target


def main() -> None:
    """Entry point."""
    here = next(name for name, kernels in MACHINES.items() if kernels == platform.machine())
    machine = sys.argv[1] if len(sys.argv) > 1 else here
    if machine not in MACHINES:
        raise SystemExit(f"image: {machine}: {' or '.join(MACHINES)}")
    print(build(machine, Path(sys.argv[2] if len(sys.argv) > 2 else "dist").absolute()))


if __name__ == "__main__":
    main()
