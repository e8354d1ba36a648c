"""JSON as Go reads and writes it."""

from __future__ import annotations

import json
import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.gocompat.json import (
    MAX_DEPTH,
    JsonError,
    JsonObject,
    compact_raw,
    fold,
    loads_go,
    nesting,
    plain,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("true", True),
        (" \t\r\n false \n", False),
        ("24", 24),
        ("-7", -7),
        ("18446744073709551616", 2**64),
        ('"a\\n\\u00e9\\/\\"\\\\"', 'a\né/"\\'),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
        ("[]", []),
        ("[ 1 , [ ] ]", [1, []]),
    ],
)
def test_values_are_read(text: str, value: object) -> None:
    assert loads_go(text) == value
    assert loads_go(text.encode()) == value


def test_whole_numbers_and_numbers_with_a_fraction_stay_apart() -> None:
    """`SubnetLen: 24.0` must be refused, so 24.0 may not become 24."""
    assert type(loads_go("24")) is int
    assert type(loads_go("24.0")) is float
    assert type(loads_go("1e2")) is float
    minus_zero = loads_go("-0")
    assert type(minus_zero) is float
    assert math.copysign(1, minus_zero) == -1


def test_numbers_beyond_any_double_are_read_and_can_be_written_again() -> None:
    assert loads_go("1e400") == sys.float_info.max
    assert loads_go("-1e400") == -sys.float_info.max
    assert loads_go("9" * 5000) == sys.float_info.max


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ('{"a"', "unexpected end of JSON input"),
        ('{"a":', "unexpected end of JSON input"),
        ('{"a":1', "unexpected end of JSON input"),
        ('"a', "unexpected end of JSON input"),
        ('"a\\', "unexpected end of JSON input"),
        ('{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
        ("[1 2]", "invalid character '2' after array element"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a":1 "b":2}', "invalid character '\"' after object key:value pair"),
        ('{"a":1]', "invalid character ']' after object key:value pair"),
        ("[1}", "invalid character '}' after array element"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("{a:1}", "invalid character 'a' looking for beginning of object key string"),
        ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
        ("// x", "invalid character '/' looking for beginning of value"),
        ("[1] # x", "invalid character '#' after top-level value"),
        ("01", "invalid character '1' after top-level value"),
        ("+1", "invalid character '+' looking for beginning of value"),
        (".5", "invalid character '.' looking for beginning of value"),
        ("1.", "invalid character '.' after top-level value"),
        ("NaN", "invalid character 'N' looking for beginning of value"),
        ("-Infinity", "invalid character '-' looking for beginning of value"),
        ("True", "invalid character 'T' looking for beginning of value"),
        ("truex", "invalid character 'x' after top-level value"),
        ("\ufeff{}", "invalid character '\\ufeff' looking for beginning of value"),
        ('"a\nb"', "invalid character '\\x0a' in string literal"),
        ('"\\x"', "invalid escape in string escape code"),
        ('"\\u12"', "invalid escape in \\u hexadecimal character escape"),
        ("\xa01", "invalid character '\\u00a0' looking for beginning of value"),
    ],
)
def test_what_is_not_json_is_refused_in_the_words_of_go(text: str, problem: str) -> None:
    with pytest.raises(JsonError) as caught:
        loads_go(text)
    assert caught.value.problem == problem


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('{"a":1,}', "comma too many"),
        ("{a:1}", "double quotes"),
        ("{'a':1}", "double quotes"),
        ("{“a”:1}", "double quotes"),
        ('{"a":01}', "leading zeros"),
        ('{"a":1 "b":2}', "comma"),
        ('{"a" 1}', "colon"),
        ("# x", "no comments"),
        ("{/*x*/}", "no comments"),
        ("[NaN]", "no such number"),
        ("[True]", "true, false or null"),
        ("\ufeff{}", "byte order mark"),
        ('{"a":"b', "closing quote"),
        ('{"a":1.}', "digits must follow"),
        ("{", "cut off"),
    ],
)
def test_the_usual_slips_get_a_hint(text: str, hint: str) -> None:
    with pytest.raises(JsonError) as caught:
        loads_go(text)
    assert hint in caught.value.hint


