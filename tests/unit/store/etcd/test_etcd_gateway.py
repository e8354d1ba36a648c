"""The JSON gateway's messages: what is asked, what is understood, what is refused."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.core.errors import StoreCompacted
from pyflannel.store.etcd import gateway
from pyflannel.store.etcd.base import DeleteEvent, Header, KeyValue, PutEvent
from pyflannel.store.etcd.failures import Code, EndpointFailure, Refused

HEADER = {"cluster_id": "4780011381821416694", "member_id": "4019661074557111510", "revision": "4"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"/a/", b"/a0"), (b"a\xff", b"b"), (b"\xff\xff", b"\0"), (b"", b"\0")],
)
def test_the_end_of_a_prefix_is_the_first_key_behind_it(prefix, end):
    assert gateway.prefix_end(prefix) == end


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=6))
def test_keys_below_a_prefix_and_no_others_are_in_its_range(prefix, key):
    end = gateway.prefix_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)


def test_a_range_is_understood_with_its_64_bit_numbers():
    kv = {
        "key": b64(b"/a/x"),
        "create_revision": "2",
        "mod_revision": "4",
        "version": "2",
        "value": b64(b"\x00\xff"),
        "lease": "7587862094009472001",
    }
    result = gateway.parse_range({"header": HEADER, "kvs": [kv], "count": "1"})
    assert result.header == Header(
        revision=4, cluster_id=4780011381821416694, member_id=4019661074557111510
    )
    assert result.kvs == (
        KeyValue(
            key=b"/a/x",
            value=b"\x00\xff",
            mod_revision=4,
            version=2,
            lease=7587862094009472001,
        ),
    )


def test_what_is_missing_is_zero():
    assert gateway.parse_range({"header": {}}).kvs == ()
    assert gateway.parse_range({"header": {}}).header.revision == 0
    assert gateway.parse_deleted({"header": HEADER}) == 0
    assert gateway.parse_keepalive({"result": {"header": HEADER, "ID": "9"}}) == 0


def test_a_transaction_without_succeeded_has_failed_and_shows_the_key():
    look = {"header": {"revision": "4"}, "kvs": [{"key": b64(b"k"), "mod_revision": "3"}]}
    result = gateway.parse_txn({"header": HEADER, "responses": [{"response_range": look}]})
    assert not result.succeeded
    assert result.found == KeyValue(key=b"k", value=b"", mod_revision=3, version=0)
    assert gateway.parse_txn({"header": HEADER, "succeeded": True}).succeeded


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"header": []},
        {"header": {"revision": "x"}},
        {"header": {"revision": True}},
        {"header": {}, "kvs": {}},
        {"header": {}, "kvs": [1]},
        {"header": {}, "kvs": [{"key": "%%%"}]},
        {"header": {}, "kvs": [{"key": 5}]},
    ],
)
def test_an_answer_of_something_else_is_a_failure_of_the_endpoint(message):
    with pytest.raises(EndpointFailure):
        gateway.parse_range(message)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"error":"etcdserver: permission denied","code":7,"message":"…"}', 7),
        ('{"error":{"grpc_code":7,"http_code":403,"message":"etcdserver: permission denied"}}', 7),
        ('{"error":{"code":16,"message":"etcdserver: invalid auth token","details":[]}}', 16),
    ],
)
def test_errors_of_calls_and_of_streams_are_understood(text, code):
    error = gateway.parse_error(text)
    assert isinstance(error, Refused)
    assert error.code == code


def test_an_error_that_another_member_may_not_have_is_a_failure_of_the_endpoint():
    error = gateway.parse_error('{"error":"etcdserver: request timed out","code":14}')
    assert isinstance(error, EndpointFailure)
    assert error.unsure


@pytest.mark.parametrize("text", ["", "404 page not found", "[]", '{"error":5}', '{"code":"7"}'])
def test_what_is_no_error_of_the_gateway_is_not_taken_for_one(text):
    assert gateway.parse_error(text) is None


def line(**result: object) -> bytes:
    return json.dumps({"result": {"header": HEADER, **result}}).encode()


def test_every_event_of_a_watch_response_is_there_in_order():
    events = [
        {"kv": {"key": b64(b"a"), "value": b64(b"1"), "mod_revision": "4", "version": "1"}},
        {"type": "DELETE", "kv": {"key": b64(b"b"), "mod_revision": "4"}},
    ]
    response = gateway.parse_watch_line(line(events=events))
    assert response.header.revision == 4
    assert response.events == (
        PutEvent(kv=KeyValue(key=b"a", value=b"1", mod_revision=4)),
        DeleteEvent(key=b"b", mod_revision=4),
    )


def test_the_confirmation_of_a_watch_has_no_events():
    assert gateway.parse_watch_line(line(created=True)).events == ()


def test_a_compacted_watch_tells_from_where_history_exists():
    with pytest.raises(StoreCompacted) as caught:
        gateway.parse_watch_line(line(canceled=True, compact_revision="12"))
    assert caught.value.compact_revision == 12


def test_a_watch_that_is_created_and_canceled_at_once_is_canceled():
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    with pytest.raises(Refused, match=r"^etcdserver: permission denied$") as caught:
        gateway.parse_watch_line(line(created=True, canceled=True, cancel_reason=reason))
    assert caught.value.code == Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "text",
    [
        b'{"error":{"grpc_code":14,"http_code":503,"message":"etcdserver: no leader"}}',
        b'{"result":{"header":{},"canceled":true}}',
        b'{"result":{"header":{},"canceled":true,"cancel_reason":"etcdserver: no leader"}}',
        b'{"result":7}',
        b'{"something":"else"}',
        b"[]",
        b"<html>",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_any_other_end_of_a_watch_is_a_failure_of_the_endpoint(text):
    with pytest.raises(EndpointFailure):
        gateway.parse_watch_line(text)


@given(st.binary(max_size=200))
def test_garbage_on_a_watch_never_raises_anything_unexpected(text):
    with pytest.raises((EndpointFailure, Refused, StoreCompacted)):
        gateway.parse_watch_line(text)


@given(
    lines=st.lists(
        st.binary(min_size=1).filter(lambda b: b"\n" not in b and b.strip()), max_size=5
    ),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_lines_come_out_as_they_went_in_wherever_the_chunks_are_cut(lines, cuts):
    stream = b"".join(item + b"\n" for item in lines) + b"rest"
    splitter = gateway.LineSplitter()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out: list[bytes] = []
    for start, end in itertools.pairwise(places):
        out += splitter.feed(stream[start:end])
    assert out == lines


def test_empty_lines_between_messages_are_left_out():
    assert gateway.LineSplitter().feed(b"\n\na\n\r\n\nb\n") == [b"a", b"b"]


def test_a_line_without_end_is_not_collected_without_end():
    splitter = gateway.LineSplitter(limit=10)
    assert splitter.feed(b"0123456789\n0123456789") == [b"0123456789"]
    with pytest.raises(EndpointFailure, match="more than 10 bytes"):
        splitter.feed(b"x")
