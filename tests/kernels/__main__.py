"""`make kernels`: runs tests on Debian's kernels, in small virtual machines.

    make kernels                                       all kernels, all tests marked `guest`
    make kernels ARGS="6.1"                            one kernel; also 7.2, 6.1-cloud, newest
    make kernels ARGS="6.1 tests/contract/test_traffic_contract.py"   any test, marked or not
    make kernels ARGS="6.1 --record tests/contract/test_traffic_contract.py"   a part of the whole
    make kernels ARGS="6.1 -- ip -V"                   any command, in the checkout
    make kernels ARGS="--list"                         what there is

A run of all tests of a kernel fills its column in docs/kernels.md, a module at a time; with
`--record`, a run of some modules does so for these. Ends 1 if a test failed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernels import report
from tests.kernels.archive import NEWEST, Archive, Kernel, choose, is_series
from tests.kernels.cache import ROOT, KernelsError, cache_folder, command, mirrors, say
from tests.kernels.images import Images, pack_checkout
from tests.kernels.vm import Boot, Step, boot

KERNELS: Final = ("5.10", "6.1", "6.12", NEWEST)
DOCUMENT: Final = ROOT / "docs/kernels.md"
RESULTS: Final = ROOT / "docs/kernels.json"
PYTEST: Final = ".venv/bin/python -m pytest -q -p no:cacheprovider -o junit_family=xunit1"
"""The newer family of reports has no properties of single tests, and so no figures."""

UPSTREAM: Final = ".upstream/flanneld"
"""Where it is in a guest's checkout, if this machine has it (PYFLANNEL_UPSTREAM)."""

MODULE_LIMIT_S: Final = 3600
"""In the guest's time. Each test has a deadline of its own, and the
report is written when all have ended, so a limit that is too low loses what is done."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a command line asks for."""

    kernels: tuple[str, ...]
    tests: tuple[str, ...]
    """Modules or single tests; none means all that are marked."""

    command: str
    """Instead of tests."""

    jobs: int
    listing: bool
    update: bool
    record: bool
    """Whether its results are written into the document: those of whole modules."""


def parse(arguments: Sequence[str]) -> Wanted:
    """Reads the command line; exits with 2 if it cannot be read."""
    words = list(arguments)
    cut = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        prog="make kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", help="kernels and tests")
    parser.add_argument(
        "-j", "--jobs", type=int, default=os.cpu_count() or 1, help="guests at a time"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="run what is marked in the modules given, and write it into the document",
    )
    parser.add_argument("--list", action="store_true", help="list kernels and tests, run nothing")
    parser.add_argument("--update", action="store_true", help="read the archive's lists anew first")
    given = parser.parse_intermixed_args(words[:cut])
    kernels = tuple(word for word in given.what if is_series(word))
    tests = tuple(word for word in given.what if not is_series(word))
    missing = [test for test in tests if not (ROOT / test.split("::")[0]).exists()]
    if missing:
        parser.error(f"neither a kernel nor a test of this checkout: {', '.join(missing)}")
    rest = words[cut + 1 :]
    if rest and tests:
        parser.error("tests, or a command behind --, not both")
    if given.record and (rest or any("::" in test for test in tests)):
        parser.error("--record takes whole modules")
    return Wanted(
        kernels or KERNELS,
        tests,
        rest[0] if len(rest) == 1 else shlex.join(rest),
        max(1, given.jobs),
        given.list,
        given.update,
        given.record or not (tests or rest),
    )