def test_an_error_says_line_and_column() -> None:
    with pytest.raises(JsonError, match=r"\(line 3, column 8\)") as caught:
        loads_go('{\n  "a": 1,\n  "b": x\n}')
    assert (caught.value.line, caught.value.column) == (3, 8)


def test_ten_thousand_levels_are_read_and_one_more_is_an_error() -> None:
    """Neither the reader nor what works on its result may recurse."""
    for opening, closing in (("[", "]"), ('{"a":', "}")):
        inside = opening * MAX_DEPTH + ("1" if closing == "}" else "") + closing * MAX_DEPTH
        plain(loads_go(inside))
        assert compact_raw(inside) == inside
    with pytest.raises(JsonError, match="exceeded max depth"):
        loads_go("[" * (MAX_DEPTH + 1))


def test_bytes_that_are_no_utf8_become_replacement_characters_one_by_one() -> None:
    assert loads_go(b'"\xff\xed\xa0\x80x"') == "\ufffd" * 4 + "x"


def test_unpaired_surrogates_become_replacement_characters() -> None:
    assert loads_go('"\\ud800\\ud800\\udc00x\\udc00"') == "\ufffd\U00010000x\ufffd"
    assert loads_go('"\ud800"') == "\ufffd"


def test_keys_are_found_in_any_case_and_the_last_one_wins() -> None:
    value = loads_go('{"Type":1,"TYPE":2,"type":3,"Other":4}')
    assert isinstance(value, JsonObject)
    assert value.find("Type") == 3
    assert value.find("oTHER") == 4
    assert value.find("none") is None
    assert value["Type"] == 1
    assert value.pairs == [("Type", 1), ("TYPE", 2), ("type", 3), ("Other", 4)]


def test_an_exact_lookup_gives_the_last_of_equal_keys() -> None:
    value = loads_go('{"a":1,"a":2}')
    assert isinstance(value, JsonObject)
    assert dict(value) == {"a": 2}
    assert len(value.pairs) == 2


def test_go_folds_the_long_s_and_the_kelvin_sign() -> None:
    assert fold("\u017fubnetLen") == fold("SubnetLen")
    assert fold("Networ\u212a") == fold("Network")
    assert fold("stra\u00dfe") != fold("strasse")


def test_compaction_drops_white_space_escapes_html_and_touches_nothing_else() -> None:
    text = '{ "a" : [ 1.50 , -0, 1E5 ] ,\n"<" : "x y \\u00e9 \\" &\u2028" }'
    assert compact_raw(text) == ('{"a":[1.50,-0,1E5],"\\u003c":"x y \\u00e9 \\" \\u0026\\u2028"}')
    with pytest.raises(JsonError):
        compact_raw("{")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None)
@given(_json, st.booleans(), st.sampled_from([None, 1]))
def test_all_that_python_writes_is_read_back(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    if text == "-0":
        return
    assert plain(loads_go(text)) == value
    assert json.loads(compact_raw(text)) == value
    assert compact_raw(compact_raw(text)) == compact_raw(text)


@settings(deadline=None)
@given(st.binary() | st.text(alphabet='{}[]",:\\/bu0dtruefalsn1-.eE \n\t\ufeff'))
def test_arbitrary_input_is_read_or_refused_as_python_does(data: bytes | str) -> None:
    """Python's own reader is the judge, but for the constants that it should not take."""
    text = data if isinstance(data, str) else data.decode(errors="replace")

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    try:
        expected = json.loads(text, parse_constant=refuse)
    except ValueError:
        with pytest.raises(JsonError):
            loads_go(data)
    else:
        assert plain(loads_go(data)) == expected or "\\u" in text or "E" in text.upper()


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1", 0),
        ('"[[["', 0),
        ('"\\\\"', 0),
        ('{"a\\"[": [1, {"b": []}], "c": []}', 4),
        ("[" * 9000 + "]" * 9000, 9000),
    ],
)
def test_nesting_counts_brackets_outside_of_strings(text: str, levels: int) -> None:
    assert nesting(text) == levels
