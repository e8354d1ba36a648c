"""What a guest boots from: a kernel with its modules, a Debian file tree, and the environment.

All are files in the cache folder, named after what decides about their contents, and made once:

    kernels/RELEASE/{vmlinuz,modules.img,boot.cpio,kernel.json}   from Debian's packages
    kernels/tree-….img                                            of tools/node-image.sh guest
    kernels/venv-….img                                            of the checkout's .venv

Disks are ext4, which every kernel of Debian's reads, and are written by `mke2fs -d`: nothing is
mounted on this machine. A guest writes to its disks as it likes; qemu drops what it wrote.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.kernels.archive import Archive, Kernel
from tests.kernels.cache import ROOT, KernelsError, command, lock, say

BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "ext4")
"""What stands between the initramfs and the first disk."""

UNUSED: Final = (
    *("drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/scsi", "drivers/iio"),
    *("drivers/staging", "drivers/usb", "drivers/hid", "drivers/input", "drivers/net/wireless"),
    *("drivers/net/ethernet", "sound"),
)
"""Modules for devices that no guest has: two thirds of all, and most of the time to pack them."""

SPARE_MIB: Final = 400
"""Free space of a disk: etcd, logs and compiled Python of a run."""

NOT_IN_THE_TREE: Final = {".git", ".venv", ".mypy_cache", ".ruff_cache", ".hypothesis", "results"}
"""Directories of the checkout that no test in a guest needs."""


class Images:
    """The images of one checkout, in the cache folder."""

    def __init__(self, folder: Path, archive: Archive) -> None:
        self.folder = folder
        self._archive = archive

    def kernel(self, kernel: Kernel) -> Path:
        """The directory of a kernel's files."""
        place = self.folder / kernel.release
        if _recorded(place) == asdict(kernel):
            return place
        with lock(self.folder), tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            if _recorded(place) == asdict(kernel):
                return place
            say(f"unpacking kernel {kernel.version} ({kernel.release})")
            work = Path(scratch)
            for package in self._archive.download(kernel, work / "packages"):
                command("dpkg", "-x", package, work / "unpacked")
            made = work / "made"
            made.mkdir()
            _kernel_files(work / "unpacked", kernel.release, made, work)
            (made / "kernel.json").write_text(json.dumps(asdict(kernel)) + "\n")
            shutil.rmtree(place, ignore_errors=True)
            made.rename(place)
        return place

    def tree(self) -> Path:
        """The disk with the guest's file tree."""
        script = ROOT / "tools/node-image.sh"
        source = Path(command(script, "guest", timeout=1800).stdout.splitlines()[-1])
        return self._disk(f"tree-{source.name.rpartition('-')[2]}", source)

    def environment(self) -> Path:
        """The disk with the checkout's `.venv`, made anew when a file in it has changed."""
        source = ROOT / ".venv"
        here = hashlib.sha256(os.fsencode(source)).hexdigest()[:8]
        disk = self._disk(f"venv-{here}-{_fingerprint(source)}", source)
        for old in self.folder.glob(f"venv-{here}-*.img"):
            if old != disk:
                old.unlink(missing_ok=True)  # a guest that has it open keeps it
        return disk

    def _disk(self, name: str, source: Path) -> Path:
        disk = self.folder / f"{name}.img"
        if not disk.exists():
            with lock(self.folder):
                if not disk.exists():
                    say(f"packing {source}")
                    make_disk(source, disk)
        return disk


def make_disk(source: Path, disk: Path) -> None:
    """An ext4 file system with the contents of a directory, in a file."""
    files = size = 0
    for where, directories, names in os.walk(source):
        files += len(directories) + len(names)
        size += sum(Path(where, name).lstat().st_size for name in names)
    # A block of 4 KiB is begun for each file, and an inode has 256 bytes.
    mib = (size + files * (4096 + 256)) * 105 // 100 // (1 << 20) + SPARE_MIB
    new = disk.with_suffix(".new")
    new.unlink(missing_ok=True)
    command(
        *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"),
        *("-N", str(files * 2 + 20_000), "-d", source, new, f"{mib}M"),
    )
    new.rename(disk)


