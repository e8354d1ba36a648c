"""Go's regular expressions: the same answers where both have them, a refusal where Go has not."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.gocompat.regex import compile_go


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("eth", "veth0", True),
        ("^eth", "veth0", False),
        (r"^eth\d+$", "eth12", True),
        (r"\d", "٣", False),
        (r"10\.0\.0\.2[0-9]", "10.0.0.23", True),
        ("10.*", "10.0.0.1", True),
        ("(a|b)+?c{2,3}", "abcc", True),
        ("(?i)ETH", "eth0", True),
        ("(?i:E)th", "eth0", True),
        ("(?P<n>e)th", "eth0", True),
        ("(?<n>e)th", "eth0", True),
        (r"eth0\z", "eth0", True),
        (r"eth0\z", "eth01", False),
        ("^[[:alpha:]]+[[:digit:]]$", "eth0", True),
        ("^[^[:digit:]]+$", "eth0", False),
        ("[]]", "]", True),
        ("[^]]", "]", False),
        ("[a&&b]", "&", True),
        ("[[a]", "[", True),
        (r"\Qa.b\E+", "axb", False),
        (r"\Qa.b\E+", "a.bb", True),
        (r"\Qa.b", "xa.b", True),
        (r"\x65\x{74}h", "eth", True),
        (r"[\x{61}-c]", "b", True),
        ("a{,2}", "a{,2}", True),
        ("a{,2}", "aa", False),
        ("", "anything", True),
    ],
)
def test_a_pattern_of_go_finds_what_go_finds(pattern, text, found):
    assert (compile_go(pattern).search(text) is not None) is found


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?=a)", "look-ahead"),
        ("(?!a)", "look-ahead"),
        ("(?<=a)b", "look-behind"),
        ("(?<!a)b", "look-behind"),
        (r"(a)\1", "back-reference"),
        ("(?P<n>a)(?P=n)", "back-reference"),
        ("(a)?(?(1)b|c)", "conditional"),
        ("(?>a)", "atomic"),
        ("(?#a)", "comment"),
        ("a*+", "repetition"),
        ("a++", "repetition"),
        ("a{2}{3}", "repetition"),
        ("a{1001}", "more than 1000"),
        ("a(?i)b", "flags"),
        ("(?x)a b", "flags"),
        (r"a\Z", r"\\Z"),
        (r"\pL", "Unicode class"),
        ("[[:nope:]]", "nope"),
        (r"\y", r"\\y"),
        (r"\x{110000}", "no character"),
        ("*a", "nothing to repeat"),
        ("(a", "unterminated"),
        ("a)", "unbalanced"),
        ("[a", "without its"),
        ("a\\", "backslash at the end"),
        ("[+--]", "doubled -"),
    ],
)
def test_what_go_does_not_have_is_refused_with_the_reason(pattern, reason):
    with pytest.raises(ValueError, match=reason):
        compile_go(pattern)


@given(st.text(alphabet="ab01.*+?()[]{}|^$\\:-,dQEzxP<>=!&~i ", max_size=16))
def test_any_pattern_is_either_compiled_or_refused(pattern):
    """Never another exception, and never a warning (warnings are errors here)."""
    try:
        compiled = compile_go(pattern)
    except ValueError:
        return
    assert isinstance(compiled, re.Pattern)
