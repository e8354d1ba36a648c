"""The tool that keeps modules and functions from growing back."""

from __future__ import annotations

from tools import sizes


def test_a_module_of_several_subjects_is_named() -> None:
    text = "x = 1\n" * (sizes.MODULE_LINES + 1)
    (said,) = sizes.too_long("pyflannel/much.py", text)
    assert said.startswith(f"pyflannel/much.py: {sizes.MODULE_LINES + 1} lines")


def test_a_long_function_is_named_and_a_list_of_values_is_not() -> None:
    text = "class A:\n    def _faults(self):\n" + "        x = 1\n" * sizes.FUNCTION_LINES
    (said,) = sizes.too_long("pyflannel/a.py", text)
    assert said.startswith("pyflannel/a.py:2: _faults has")
    assert list(sizes.too_long("pyflannel/lab/faults.py", text)) == []


def test_what_is_here_is_within_the_limits() -> None:
    found = [
        said for name, text in sizes.modules(sizes.ROOT) for said in sizes.too_long(name, text)
    ]
    assert found == []
    assert all(name.split(":")[0] in dict(sizes.modules(sizes.ROOT)) for name in sizes.LISTS)