def pack_checkout(target: Path, extra: Mapping[str, Path]) -> None:
    """A tar of the checkout as it is, compiled files included (a guest compiles slowly).

    Args:
        target: the file.
        extra: further files, by where in the checkout they are to be.
    """

    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return None if Path(entry.name).name in NOT_IN_THE_TREE else entry

    with tarfile.open(target, "w") as tar:
        tar.add(ROOT, arcname=".", filter=wanted)
        for name, file in extra.items():
            tar.add(file, arcname=name, filter=wanted)


def pack_initramfs(directory: Path, target: Path) -> None:
    """A cpio archive as the kernel unpacks it; owned by root, also if another user packs it."""
    names = "\0".join(str(path.relative_to(directory)) for path in sorted(directory.rglob("*")))
    with target.open("wb") as out:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--owner=0:0", "--quiet"],
            input=names.encode(),
            stdout=out,
            cwd=directory,
            check=True,
        )


def _recorded(place: Path) -> object:
    try:
        return json.loads((place / "kernel.json").read_text())
    except (OSError, ValueError):
        return None


def _fingerprint(directory: Path) -> str:
    digest = hashlib.sha256()
    for where, directories, names in os.walk(directory):
        directories[:] = sorted(one for one in directories if one != "__pycache__")
        for name in sorted(names):
            found = Path(where, name).lstat()
            digest.update(f"{where}/{name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _kernel_files(unpacked: Path, release: str, target: Path, scratch: Path) -> None:
    """vmlinuz, modules.img and boot.cpio from the unpacked packages of a kernel."""
    modules = _first(unpacked / "lib/modules" / release, unpacked / "usr/lib/modules" / release)
    shutil.copy(
        _first(unpacked / f"boot/vmlinuz-{release}", modules / "vmlinuz"), target / "vmlinuz"
    )
    shutil.copy(_first(unpacked / f"boot/config-{release}", modules / "config"), target / "config")
    base = scratch / "base"
    place = base / "lib/modules" / release
    place.parent.mkdir(parents=True)
    modules.rename(place)
    for name in ("build", "source", "vmlinuz", "config", "System.map"):
        (place / name).unlink(missing_ok=True)
    for name in UNUSED:
        shutil.rmtree(place / "kernel" / name, ignore_errors=True)
    # It warns of modules that need one of those that are gone.
    command("depmod", "-b", base, release)
    make_disk(place.parent, target / "modules.img")
    _boot_archive(base, release, target / "boot.cpio", scratch / "boot")


def _boot_archive(base: Path, release: str, target: Path, boot: Path) -> None:
    for name in ("bin", "proc", "sys", "dev", "root", "modules"):
        (boot / name).mkdir(parents=True)
    order: list[str] = []
    for module in BOOT_MODULES:
        shown = command("modprobe", "-d", base, "-S", release, "--show-depends", module).stdout
        for line in shown.splitlines():
            words = line.split()
            if words[0] != "insmod":
                continue  # `builtin`
            file = Path(words[1])
            name = file.name.split(".ko")[0] + ".ko"
            if name not in order:
                (boot / "modules" / name).write_bytes(_decompressed(file))
                order.append(name)
    (boot / "modules.list").write_text("".join(f"{name}\n" for name in order))
    shutil.copy("/bin/busybox", boot / "bin/busybox")
    shutil.copy(Path(__file__).parent / "guest/init", boot / "init")
    (boot / "init").chmod(0o755)
    pack_initramfs(boot, target)


def _decompressed(module: Path) -> bytes:
    if module.suffix == ".xz":
        return lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        return subprocess.run(["zstd", "-dc", module], capture_output=True, check=True).stdout
    return module.read_bytes()


def _first(*candidates: Path) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise KernelsError(f"the kernel's packages have none of {', '.join(map(str, candidates))}")
