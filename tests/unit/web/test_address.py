"""Where the page is served, and who may ask for it."""

from __future__ import annotations

import pytest

from pyflannel.core.errors import UsageError
from pyflannel.web.address import PORT, may_ask, parse

HOME = f"http://127.0.0.1:{PORT}/"


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("", HOME),
        ("localhost", HOME),
        ("9000", "http://127.0.0.1:9000/"),
        (":9000", "http://127.0.0.1:9000/"),
        ("192.0.2.7", f"http://192.0.2.7:{PORT}/"),
        ("192.0.2.7:0", "http://192.0.2.7:0/"),
        ("[::1]:9000", "http://[::1]:9000/"),
        ("::1", f"http://[::1]:{PORT}/"),
        ("[::1]", f"http://[::1]:{PORT}/"),
    ],
)
def test_an_address_a_port_or_both_are_understood(text, url):
    assert parse(text).url == url


@pytest.mark.parametrize(
    "text", ["nohost:1", "127.0.0.1:65536", "127.0.0.1:", "1.2.3.4.5", ":x", "[::1", "::1:::", " "]
)
def test_anything_else_is_a_mistake_of_the_command_line(text):
    with pytest.raises(UsageError, match="expected ADDRESS:PORT"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "others"),
    [("127.0.0.2", False), ("::1", False), ("0.0.0.0", True), ("::", True), ("192.0.2.7", True)],
)
def test_it_is_known_whether_others_reach_it(text, others):
    assert parse(text).for_others is others


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8780", "[::1]:8780", "localhost:1", "LOCALHOST", "192.0.2.7"]
)
def test_addresses_and_localhost_may_be_asked_for(host):
    assert may_ask(host)


@pytest.mark.parametrize(
    "host",
    [
        *(None, "", ":80", "evil.example", "evil.example:8780", "localhost.evil.example"),
        *("127.0.0.1.evil.example", "127.0.0.1:80:80", "127.0.0.1 evil", "2130706433", "[::1"),
    ],
)
def test_a_name_that_others_can_have_point_here_may_not(host):
    assert not may_ask(host)
