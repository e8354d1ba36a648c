"""What pytest wrote becomes results, results become tables, and the document has them."""

from __future__ import annotations

import pytest

from tests.kernels import report
from tests.kernels.__main__ import DOCUMENT, RESULTS
from tests.kernels.report import Column, Outcome, Results

JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" time="12.5">
<testcase classname="tests.contract.test_x" name="test_a[ebpf]" time="1"/>
<testcase classname="tests.contract.test_x" name="test_b" time="1">
<properties>
<property name="figure: TCP vxlan, Mbit/s" value="1500.4"/>
<property name="else" value="x"/>
</properties></testcase>
<testcase classname="tests.contract.test_x" name="test_c" time="1">
<skipped type="pytest.skip" message="data path ebpf: no tcx"/></testcase>
<testcase classname="tests.contract.test_x.TestY" name="test_d" time="1">
<failure message="assert 1 == 2">long</failure></testcase>
<testcase classname="tests.contract.test_x.TestY" name="test_d" time="1">
<error message="and its teardown">long</error></testcase>
</testsuite></testsuites>
"""


def test_a_report_is_read():
    assert report.read_junit(JUNIT) == Outcome(
        passed=2,
        failed=["TestY::test_d"],
        skipped={"data path ebpf: no tcx": 1},
        figures={"TCP vxlan, Mbit/s": 1500.4},
        seconds=12.5,
    )


@pytest.mark.parametrize("text", ["", "<testsuites>", "\0" * 512])
def test_half_a_report_is_none(text: str):
    with pytest.raises(ValueError, match="no junit report"):
        report.read_junit(text)


@pytest.mark.parametrize(
    ("outcome", "cell", "fine"),
    [
        (Outcome(passed=3), "3 passed", True),
        (Outcome(passed=3, skipped={"why": 2}), "3 passed, 2 skipped", True),
        (Outcome(skipped={"why": 2}), "2 skipped", True),
        (Outcome(passed=3, failed=["a"]), "**1 failed**, 3 passed", False),
        (Outcome(passed=3, broken="the guest died"), "**the guest died**", False),
        (Outcome(), "0 passed", False),
    ],
)
def test_a_cell_says_what_became_of_it(outcome: Outcome, cell: str, fine: bool):
    assert outcome.cell() == cell
    assert outcome.fine is fine


def results() -> Results:
    old = Outcome(1, date="2026-01-01", commit="abc+", seconds=2, cpu_s=9)
    new = report.read_junit(JUNIT)
    new.date, new.commit, new.cpu_s = "2026-01-02", "def", 61
    return Results(
        ["tests/test_v.py", "tests/test_w.py", "tests/test_x.py"],
        {
            "6.1": Column("6.1.192-2", {"tests/test_x.py": new}),
            "5.10": Column("5.10.262-1", {"tests/test_w.py": old, "tests/test_x.py": new}),
        },
    )


def test_tables_have_a_column_for_each_kernel_in_the_order_of_their_age():
    lines = report.render(results()).splitlines()
    assert lines[0] == "| tests | 5.10.262 | 6.1.192 |"
    ran = "**1 failed**, 2 passed, 1 skipped (def)"
    assert f"| `tests/test_x.py` | {ran} | {ran} |" in lines
    assert "| guest's time, s | 14 | 12 |" in lines
    assert "| CPU time here, s | 70 | 61 |" in lines
    assert "| TCP vxlan, Mbit/s | 1,500 | 1,500 |" in lines
    assert "* `TestY::test_d`: 5.10.262, 6.1.192" in lines
    assert "* data path ebpf: no tcx: 1 on 5.10.262, 1 on 6.1.192" in lines


def test_each_cell_says_which_commit_ran_or_that_none_did():
    lines = report.render(results()).splitlines()
    assert "| `tests/test_v.py` | not run | not run |" in lines
    assert "| `tests/test_w.py` | 1 passed (abc+) | not run |" in lines
    assert "| run on | 2026-01-01 to 2026-01-02 | 2026-01-02 |" in lines


def test_a_module_that_has_run_takes_its_own_cell_and_no_other():
    known = results()
    known.put("5.10", "5.10.262-1", "tests/test_w.py", Outcome(7))
    assert known.kernels["5.10"].modules == {
        "tests/test_w.py": Outcome(7),
        "tests/test_x.py": results().kernels["5.10"].modules["tests/test_x.py"],
    }
    assert known.kernels["6.1"] == results().kernels["6.1"]


def test_what_was_seen_on_the_package_before_is_not_said_of_a_newer_one():
    known = results()
    known.put("5.10", "5.10.263-1", "tests/test_w.py", Outcome(7))
    assert known.kernels["5.10"] == Column("5.10.263-1", {"tests/test_w.py": Outcome(7)})


def test_results_are_the_same_after_writing_and_reading(tmp_path):
    report.save(results(), tmp_path / "r.json")
    assert report.load(tmp_path / "r.json") == results()
    assert list(report.load(tmp_path / "r.json").kernels) == ["5.10", "6.1"]
    assert report.load(tmp_path / "none.json") == Results()


def test_only_what_is_between_the_marks_is_written():
    document = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nmore\n"
    written = report.into_document(document, "new\n")
    assert written == f"# Title\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nmore\n"
    assert report.into_document(written, "new\n") == written
    with pytest.raises(ValueError, match="has no"):
        report.into_document("# Title\n", "new\n")


def test_the_document_shows_the_results_that_are_stored():
    """The tables are not edited, and no results are stored without them."""
    shown = DOCUMENT.read_text()
    assert report.into_document(shown, report.render(report.load(RESULTS))) == shown