def marked_modules() -> list[str]:
    """The modules with tests that are marked to run in guests."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "guest", "tests"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    modules = sorted({line.split("::")[0] for line in done.stdout.splitlines() if "::" in line})
    if done.returncode != 0 or not modules:
        raise KernelsError(f"collecting tests: ended with {done.returncode}\n{done.stdout[-2000:]}")
    return modules


def pytest_step(test: str, *, marked: bool) -> Step:
    """The step that runs a module, or a test, in a guest."""
    only = " -m guest" if marked else ""
    command = f"{PYTEST}{only} --junitxml=$OUT/junit.xml {shlex.quote(test)}"
    return Step("test", command, limit_s=MODULE_LIMIT_S)


def judge(booted: Boot, results: Path) -> report.Outcome:
    """What became of a module, by its report and by how the guest ended."""
    try:
        outcome = report.read_junit((results / "junit.xml").read_text())
    except (OSError, ValueError):
        outcome = report.Outcome(broken="no result")
    ended = booted.told.ended.get("test")
    if ended is None:
        outcome.broken = "the guest died"
    elif ended.code in (124, 137):
        outcome.broken = "did not end"
    elif ended.code > 1 and not outcome.broken:
        outcome.broken = f"pytest ended with {ended.code}"
    if booted.serious and not outcome.broken:
        outcome.broken = "the kernel complained"
    return outcome


class Run:
    """One run: guests of several kernels at a time."""

    def __init__(
        self, wanted: Wanted, images: Images, kernels: Sequence[Kernel], scratch: Path
    ) -> None:
        self.wanted = wanted
        self._images = images
        self._kernels = kernels
        # Once, so that all guests run the same code even if it is edited meanwhile.
        self._stop = threading.Event()
        self._checkout, self._commit = scratch / "checkout.tar", commit()
        upstream = os.environ.get("PYFLANNEL_UPSTREAM", "")
        pack_checkout(self._checkout, {UPSTREAM: Path(upstream)} if upstream else {})
        self._environment = {"PYFLANNEL_UPSTREAM": str(ROOT / UPSTREAM)} if upstream else {}
        self._disks = [(images.tree(), "/"), (images.environment(), str(ROOT / ".venv"))]
        self._logs = images.folder / "logs"
        self._known = report.load(RESULTS)
        self._lock = threading.Lock()

    def command(self) -> int:
        """Runs the command on each kernel, one after the other; gives the last bad code."""
        code = 0
        for kernel in self._kernels:
            step = Step("command", self.wanted.command, limit_s=3600)
            booted, logs = self._boot(kernel, step, "command")
            sys.stdout.write((logs / "output").read_text(errors="replace"))
            sys.stdout.flush()
            ended = booted.told.ended.get("command")
            shown = "died" if ended is None else f"code {ended.code}, {ended.seconds:.1f} s"
            say(f"{kernel.upstream}: {shown}; logs in {logs}")
            self._complain(booted)
            code = 70 if ended is None else ended.code or code
        return code

    def tests(self) -> report.Results:
        """Runs the tests on each kernel, and records them if that is wanted."""
        marked = marked_modules() if self.wanted.record else []
        if unmarked := [test for test in self.wanted.tests if marked and test not in marked]:
            raise KernelsError(f"no test is marked in {', '.join(unmarked)}")
        self._known.tests = marked
        seen = report.Results()
        with ThreadPoolExecutor(self.wanted.jobs) as pool:
            jobs = [
                pool.submit(self._module, kernel, module, seen)
                for module in self.wanted.tests or marked
                for kernel in self._kernels
            ]
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                # An interrupt, a kernel that does not boot: guests that run end as well.
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return seen

    def _module(self, kernel: Kernel, module: str, seen: report.Results) -> None:
        step = pytest_step(module, marked=self.wanted.record)
        date = dt.datetime.now(dt.UTC).date().isoformat()
        booted, logs = self._boot(kernel, step, module.replace("/", "-").replace("::", "-"))
        if self._stop.is_set():
            return
        outcome = judge(booted, logs / "results")
        outcome.date, outcome.commit, outcome.cpu_s = date, self._commit, round(booted.cpu_s, 1)
        with self._lock:
            seen.put(kernel.series, kernel.version, module, outcome)
            if self.wanted.record:
                self._known.put(kernel.series, kernel.version, module, outcome)
                write(self._known)
        say(
            f"{kernel.upstream}  {module}: {outcome.cell().replace('*', '')}"
            f"  ({outcome.seconds:.0f} s there, {booted.wall_s:.0f} s here)"
        )
        if not outcome.fine:
            for name in outcome.failed:
                say(f"    {name}")
            say(f"    {logs}/output")
        self._complain(booted)

    def _boot(self, kernel: Kernel, step: Step, name: str) -> tuple[Boot, Path]:
        files = self._images.kernel(kernel)
        tree, venv = self._disks
        logs = self._logs / kernel.series / name
        booted = boot(
            files,
            [tree, (files / "modules.img", "/lib/modules"), venv],
            [step],
            checkout=self._checkout,
            logs=logs,
            environment={
                "PYFLANNEL_GUEST": kernel.series,
                "PYTHONDONTWRITEBYTECODE": "1",
                **self._environment,
            },
            stop=self._stop,
        )
        return booted, logs

    @staticmethod
    def _complain(booted: Boot) -> None:
        for line in booted.serious[:10]:
            say(f"    console: {line}")


def commit() -> str:
    """The checkout's commit; with a `+` if there are changes beside it."""
    head = command("git", "-C", ROOT, "rev-parse", "--short", "HEAD").stdout.strip()
    changes = command(
        "git", "-C", ROOT, "status", "--porcelain", "-uno", "--", ".", ":!docs"
    ).stdout
    return head + ("+" if changes else "")


def write(results: report.Results) -> None:
    """Puts the results into their file and into the document."""
    report.save(results, RESULTS)
    DOCUMENT.write_text(report.into_document(DOCUMENT.read_text(), report.render(results)))


def main(arguments: Sequence[str]) -> int:
    """Does what the command line asks for; returns the exit code."""
    wanted = parse(arguments)
    begin = time.monotonic()
    folder = cache_folder() / "kernels"
    archive = Archive(folder / "apt", mirrors())
    if wanted.update:
        archive.update()
    available = archive.available()
    if wanted.listing:
        for kernel in available.values():
            print(f"{kernel.series:12} {kernel.version:24} {kernel.release}")
        print(*marked_modules(), sep="\n")
        return 0
    kernels = list(
        {k.series: k for k in (choose(one, available) for one in wanted.kernels)}.values()
    )
    # Compiled here, once, not in each guest.
    command(sys.executable, "-m", "compileall", "-q", ROOT / "pyflannel")
    with tempfile.TemporaryDirectory(prefix="pyflannel-kernels-") as scratch:
        run = Run(wanted, Images(folder, archive), kernels, Path(scratch))
        if wanted.command:
            return run.command()
        seen = run.tests()
    print(report.render(seen))
    if wanted.record:
        say(f"written: {DOCUMENT.relative_to(ROOT)}, {RESULTS.relative_to(ROOT)}")
    say(f"took {time.monotonic() - begin:.0f} s; what was built lies in {cache_folder()}")
    return 0 if all(o.fine for c in seen.kernels.values() for o in c.modules.values()) else 1


def _interrupted(signum: int, _: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        sys.exit(main(sys.argv[1:]))
    except KernelsError as error:
        sys.exit(f"kernels: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
