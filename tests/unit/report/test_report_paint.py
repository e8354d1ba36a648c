"""Colours only repeat the words, and only on a terminal."""

from __future__ import annotations

import re

import pytest

from pyflannel.report.paint import painted, wanted

PAGE = """\
pyflanneld 1.2: works, with 1 problem; running with subnet 10.5.1.0/24
WARNING PF171 peer 10.5.7.0/24, since 12:00:00 (3 s)
  10.5.7.0 does not answer; the tunnel is down or worse.
peers: 1 up, 1 down
  SUBNET       PUBLIC IP  STATE  HEARD
  10.5.7.0/24  192.0.2.7  down   9 s ago
  10.5.8.0/24  192.0.2.8  up"""


def test_verdict_severity_and_states_are_painted_and_no_other_word():
    text = painted(PAGE)
    assert re.findall(r"\x1b\[([\d;]+)m(.*?)\x1b\[0m", text) == [
        ("33", "works, with 1 problem"),
        ("33", "WARNING"),
        ("31;1", "down"),
        ("32", "up"),
    ]


def test_without_its_colours_the_page_is_the_page():
    assert re.sub(r"\x1b\[[\d;]*m", "", painted(PAGE)) == PAGE


@pytest.mark.parametrize(
    ("environ", "terminal", "paint"),
    [
        ({}, True, True),
        ({"TERM": "xterm"}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_only_a_terminal_whose_user_wants_it(environ, terminal, paint):
    assert wanted(environ, terminal=terminal) is paint
