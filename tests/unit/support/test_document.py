"""Documents are run and compared as their readers understand them."""

from __future__ import annotations

import pytest

from tests.support.document import Step, follow, matches, steps

TEXT = """\
# Title

```console
a# one
printed
b# cat <<END
> two
>
> END
```

```ini
a# not this
```

```console
a# three
```
"""


def test_only_console_blocks_count_and_each_prompt_begins_a_command():
    assert list(steps(TEXT)) == [
        Step("a", "one", ["printed"]),
        Step("b", "cat <<END\ntwo\n\nEND"),
        Step("a", "three"),
    ]


def test_a_block_that_begins_with_output_is_a_mistake():
    with pytest.raises(ValueError, match="prompt"):
        list(steps("```console\nprinted\n```\n"))


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [
        (["a b"], "a   b\n", True),
        (["a b"], "a b", True),
        (["a b"], "a b\nc\n", False),
        (["a ..."], "a b c\n", True),
        (["a/..."], "a/24\n", True),
        (["a ..."], "b c\n", False),
        (["...", "end"], "x\ny\nend\n", True),
        (["...", "end"], "end\n", True),
        (["a", "..."], "a\n", True),
        (["a", "...", "z"], "a\nb\n", False),
        (["a.b"], "axb\n", False),
    ],
)
def test_dots_stand_for_anything_and_blanks_do_not_matter(expected, printed, same):
    assert matches(expected, printed) is same


def test_the_commands_reach_their_hosts_and_another_output_fails(tmp_path):
    document = tmp_path / "d.md"
    document.write_text(TEXT)
    ran: list[tuple[str, str]] = []

    def shell(host, output):
        return lambda script: ran.append((host, script)) or output

    assert follow(document, {"a": shell("a", "printed\n"), "b": shell("b", "")}, str) == 3
    assert [host for host, _ in ran] == ["a", "b", "a"]
    with pytest.raises(AssertionError, match="is shown to print"):
        follow(document, {"a": shell("a", "else\n"), "b": shell("b", "")}, str)


def test_an_assigned_variable_is_known_on_all_hosts(tmp_path):
    document = tmp_path / "d.md"
    document.write_text("```console\na# X=$(ask me)\nb# use $X\n```\n")
    scripts: list[str] = []
    shell = lambda script: scripts.append(script) or "it's\n"  # noqa: E731
    follow(document, {"a": shell, "b": shell}, str)
    assert scripts == ["ask me", "X='it'\"'\"'s'\nuse $X"]
