"""What pytest wrote becomes results, results become tables, and the document has them."""

from __future__ import annotations

import pytest

from tests.kernels import report
from tests.kernels.__main__ import DOCUMENT, RESULTS
from tests.kernels.report import Column, Outcome

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


def columns():
    return {
        "6.1": Column(
            "6.1.192-2", "2026-01-02", "abc", 61.0, {"tests/test_x.py": report.read_junit(JUNIT)}
        ),
        "5.10": Column("5.10.262-1", "2026-01-01", "abc+", 9.0, {"tests/test_w.py": Outcome(1)}),
    }


def test_tables_have_a_column_for_each_kernel_in_the_order_of_their_age():
    lines = report.render(columns()).splitlines()
    assert lines[0] == "| tests | 5.10.262 | 6.1.192 |"
    assert "| `tests/test_w.py` | 1 passed | – |" in lines
    assert "| `tests/test_x.py` | – | **1 failed**, 2 passed, 1 skipped |" in lines
    assert "| run on | 2026-01-01, abc+ | 2026-01-02, abc |" in lines
    assert "| TCP vxlan, Mbit/s | – | 1,500 |" in lines
    assert "* `TestY::test_d`: 6.1.192" in lines
    assert "* data path ebpf: no tcx: 1 on 6.1.192" in lines


def test_results_are_the_same_after_writing_and_reading(tmp_path):
    report.save(columns(), tmp_path / "r.json")
    assert report.load(tmp_path / "r.json") == columns()
    assert list(report.load(tmp_path / "r.json")) == ["5.10", "6.1"]
    assert report.load(tmp_path / "none.json") == {}


def test_only_what_is_between_the_marks_is_written():
    document = f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nmore\n"
    written = report.into_document(document, "new\n")
    assert written == f"# Title\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nmore\n"
    assert report.into_document(written, "new\n") == written
    with pytest.raises(ValueError, match="has no"):
        report.into_document("# Title\n", "new\n")


def test_the_document_shows_the_results_that_are_stored():
    """Nobody has written into the tables, or stored results without them."""
    shown = DOCUMENT.read_text()
    assert report.into_document(shown, report.render(report.load(RESULTS))) == shown
