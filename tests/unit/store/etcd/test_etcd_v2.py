"""What etcd's v2 API says of a key, by the answers that servers of 3.3 and 3.4 give."""

from __future__ import annotations

import pytest

from pyflannel.store.etcd import v2

FOUND = (
    '{"action":"get","node":{"key":"/coreos.com/network/config","value":"{\\"Network\\":'
    '\\"10.5.0.0/16\\"}","modifiedIndex":4,"createdIndex":4}}'
)
MISSING = '{"errorCode":100,"message":"Key not found","cause":"/coreos.com","index":4}'
FORBIDDEN = '{"errorCode":110,"message":"The request requires user authentication","index":0}'


@pytest.mark.parametrize(
    ("status", "body", "there"),
    [
        (200, FOUND, True),
        (404, MISSING, False),
        (404, "404 page not found\n", None),
        (401, FORBIDDEN, None),
        (200, "<html>", None),
        (200, "[]", None),
        (200, '{"node":1}', None),
        (200, "[" * 100_000, None),
    ],
)
def test_only_an_answer_of_the_api_itself_counts(status, body, there):
    assert v2.holds(status, body) is there


def test_a_key_of_any_bytes_has_a_path():
    assert v2.path(b"/coreos.com/network/config") == "/v2/keys/coreos.com/network/config"
    assert v2.path(b"//a b?\xff#") == "/v2/keys/a%20b%3F%FF%23"
