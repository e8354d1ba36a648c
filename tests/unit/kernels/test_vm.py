"""What a guest is told to do, and what is made of what it tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernels.__main__ import judge
from tests.kernels.cache import ROOT
from tests.kernels.vm import Boot, Ended, Step, Told, job_files, qemu_command


def test_a_job_names_its_disks_in_the_order_in_which_qemu_has_them():
    steps = [Step("one", "echo $OUT", 30), Step("two", "true")]
    files = job_files(steps, ["/lib/modules", "/x/.venv"], {"A": "it's"})
    assert files == {
        "mounts": "/dev/vdb /lib/modules\n/dev/vdc /x/.venv\n",
        "tree": f"/dev/vdd {ROOT}\n",
        "results": "/dev/vde\n",
        "env": "A='it'\"'\"'s'\n",
        "steps": "one 30 echo $OUT\ntwo 900 true\n",
    }


@pytest.mark.parametrize("step", [Step("a", "b\nc"), Step("a b", "c")])
def test_a_step_that_the_guest_would_misread_is_refused(step: Step):
    with pytest.raises(ValueError, match="a word and a command of one line"):
        job_files([step], [], {})


def test_only_the_disk_for_results_keeps_what_is_written():
    argv = qemu_command(Path("/k"), Path("/s"), [(Path("/a.img"), False), (Path("/r"), True)])
    drives = [argv[i + 1] for i, word in enumerate(argv) if word == "-drive"]
    assert [drive.split(",")[0] for drive in drives] == ["file=/a.img", "file=/r"]
    assert [drive.rpartition("snapshot=")[2] for drive in drives] == ["on", "off"]
    assert [argv[i + 1] for i, word in enumerate(argv) if word == "-serial"] == [
        "file:/s/console",
        "file:/s/output",
        "file:/s/told",
    ]
    assert argv[argv.index("-nic") + 1] == "none"


def told(*lines: str) -> Told:
    made = Told()
    for line in lines:
        made.line(line)
    return made


def test_a_guest_tells_how_far_it_is():
    half = told("booted 2.5", "begin a", "end a 0 1.5", "begin b", "alive 12.5", "noise", "end b")
    assert half == Told(2.5, "b", {"a": Ended(0, 1.5)}, done=False)
    assert told("done").done


PASSED = (
    '<testsuites><testsuite time="3"><testcase classname="t" name="a"/></testsuite></testsuites>'
)


@pytest.mark.parametrize(
    ("ended", "report", "complaints", "cell"),
    [
        ("end test 0 3", PASSED, (), "1 passed"),
        ("end test 5 3", PASSED, (), "**pytest ended with 5**"),
        ("end test 2 3", "", (), "**no result**"),
        ("end test 124 900", PASSED, (), "**did not end**"),
        ("begin test", PASSED, (), "**the guest died**"),
        ("end test 0 3", PASSED, ("BUG: x",), "**the kernel complained**"),
    ],
)
def test_a_module_passed_only_if_its_guest_came_to_a_good_end(
    ended: str, report: str, complaints: tuple[str, ...], cell: str, tmp_path: Path
):
    (tmp_path / "junit.xml").write_text(report)
    outcome = judge(Boot(told("booted 2", ended), 1.0, 1.0, complaints), tmp_path)
    assert outcome.cell() == cell
    assert outcome.fine is ("*" not in cell)
