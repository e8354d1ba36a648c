"""What docs/kernels.md shows: command lines that are understood, and marks that there are."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.kernels.__main__ import parse
from tests.kernels.cache import ROOT
from tests.support.guests import need_devices

TEXT = (ROOT / "docs/kernels.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
EXAMPLES = [block for kind, block in BLOCKS if kind == "python"]


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_is_understood(line):
    make, target, *variables = shlex.split(line, comments=True)
    assert (make, target) == ("make", "kernels")
    for variable in variables:
        name, _, words = variable.partition("=")
        assert name == "ARGS"
        wanted = parse(shlex.split(words))
        assert wanted.kernels
        assert wanted.listing == (words == "--list")


def test_the_examples_of_marks_are_python_and_the_marks_are_known(pytestconfig):
    known = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert len(EXAMPLES) == 2
    for example in EXAMPLES:
        names = {"pytest": pytest, "need_devices": need_devices}
        exec(example, names)
        assert {mark.name for mark in names.get("pytestmark", ())} <= known
