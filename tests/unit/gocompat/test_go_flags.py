"""Command lines by Go's rules."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.gocompat import flags as goflag
from pyflannel.gocompat.flags import (
    BadValue,
    Flag,
    FlagError,
    Kind,
    extract,
    mask,
    parse,
    parse_int,
    quote,
    unknown_variables,
    usage,
    with_environment,
)

TABLE = (
    Flag(name="str", kind=Kind.STRING, default="d", help="a string"),
    Flag(name="on", kind=Kind.BOOL, default=False, help="a switch"),
    Flag(name="off", kind=Kind.BOOL, default=True, help="another switch"),
    Flag(name="num", kind=Kind.INT, default=7, help="a number"),
    Flag(name="v", kind=Kind.LEVEL, default=0, help="a level"),
    Flag(name="lis", kind=Kind.LIST, default=(), help="a list"),
    Flag(name="way", kind=Kind.STRING, default="a", help="a choice", choices=("a", "b")),
    Flag(name="the-secret", kind=Kind.STRING, default="", help="a secret", secret=True),
    Flag(name="cli_only", kind=Kind.BOOL, default=False, help="not from env", env=False),
)


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["-str", "x"], "str", "x"),
        (["--str", "x"], "str", "x"),
        (["-str=x"], "str", "x"),
        (["--str=x"], "str", "x"),
        (["-str="], "str", ""),
        (["-str", ""], "str", ""),
        (["-str=a=b"], "str", "a=b"),
        (["-str", "-on"], "str", "-on"),
        (["-str", "--"], "str", "--"),
        (["-str", "a", "-str=b"], "str", "b"),
        (["-str=b", "-str="], "str", ""),
        ([], "str", "d"),
        (["-on"], "on", True),
        (["--on"], "on", True),
        (["-off=false"], "off", False),
        (["-on", "-on=0"], "on", False),
        (["-lis", "a", "--lis=b,c", "-lis="], "lis", ("a", "b,c", "")),
        ([], "lis", ()),
        (["-num", "-5"], "num", -5),
        (["-way=b"], "way", "b"),
        (["-v", "010"], "v", 10),
    ],
)
def test_values(args: list[str], name: str, value: object) -> None:
    flags = parse(TABLE, args)
    assert flags.values[name] == value
    assert flags.given == ({name} if args else set())
    assert flags.rest == ()


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_spellings_of_true(text: str) -> None:
    assert parse(TABLE, [f"-on={text}"]).switch("on") is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_spellings_of_false(text: str) -> None:
    assert parse(TABLE, [f"-off={text}"]).switch("off") is False


@pytest.mark.parametrize("text", ["", "yes", "no", "on", "tRUE", "2", " true"])
def test_nothing_else_is_a_boolean(text: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(TABLE, [f"-on={text}"])
    assert str(caught.value).startswith(f'invalid boolean value "{text}" for -on: parse error')


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0), ("00", 0), ("-0", 0), ("10", 10), ("+5", 5), ("-5", -5), ("0x1F", 31),
        ("0X1f", 31), ("-0x10", -16), ("017", 15), ("0o17", 15), ("0O17", 15), ("0b11", 3),
        ("0B11", 3), ("1_000", 1000), ("0x_1_f", 31), ("0_7", 7),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)),
        ("-0x8000000000000000", -(2**63)), ("0" * 100 + "7", 7),
    ],
)  # fmt: skip
def test_numbers_are_written_as_in_go_source(text: str, number: int) -> None:
    assert parse_int(text) == number


@pytest.mark.parametrize(
    "text",
    ["", " 1", "1 ", "x", "0x", "0b", "08", "0b2", "1.0", "1e3", "_1", "1_", "1__0", "0x_", "0_",
     "--1", "+-1", "\u0661", "0xg", "1,000"],
)  # fmt: skip
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(BadValue, match="parse error"):
        parse_int(text)


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 5000])
def test_numbers_have_64_bits(text: str) -> None:
    with pytest.raises(BadValue, match="value out of range"):
        parse_int(text)


@pytest.mark.parametrize("text", ["x", "0x1", "1_0", ""])
def test_levels_are_decimal(text: str) -> None:
    with pytest.raises(FlagError, match=f'^invalid value "{text}" for flag -v: '):
        parse(TABLE, [f"-v={text}"])


def test_levels_have_32_bits() -> None:
    assert parse(TABLE, ["-v", "2147483647"]).number("v") == 2**31 - 1
    with pytest.raises(FlagError, match="value out of range"):
        parse(TABLE, ["-v", "2147483648"])


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["-nope"], "flag provided but not defined: -nope"),
        (["--nope=1"], "flag provided but not defined: -nope"),
        (["-num", "x"], 'invalid value "x" for flag -num: parse error'),
        (["-num="], 'invalid value "" for flag -num: parse error'),
        (["-num=99999999999999999999"],
         'invalid value "99999999999999999999" for flag -num: value out of range'),
        (["-str"], "flag needs an argument: -str"),
        (["-lis"], "flag needs an argument: -lis"),
        (["---on"], "bad flag syntax: ---on"),
        (["-=on"], "bad flag syntax: -=on"),
        (["--=on"], "bad flag syntax: --=on"),
        (["---"], "bad flag syntax: ---"),
        (["-way=c"], 'invalid value "c" for flag -way: '),
        (["-nope", "-h"], "flag provided but not defined: -nope"),
        (['-num=\x01"'], 'invalid value "\\x01\\"" for flag -num: parse error'),
    ],
)  # fmt: skip
def test_errors_begin_with_the_words_of_go(args: list[str], text: str) -> None:
    with pytest.raises(FlagError) as caught:
        parse(TABLE, args)
    assert str(caught.value).startswith(text)


def test_an_error_says_what_was_expected() -> None:
    with pytest.raises(FlagError, match="expected a whole number"):
        parse(TABLE, ["-num=x"])
    with pytest.raises(FlagError, match="expected one of a, b"):
        parse(TABLE, ["-way=c"])


def test_an_unknown_flag_gets_a_guess_or_what_became_of_it() -> None:
    with pytest.raises(FlagError, match=r"-the_secre \(did you mean -the-secret\?\)"):
        parse(TABLE, ["-the_secre"])
    with pytest.raises(FlagError, match=r"not defined: -old \(gone since 1\.0\)"):
        parse(TABLE, ["--old=x"], removed={"old": "gone since 1.0"})


@pytest.mark.parametrize(
    ("args", "rest"),
    [
        (["-on", "true", "-num=9"], ("true", "-num=9")),
        (["-on", "-", "-num=9"], ("-", "-num=9")),
        (["-on", "--", "-num=9"], ("-num=9",)),
        (["-on", "--"], ()),
        (["-on", ""], ("",)),
    ],
)
def test_parsing_stops_at_the_first_word_that_is_no_flag(
    args: list[str], rest: tuple[str, ...]
) -> None:
    flags = parse(TABLE, args)
    assert flags.rest == rest
    assert flags.switch("on")
    assert flags.number("num") == 7


@pytest.mark.parametrize("word", ["-h", "--h", "-help", "--help", "-help=x"])
def test_help_stops_the_parsing(word: str) -> None:
    flags = parse(TABLE, ["-on", word, "-nope"])
    assert flags.help
    assert not parse(TABLE, ["-str", word]).help


def test_extraction_takes_the_flags_of_the_table_wherever_they_stand() -> None:
    args = ["sub", "-str", "x", "--json", "-on", "file", "--num=8", "-h", "--", "-str", "y"]
    flags = extract(TABLE, args)
    assert (flags.text("str"), flags.switch("on"), flags.number("num")) == ("x", True, 8)
    assert flags.rest == ("sub", "--json", "file", "-h", "--", "-str", "y")
    assert not flags.help
    with pytest.raises(FlagError, match="needs an argument"):
        extract(TABLE, ["x", "-str"])


class TestEnvironment:
    def test_a_flag_that_is_not_given_is_looked_up(self) -> None:
        env = {
            "FLANNELD_STR": "e", "FLANNELD_ON": "true", "FLANNELD_NUM": "0x10",
            "FLANNELD_LIS": "a,b", "FLANNELD_THE_SECRET": "s", "STR": "no", "FLANNEL_STR": "no",
        }  # fmt: skip
        flags = with_environment(TABLE, parse(TABLE, []), env)
        assert flags.text("str") == "e"
        assert flags.switch("on")
        assert flags.number("num") == 16
        assert flags.words("lis") == ("a,b",)
        assert flags.text("the-secret") == "s"
        assert flags.given == {"str", "on", "num", "lis", "the-secret"}
        assert flags.warnings == ()

    def test_the_command_line_wins_even_with_an_empty_value(self) -> None:
        env = {"FLANNELD_STR": "e", "FLANNELD_LIS": "e"}
        flags = with_environment(TABLE, parse(TABLE, ["-str=", "-lis=c"]), env)
        assert flags.text("str") == ""
        assert flags.words("lis") == ("c",)

    def test_an_empty_variable_counts_as_unset(self) -> None:
        flags = with_environment(TABLE, parse(TABLE, []), {"FLANNELD_STR": "", "FLANNELD_NUM": ""})
        assert flags.text("str") == "d"
        assert (flags.given, flags.warnings) == (frozenset(), ())

    def test_a_bad_value_is_a_warning_and_the_default_stays(self) -> None:
        env = {"FLANNELD_NUM": "abc", "FLANNELD_ON": "yes", "FLANNELD_WAY": "c"}
        flags = with_environment(TABLE, parse(TABLE, []), env)
        assert (flags.number("num"), flags.switch("on"), flags.text("way")) == (7, False, "a")
        assert len(flags.warnings) == 3
        for warning in flags.warnings:
            assert warning.startswith("Failed to set flag FLANNELD from env: FLANNELD_")
        assert 'FLANNELD_NUM: invalid value "abc" for flag -num' in "".join(flags.warnings)
        assert "the default 7 stays" in "".join(flags.warnings)

    def test_a_flag_may_be_for_the_command_line_only(self) -> None:
        flags = with_environment(TABLE, parse(TABLE, []), {"FLANNELD_CLI_ONLY": "true"})
        assert not flags.switch("cli_only")
        (warning,) = unknown_variables(TABLE, {"FLANNELD_CLI_ONLY": "true"})
        assert "command line only" in warning

    def test_a_variable_without_a_flag_is_a_warning_with_a_guess(self) -> None:
        env = {"FLANNELD_STRR": "x", "FLANNELD_EMPTY": "", "PATH": "/bin", "FLANNELD_STR": "x"}
        (warning,) = unknown_variables(TABLE, env)
        assert warning.startswith("FLANNELD_STRR is ignored")
        assert "did you mean FLANNELD_STR?" in warning


def test_usage_lists_the_flags_in_alphabetical_order_with_types_and_defaults() -> None:
    text = usage("/usr/bin/prog", TABLE)
    assert text.startswith("Usage: /usr/bin/prog [OPTION]...\n")
    heads = [line for line in text.splitlines() if line.startswith("  -")]
    assert heads == [
        "  -cli_only", "  -lis value", "  -num int", "  -off", "  -on", "  -str string",
        "  -the-secret string", "  -v value", "  -way string",
    ]  # fmt: skip
    assert '  -str string\n    \ta string (default "d")\n' in text
    assert "  -num int\n    \ta number (default 7)\n" in text
    assert "  -off\n    \tanother switch (default true)\n" in text
    assert "  -on\n    \ta switch\n" in text
    assert '  -way string\n    \ta choice: a, b (default "a")\n' in text


def test_secrets_are_never_shown() -> None:
    table = (*TABLE, Flag(name="pin", kind=Kind.INT, default=0, help="", secret=True))
    with pytest.raises(FlagError) as caught:
        parse(table, ["-pin=hunter2"])
    assert "hunter2" not in str(caught.value)
    with pytest.raises(FlagError) as caught:
        parse(table, ["---the-secret=hunter2"])
    assert "hunter2" not in str(caught.value)
    flags = with_environment(table, parse(table, []), {"FLANNELD_PIN": "hunter2"})
    assert "hunter2" not in "".join(flags.warnings)
    words = ["-x", "-the-secret=hunter2", "--the-secret", "hunter2", "y"]
    assert mask(table, words) == ["-x", "-the-secret=***", "--the-secret", "***", "y"]


def test_quoting_is_that_of_go() -> None:
    assert quote('a"\\\n\x00\x7f\u2028é') == '"a\\"\\\\\\n\\x00\\x7f\\u2028é"'
    assert quote("\udcff") == '"\\xff"'


def test_a_value_is_only_given_as_what_it_is() -> None:
    flags = parse(TABLE, [])
    for ask, name in ((flags.text, "num"), (flags.number, "str"), (flags.switch, "str")):
        with pytest.raises(TypeError):
            ask(name)
    with pytest.raises(TypeError):
        flags.words("str")


@settings(deadline=None)
@given(st.lists(st.text(alphabet="-=ontrufalsm17x_ ", max_size=8), max_size=6))
def test_any_command_line_is_parsed_or_refused_and_no_word_is_lost(args: list[str]) -> None:
    try:
        flags = parse(TABLE, args)
    except FlagError:
        return
    assert not flags.rest or tuple(args[len(args) - len(flags.rest) :]) == flags.rest


@settings(deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["d", "#x", "#o", "#b", "+d", "_d"]))
def test_any_number_in_any_notation_reads_back(number: int, notation: str) -> None:
    text = format(number, notation)
    assert parse_int(text) == number


class TestSecrets:
    SECRET = "S3cret"
    TABLE = (
        Flag(name="etcd-password", kind=Kind.STRING, default="", help="x", secret=True),
        Flag(name="etcd-endpoints", kind=Kind.STRING, default="", help="x", urls=True),
    )

    @pytest.mark.parametrize(
        "words",
        [
            ["-etcd-password", "S3cret"],
            ["-etcd-password=S3cret"],
            ["--etcd-pasword", "S3cret"],
            ["--etcd-passwd=S3cret"],
            ["etcd-password", "S3cret"],
            ["--my-password-is", "S3cret"],
            ["ETCD_PASSWORD=S3cret"],
            ["x", "http://u:S3cret@a:1"],
        ],
    )
    def test_no_spelling_of_a_password_is_repeated(self, words) -> None:
        assert self.SECRET not in " ".join(goflag.mask(self.TABLE, words))

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("http://u:S3cret@a:1", "http://***@a:1"),
            ("http://a:1,http://u:S3cret@b:2", "http://a:1,http://***@b:2"),
            ("http://u:S3,S3cret@a:1,http://b:2", "http://***@a:1,http://b:2"),
            ("http://u:S3/S3cret@a:1", "http://***@a:1"),
            ("http://u:S3@S3cret@a:1", "http://***@a:1"),
            ("u:S3cret@a:1", "***@a:1"),
            ("http://a:1,u:S3cret@b:1", "http://***@b:1"),
            ("http://a:1", "http://a:1"),
            ("", ""),
        ],
    )
    def test_users_and_passwords_in_urls_are_hidden(self, text: str, shown: str) -> None:
        assert goflag.hide_user_info(text) == shown
        assert goflag.show(self.TABLE[1], text) == f'"{shown}"'
