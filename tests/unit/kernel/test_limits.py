"""The limits that hold for a process, as the kernel tells them."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from pyflannel.kernel.limits import linux_version, locked_memory, raise_locked_memory, read_limits


@pytest.fixture
def groups(tmp_path):
    """A tree of control groups, given as path: (pids.max, pids.current)."""

    def make(own: str, **pids: tuple[str, int]):
        root, file = tmp_path / "cgroup", tmp_path / "own"
        for path, (most, current) in pids.items():
            group = root / path.replace("_", "/").strip("/")
            group.mkdir(parents=True, exist_ok=True)
            (group / "pids.max").write_text(f"{most}\n")
            (group / "pids.current").write_text(f"{current}\n")
        root.mkdir(exist_ok=True)
        file.write_text(own)
        return read_limits(root, file)

    return make


def test_the_narrowest_group_above_us_counts(groups):
    limits = groups("0::/a/b\n", a=("20", 15), a_b=("max", 3))
    assert (limits.tasks, limits.tasks_where) == (5, "/a")


def test_version_one_has_a_hierarchy_of_its_own(groups):
    limits = groups("5:cpu,pids:/a\n4:cpu:/other\n", pids_a=("30", 10))
    assert (limits.tasks, limits.tasks_where) == (20, "/a")


def test_without_control_groups_there_is_no_limit(groups):
    assert groups("0::/\n").tasks is None
    assert groups("").tasks is None


def test_no_core_is_dumped_where_that_is_forbidden():
    code = (
        "import resource; from pyflannel.kernel.limits import forbid_core_dumps;"
        "forbid_core_dumps(); print(resource.getrlimit(resource.RLIMIT_CORE)[0])"
    )
    command = ["sh", "-c", 'ulimit -S -c unlimited; exec "$@"', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == "0\n"


@pytest.mark.parametrize(
    ("release", "version"),
    [("5.10.0-46-amd64", (5, 10)), ("6.12.118+deb13-amd64", (6, 12)), ("what", (0, 0))],
)
def test_the_version_is_read_from_the_release(release, version):
    assert linux_version(release) == version


NO_LIMIT = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("privileged", "before", "raised", "after"),
    [
        (True, (1 << 16, 1 << 16), True, (NO_LIMIT, NO_LIMIT)),
        (False, (1 << 16, 1 << 23), True, (1 << 23, 1 << 23)),
        (False, (1 << 16, 1 << 16), False, (1 << 16, 1 << 16)),
        (True, (NO_LIMIT, NO_LIMIT), False, (NO_LIMIT, NO_LIMIT)),
        (False, (1 << 16, NO_LIMIT), True, (NO_LIMIT, NO_LIMIT)),
    ],
)
def test_locked_memory_is_raised_as_far_as_it_may_be(
    monkeypatch, privileged, before, raised, after
):
    now = before

    def setrlimit(which, wanted):
        nonlocal now
        assert which == resource.RLIMIT_MEMLOCK
        if not privileged and NO_LIMIT in wanted and now[1] != NO_LIMIT:
            raise ValueError("not allowed to raise maximum limit")
        now = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: now)
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    assert raise_locked_memory() is raised
    assert now == after
    assert locked_memory() == (None if after[0] == NO_LIMIT else after[0])


def test_threads_share_one_heap():
    """Each has a heap of its own otherwise, of 64 MB of address space and some memory."""
    code = (
        "import sys, threading; from pyflannel.kernel.limits import share_one_heap\n"
        "sys.argv[1] == 'one' and print(share_one_heap())\n"
        "kept = []\n"
        "def work(): kept.append([bytes(1000) for _ in range(1000)])\n"
        "for _ in range(3):\n"
        "    thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        # What a heap has reserved; a thread's stack has such a page as well, as its guard.
        "lines = [line for line in open('/proc/self/maps') if '---p' in line]\n"
        "ends = [line.split()[0].split('-') for line in lines]\n"
        "print(sum(int(end, 16) - int(start, 16) > 1 << 20 for start, end in ends))"
    )

    def reserved(how: str) -> int:
        command = [sys.executable, "-c", code, how]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
        return int(done.stdout.split()[-1])

    assert reserved("one") < reserved("many")
