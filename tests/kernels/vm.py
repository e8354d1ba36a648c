"""One boot of a virtual machine: it carries out the steps of a job and is gone.

Software emulation, on purpose. Debian's kernels do not boot on every machine's nested KVM, and with
`-icount` the guest's clock counts instructions (1 ns each) instead of the host's time, so what
takes a second in a guest does so however busy this machine is, and deadlines in tests hold.

* `sleep=on`: with `off` the clock races ahead while the guest waits for a disk.
* One CPU: with more the kernel does not get through its boot under icount.
* `-cpu max`: the guests' programs are Debian's own, which need no more than x86-64.

The guest has no network device but `lo`; everything comes over disks and serial lines
(`guest/run` says which).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.kernels.cache import ROOT, KernelsError, command
from tests.kernels.images import pack_initramfs

MEMORY_MIB: Final = 2048
"""Three etcd-backed nodes and pytest take 700."""

RESULTS_MIB: Final = 64

POLL_S: Final = 0.2

STALLED_S: Final = 1800.0
"""A guest from which nothing is heard for so long is ended. Every ten of its seconds it says that
it is alive. That takes 40 s of a CPU, so 800 s where it gets a twentieth of one. Steps have
deadlines of their own, in the guest's time."""

_SERIOUS: Final = re.compile(
    r"BUG:|Oops|WARNING: |Kernel panic|general protection|Out of memory|guest: "
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command for a guest."""

    name: str
    """A word."""

    command: str
    """For bash; runs in the checkout, may leave files in `$OUT`."""

    limit_s: int = 900
    """In the guest's time."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step ended."""

    code: int
    seconds: float
    """In the guest's time."""


@dataclass
class Told:
    """What a guest has told of itself on its line for that."""

    booted_s: float | None = None
    running: str = ""
    ended: dict[str, Ended] = field(default_factory=dict)
    done: bool = False

    def line(self, text: str) -> None:
        """Takes a line; one that is none of ours is passed over."""
        match text.split():
            case ["booted", seconds]:
                self.booted_s = float(seconds)
            case ["begin", name]:
                self.running = name
            case ["end", name, code, seconds]:
                self.running = ""
                self.ended[name] = Ended(int(code), float(seconds))
            case ["done"]:
                self.done = True


@dataclass(frozen=True, slots=True)
class Boot:
    """What became of a boot."""

    told: Told
    wall_s: float
    """This machine's time, from qemu's start to its end."""

    cpu_s: float
    """This machine's CPU time."""

    serious: tuple[str, ...]
    """Lines of the console that tell of a defect in a kernel, or of a failed boot."""


def job_files(
    steps: Sequence[Step], mounts: Sequence[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """The files of a job, by name, as `guest/run` reads them.

    Args:
        steps: what to do, in order.
        mounts: where the disks from the second on belong (the first is the file tree). Behind them
            come the tar of the checkout and the disk for the results.
        environment: variables for all steps.
    """
    devices = [f"/dev/vd{letter}" for letter in "abcdefghijklmnop"]
    for step in steps:
        if "\n" in step.command or " " in step.name:
            raise ValueError(f"step {step.name!r}: a word and a command of one line, please")
    return {
        "mounts": "".join(
            f"{device} {where}\n" for device, where in zip(devices[1:], mounts, strict=False)
        ),
        "tree": f"{devices[len(mounts) + 1]} {ROOT}\n",
        "results": f"{devices[len(mounts) + 2]}\n",
        "env": "".join(f"{name}={shlex.quote(value)}\n" for name, value in environment.items()),
        "steps": "".join(f"{step.name} {step.limit_s} {step.command}\n" for step in steps),
    }


def qemu_command(kernel: Path, scratch: Path, disks: Sequence[tuple[Path, bool]]) -> list[str]:
    """The command line of a guest.

    Args:
        kernel: directory of the kernel's files.
        scratch: directory with `initrd`; the serial lines `console`, `output`, `told` go there.
        disks: files, and whether what the guest writes is kept.
    """
    argv = [
        *("qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-smp", "1"),
        *("-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on", "-rtc", "clock=vm"),
        *("-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-nic", "none", "-no-reboot"),
        *("-kernel", str(kernel / "vmlinuz"), "-initrd", str(scratch / "initrd")),
        "-append",
        # What the processor of the host does wrong does not concern an emulated one.
        "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 random.trust_cpu=on",
    ]
    for line in ("console", "output", "told"):
        argv += ["-serial", f"file:{scratch / line}"]
    for file, kept in disks:
        snapshot = "off" if kept else "on"
        argv += ["-drive", f"file={file},format=raw,if=virtio,cache=unsafe,snapshot={snapshot}"]
    return argv


def boot(
    kernel: Path,
    disks: Sequence[tuple[Path, str]],
    steps: Sequence[Step],
    *,
    checkout: Path,
    logs: Path,
    environment: Mapping[str, str],
    stop: threading.Event | None = None,
) -> Boot:
    """Boots a kernel and has it carry out the steps.

    Args:
        kernel: directory of the kernel's files.
        disks: the file tree first; then disks, and where they are mounted.
        steps: what to do; a step that fails does not keep the next from running.
        checkout: the tar of `images.pack_checkout`.
        logs: a directory that gets `console`, `output`, `told` and, in `results/`, what the steps
            left in `$OUT`. It is emptied before.
        environment: variables for all steps.
        stop: ends the guest when it is set, by another thread.

    Raises:
        KernelsError: if qemu cannot be started or the guest did not come up.
    """
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="pyflannel-guest-") as directory:
        scratch = Path(directory)
        results = scratch / "results.tar"
        with results.open("wb") as out:
            out.truncate(RESULTS_MIB << 20)
        files = job_files(steps, [where for _, where in disks[1:]], environment)
        _initrd(kernel / "boot.cpio", files, scratch)
        argv = qemu_command(
            kernel,
            scratch,
            [*((disk, False) for disk, _ in disks), (checkout, False), (results, True)],
        )
        told, wall, cpu = _run(argv, scratch, stop or threading.Event())
        for name in ("console", "output", "told"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(scratch / name, logs / name)
        (logs / "results").mkdir()
        # Nothing but zeros, an empty archive: no step has come to its end.
        command("tar", "-C", logs / "results", "-xf", results)
    console = (logs / "console").read_text(errors="replace") if (logs / "console").exists() else ""
    if told.booted_s is None:
        last = "\n".join(console.splitlines()[-20:])
        raise KernelsError(f"{kernel.name}: the guest did not come up (see {logs}/console)\n{last}")
    serious = tuple(line for line in console.splitlines() if _SERIOUS.search(line))
    return Boot(told, wall, cpu, serious)


def _initrd(boot_archive: Path, files: Mapping[str, str], scratch: Path) -> None:
    """The kernel's own archive, and one with the job behind it: the kernel unpacks both."""
    job = scratch / "initramfs/job"
    job.mkdir(parents=True)
    for name, text in files.items():
        (job / name).write_text(text)
    shutil.copy(Path(__file__).parent / "guest/run", job / "run")
    pack_initramfs(job.parent, scratch / "job.cpio")
    with (scratch / "initrd").open("wb") as out:
        for part in (boot_archive, scratch / "job.cpio"):
            data = part.read_bytes()
            out.write(data + bytes(-len(data) % 512))


def _run(argv: Sequence[str], scratch: Path, stop: threading.Event) -> tuple[Told, float, float]:
    """Runs qemu to its end; what was told, and the seconds of time and of CPU that it took."""
    told, seen, cpu = Told(), 0, 0.0
    begin = heard = time.monotonic()
    with (scratch / "qemu").open("wb") as printed:
        try:
            # qemu keeps what the guest writes to its disks in files in TMPDIR.
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(scratch)},
            )
        except FileNotFoundError as error:
            raise KernelsError(f"{argv[0]}: not installed; `make kernels` installs it") from error
    try:
        running = True
        while running and not stop.is_set() and time.monotonic() - heard < STALLED_S:
            cpu = _cpu_seconds(process.pid) or cpu
            running = process.poll() is None
            lines = _complete_lines(scratch / "told")
            for line in lines[seen:]:
                told.line(line)
            if len(lines) > seen:
                seen, heard = len(lines), time.monotonic()
            if running:
                stop.wait(POLL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if told.booted_s is None and process.returncode != 0:
        words = (scratch / "qemu").read_text(errors="replace").strip()
        raise KernelsError(f"qemu ended with {process.returncode}: {words}")
    return told, time.monotonic() - begin, cpu


def _cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _complete_lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return []
