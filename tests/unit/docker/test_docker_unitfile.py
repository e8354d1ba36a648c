"""Unit files are read as systemd reads them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.docker import unitfile
from pyflannel.docker.unitfile import merge


def unit(*texts: str) -> unitfile.Unit:
    return merge([(f"/{n}", text) for n, text in enumerate(texts)])


def test_an_empty_assignment_forgets_what_was_said_before() -> None:
    found = unit("[Service]\nExecStart=/a\n", "[Service]\nExecStart=\nExecStart=/b $X\n")
    assert found.values("Service", "ExecStart") == ("/b $X",)
    assert found.command_line == "/b $X"


def test_lists_grow_over_drop_ins() -> None:
    found = unit("[Unit]\nAfter=a b\n", "[Unit]\nAfter=c\n[Service]\nAfter=d\n")
    assert found.words("Unit", "After") == ("a", "b", "c")
    assert found.sources == ("/0", "/1")


def test_a_line_goes_on_behind_a_backslash_and_comments_do_not_end_it() -> None:
    found = unit("[Service]\nExecStart=/a \\\n# not this\n  b \\\n  c\n;nor=this\nType=notify\n")
    assert found.command_line.split() == ["/a", "b", "c"]
    assert found.values("Service", "Type") == ("notify",)
    assert found.values("Service", ";nor") == ()


def test_without_exec_start_there_is_no_command_line() -> None:
    assert unit("[Unit]\n").command_line == ""


def test_optional_environment_files_are_environment_files() -> None:
    found = unit("[Service]\nEnvironmentFile=-/a\nEnvironmentFile=/b\n")
    assert found.environment_files == ("/a", "/b")


def test_drop_ins_are_sorted_by_name_and_the_first_directory_wins() -> None:
    assert unitfile.drop_ins([["b.conf", "x.txt"], [], ["a.conf", "b.conf"]]) == [
        (2, "a.conf"),
        (0, "b.conf"),
    ]


def test_only_a_variable_that_is_a_word_of_its_own_is_split() -> None:
    assert unitfile.variables("/d $A ${B} --x=$C $$D -- $E") == {
        "A": True, "B": False, "C": False, "E": True,
    }  # fmt: skip


@given(st.text(), st.text())
def test_any_text_is_read(first: str, second: str) -> None:
    found = unit(first, second)
    unitfile.variables(found.command_line)


def test_an_environment_file_is_read_as_systemd_reads_it() -> None:
    text = "# A=1\n;B=2\nC='3 4'\nD = \"5\"\nE=--x \\\n  --y\nno assignment\nC=6\n"
    assert unitfile.environment(text) == {"C": "6", "D": "5", "E": "--x  --y"}
