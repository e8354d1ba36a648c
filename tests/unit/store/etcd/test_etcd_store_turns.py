"""Which endpoint is asked, and what becomes of a write that got no answer; without any network."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from pyflannel.core.errors import (
    StoreConflict,
    StoreDenied,
    StoreError,
    StoreLeaseNotFound,
    StoreUnavailable,
)
from pyflannel.core.options import EtcdOptions
from pyflannel.store.etcd import gateway, turns
from pyflannel.store.etcd.auth import MOST_SILENCES, Tokens
from pyflannel.store.etcd.base import MAX_VALUE_BYTES, KeyValue
from pyflannel.store.etcd.failures import AnswerTooLong, Code, EndpointFailure, Refused
from pyflannel.store.etcd.listing import next_page
from pyflannel.store.etcd.password import Password
from pyflannel.store.etcd.store import EtcdStore
from tests.support.stores import answered_by, closing

HEADER = {"revision": "9", "cluster_id": "1", "member_id": "2"}
OK = {"header": HEADER}
REFUSED = EndpointFailure("connection refused")
SILENT = EndpointFailure("no answer in time", unsure=True, silent=True)
DROPPED = EndpointFailure("connection reset", unsure=True, dropped=True)


def kv(key: bytes, value: bytes, *, revision: int = 7, lease: int = 0) -> dict[str, object]:
    return {
        "key": base64.b64encode(key).decode(),
        "value": base64.b64encode(value).decode(),
        "mod_revision": str(revision),
        "version": "1",
        "lease": str(lease),
    }


def found(*kvs: dict[str, object]) -> dict[str, object]:
    return {"header": HEADER, "kvs": list(kvs)}


def lost(*kvs: dict[str, object]) -> dict[str, object]:
    """A transaction whose condition did not hold."""
    return {"header": HEADER, "responses": [{"response_range": {"kvs": list(kvs)}}]}


Reply = "dict[str, object] | Exception | Callable[[dict[str, Any]], dict[str, object]]"


class Scripted(EtcdStore):
    """An `EtcdStore` whose endpoints answer by script: (endpoint's letter, path, answer)."""

    def __init__(self, *script: tuple[str, str, Any], user: str = "", count: int = 2) -> None:
        hosts = "abc"[:count]
        super().__init__(
            EtcdOptions(
                endpoints=tuple(f"http://{host}:1" for host in hosts),
                username=user,
                password=user,
            ),
            connect=answered_by(self._answer),
        )
        self._turns._introduce = self._introduce
        self._turns._verify = self._verify
        self.script = list(script)
        self.status_s = 0.01
        """What an endpoint takes to say how it is."""
        self.sent: list[tuple[str, dict[str, Any], str]] = []

    async def _introduce(self, what):
        """Which cluster it is matters to none of these scripts."""

    async def _verify(self, endpoint):
        self._tokens.answered_without(self.status_s)
        self._turns._verified.add(endpoint)

    async def _answer(self, endpoint, path, body, token):
        assert self.script, f"unexpected request {path} to {endpoint}"
        host, expected, reply = self.script.pop(0)
        assert (endpoint.host, path) == (host, expected)
        self.sent.append((path, dict(body), token))
        if isinstance(reply, Exception):
            raise reply
        return reply(body) if callable(reply) else reply


@asynccontextmanager
async def played(store: Scripted) -> AsyncIterator[Scripted]:
    """A store whose whole script is played."""
    async with closing(store, within=30):
        yield store
    assert not store.script, "requests that were never sent"


def play(store: Scripted, work: Callable[[Scripted], Coroutine[Any, Any, Any]]) -> Any:
    """What one request gives."""

    async def main() -> Any:
        async with played(store):
            return await work(store)

    return asyncio.run(main())


async def test_a_dead_endpoint_is_passed_over_and_the_good_one_remembered():
    store = Scripted(
        ("a", gateway.RANGE, REFUSED),
        ("b", gateway.RANGE, found()),
        ("b", gateway.RANGE, found()),
    )

    async with played(store):
        await store.get(b"k")
        await store.get(b"k")


async def test_when_the_good_one_dies_the_others_are_tried_again():
    store = Scripted(
        ("a", gateway.RANGE, REFUSED),
        ("b", gateway.RANGE, found()),
        ("b", gateway.RANGE, SILENT),
        ("a", gateway.RANGE, found()),
        ("a", gateway.RANGE, found()),
    )

    async with played(store):
        for _ in range(3):
            await store.get(b"k")


def test_when_all_are_down_each_is_named():
    store = Scripted(("a", gateway.RANGE, REFUSED), ("b", gateway.RANGE, SILENT))
    with pytest.raises(StoreUnavailable, match=r"a:1: connection refused; http://b:1: no answer"):
        play(store, lambda s: s.get(b"k"))


def test_something_else_that_listens_there_is_passed_over():
    store = Scripted(("a", gateway.RANGE, {"hello": "world"}), ("b", gateway.RANGE, found()))
    assert play(store, lambda s: s.get(b"k")).kvs == ()


def test_a_connection_from_before_a_restart_is_made_anew_once():
    store = Scripted(("a", gateway.RANGE, DROPPED), ("a", gateway.RANGE, found()))
    assert play(store, lambda s: s.get(b"k")).kvs == ()
    store = Scripted(
        ("a", gateway.RANGE, DROPPED), ("a", gateway.RANGE, DROPPED), ("b", gateway.RANGE, found())
    )
    assert play(store, lambda s: s.get(b"k")).kvs == ()


def test_a_lost_creation_is_recognised_as_ours_by_value_and_lease():
    """The first attempt was carried out and its answer got lost; the second finds its traces."""
    store = Scripted(
        ("a", gateway.TXN, SILENT), ("b", gateway.TXN, lost(kv(b"k", b"v", revision=8, lease=5)))
    )
    header = play(store, lambda s: s.put(b"k", b"v", lease=5, if_mod_revision=0))
    assert header.revision == 8


@pytest.mark.parametrize(
    "there", [kv(b"k", b"other", lease=5), kv(b"k", b"v", lease=6), kv(b"k", b"v")]
)
def test_a_creation_that_another_node_won_is_a_conflict(there):
    store = Scripted(("a", gateway.TXN, SILENT), ("b", gateway.TXN, lost(there)))
    with pytest.raises(StoreConflict):
        play(store, lambda s: s.put(b"k", b"v", lease=5, if_mod_revision=0))


def test_the_same_value_without_a_doubtful_attempt_is_a_conflict():
    store = Scripted(("a", gateway.TXN, lost(kv(b"k", b"v", lease=5))))
    with pytest.raises(StoreConflict, match="is at 7"):
        play(store, lambda s: s.put(b"k", b"v", lease=5, if_mod_revision=0))


def test_an_attempt_that_never_arrived_leaves_no_doubt():
    store = Scripted(("a", gateway.TXN, REFUSED), ("b", gateway.TXN, lost(kv(b"k", b"v"))))
    with pytest.raises(StoreConflict):
        play(store, lambda s: s.put(b"k", b"v", if_mod_revision=0))


def test_a_plain_write_without_an_answer_is_looked_for_and_not_sent_again():
    store = Scripted(
        ("a", gateway.PUT, SILENT),
        ("a", gateway.RANGE, REFUSED),
        ("b", gateway.RANGE, found(kv(b"k", b"v", revision=8, lease=5))),
    )
    assert play(store, lambda s: s.put(b"k", b"v", lease=5)).revision == 8


def test_a_plain_write_that_cannot_be_found_may_still_happen_and_the_caller_is_told():
    store = Scripted(("a", gateway.PUT, SILENT), ("a", gateway.RANGE, found(kv(b"k", b"old"))))
    with pytest.raises(StoreUnavailable, match="not known"):
        play(store, lambda s: s.put(b"k", b"v"))


def test_a_plain_write_that_never_arrived_is_sent_to_the_next():
    store = Scripted(("a", gateway.PUT, REFUSED), ("b", gateway.PUT, OK))
    assert play(store, lambda s: s.put(b"k", b"v")).revision == 9


def test_a_plain_write_on_a_connection_that_broke_is_not_sent_again():
    store = Scripted(("a", gateway.PUT, DROPPED), ("a", gateway.RANGE, found()))
    with pytest.raises(StoreUnavailable, match="not known"):
        play(store, lambda s: s.put(b"k", b"v"))


def test_a_deletion_without_an_answer_is_done_when_the_key_is_gone():
    store = Scripted(("a", gateway.DELETE, SILENT), ("a", gateway.RANGE, found()))
    assert play(store, lambda s: s.delete(b"k")) is True
    store = Scripted(("a", gateway.DELETE, SILENT), ("a", gateway.RANGE, found(kv(b"k", b"v"))))
    with pytest.raises(StoreUnavailable):
        play(store, lambda s: s.delete(b"k"))


def test_a_conditional_deletion_may_be_sent_twice():
    store = Scripted(("a", gateway.TXN, SILENT), ("b", gateway.TXN, lost()))
    assert play(store, lambda s: s.delete(b"k", if_mod_revision=4)) is True
    store = Scripted(("a", gateway.TXN, SILENT), ("b", gateway.TXN, lost(kv(b"k", b"v"))))
    assert play(store, lambda s: s.delete(b"k", if_mod_revision=4)) is False
    store = Scripted(("a", gateway.TXN, lost()))
    assert play(store, lambda s: s.delete(b"k", if_mod_revision=4)) is False


def test_a_grant_may_be_sent_twice_because_we_choose_the_id():
    exists = Refused(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
    store = Scripted(
        ("a", gateway.GRANT, SILENT),
        ("b", gateway.GRANT, exists),
        (
            "b",
            gateway.TIME_TO_LIVE,
            lambda body: {"ID": body["ID"], "TTL": "59", "grantedTTL": "60"},
        ),
    )
    status = play(store, lambda s: s.grant(60))
    assert (status.ttl, status.granted_ttl) == (59, 60)
    assert store.sent[0][1] == store.sent[1][1]
    assert status.id == int(store.sent[0][1]["ID"]) > 0


def test_a_grant_that_exists_without_a_doubtful_attempt_is_an_error():
    exists = Refused(Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
    with pytest.raises(StoreError, match="already exists"):
        play(Scripted(("a", gateway.GRANT, exists)), lambda s: s.grant(60))


async def test_ids_of_leases_are_ours_and_never_the_same():
    store = Scripted(*[("a", gateway.GRANT, {"header": HEADER, "TTL": "60"})] * 5)
    async with played(store):
        ids = [(await store.grant(60)).id for _ in range(5)]
    assert len(set(ids)) == 5
    assert all(0 < lease < 2**63 for lease in ids)


def test_a_write_on_a_lease_that_is_gone_says_so():
    gone = Refused(Code.NOT_FOUND, "etcdserver: requested lease not found")
    with pytest.raises(StoreLeaseNotFound):
        play(Scripted(("a", gateway.TXN, gone)), lambda s: s.put(b"k", b"v", if_mod_revision=0))


def test_an_error_that_all_members_would_give_is_raised_at_once():
    big = Refused(Code.INVALID_ARGUMENT, "etcdserver: request is too large")
    with pytest.raises(StoreError, match="too large"):
        play(Scripted(("a", gateway.PUT, big)), lambda s: s.put(b"k", b"v"))


NO_TOKEN = Refused(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
BAD_TOKEN = Refused(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
NO_AUTH = Refused(Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
OLD_ROLES = Refused(Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
OLD_ROLES_3_5 = Refused(Code.UNKNOWN, "auth: revision in header is old")
LEARNER = EndpointFailure("it is a learner")
WRONG = Refused(Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID …")


async def test_the_token_is_fetched_once_and_sent_with_every_request():
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.RANGE, found()),
        ("a", gateway.RANGE, found()),
        user="flannel",
    )

    async with played(store):
        await store.get(b"k")
        await store.get(b"k")
    assert [token for _, _, token in store.sent] == ["", "t.1", "t.1"]


async def test_requests_that_start_together_share_one_authentication():
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        *[("a", gateway.RANGE, found())] * 3,
        user="flannel",
    )

    async with played(store):
        await asyncio.gather(*(store.get(b"k") for _ in range(3)))


@pytest.mark.parametrize("complaint", [BAD_TOKEN, NO_TOKEN, OLD_ROLES, OLD_ROLES_3_5])
def test_an_outdated_token_is_renewed_and_the_request_repeated(complaint):
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.PUT, complaint),
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.2"}),
        ("a", gateway.PUT, OK),
        user="flannel",
    )
    play(store, lambda s: s.put(b"k", b"v"))
    assert store.sent[-1][2] == "t.2"


def test_a_token_that_is_refused_though_fresh_is_a_denial():
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.RANGE, BAD_TOKEN),
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.2"}),
        ("a", gateway.RANGE, BAD_TOKEN),
        user="flannel",
    )
    with pytest.raises(StoreDenied):
        play(store, lambda s: s.get(b"k"))


def test_a_wrong_password_is_a_denial_without_the_password():
    store = Scripted(("a", gateway.AUTHENTICATE, WRONG), user="hunter2")
    with pytest.raises(StoreDenied, match="--etcd-password") as caught:
        play(store, lambda s: s.get(b"k"))
    assert str(caught.value).count("hunter2") == 1, "the user's name, which is the same here"


async def test_a_learner_that_is_asked_first_is_passed_over():
    """For a request and for the authentication before it; it is not an etcd without users."""
    store = Scripted(
        ("a", gateway.AUTHENTICATE, LEARNER),
        ("b", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("b", gateway.RANGE, found()),
        ("b", gateway.RANGE, found()),
        user="flannel",
    )

    async with played(store):
        await store.get(b"k")
        await store.get(b"k")
    assert store.sent[-1][2] == "t.1"


class TestBackOffOfAuthentications:
    """Each costs etcd a bcrypt: one back-off for all parts of the daemon."""

    def tokens(self, replies, password=None):
        secret = EtcdOptions(username="flannel", password="secret")
        self.password = password or Password(secret)
        self.asked = []
        self.more_s = []
        self.now = 0.0

        async def post(endpoint, path, body, token, more_s):
            self.asked.append(self.now)
            self.more_s.append(more_s)
            reply = replies(len(self.asked))
            if isinstance(reply, Exception):
                raise reply
            return reply

        return Tokens("flannel", self.password, post, lambda: self.now)

    def spend(self, tokens, seconds, *, step=0.5):
        """A caller asks twice a second."""

        async def main():
            end = self.now + seconds
            while self.now < end:
                with suppress(StoreDenied):
                    token = await tokens.get("a")
                    tokens.distrust(token)
                self.now += step

        asyncio.run(main())

    def test_a_wrong_password_is_tried_less_and_less_often(self):
        tokens = self.tokens(lambda _: WRONG)
        self.spend(tokens, 3600)
        assert len(self.asked) <= 75
        assert self.asked[1] <= 2.0

    async def test_in_between_all_get_the_last_refusal(self):
        tokens = self.tokens(lambda _: WRONG)

        for _ in range(3):
            with pytest.raises(StoreDenied, match="invalid user ID"):
                await tokens.get("a")
        assert len(self.asked) == 1

    def test_tokens_that_are_never_accepted_are_no_better(self):
        tokens = self.tokens(lambda n: {"header": HEADER, "token": f"t.{n}"})
        self.spend(tokens, 3600)
        assert len(self.asked) <= 75

    async def test_tokens_that_run_out_every_second_are_replaced_at_once(self):
        """What was accepted before was good; etcd can be told to make them that short."""
        tokens = self.tokens(lambda n: {"header": HEADER, "token": f"t.{n}"})

        for _ in range(100):
            token = await tokens.get("a")
            tokens.accepted(token)
            tokens.distrust(token)
            self.now += 1.0
        assert len(self.asked) == 100

    async def test_who_met_silence_waits_longer_for_the_next_answer(self):
        """A bcrypt whose client gave up is computed all the same, and delays the others."""
        silent = EndpointFailure("no answer in time", unsure=True, silent=True)
        tokens = self.tokens(lambda n: silent if n < 11 else {"header": HEADER, "token": f"t.{n}"})

        for _ in range(10):
            with pytest.raises(EndpointFailure):
                await tokens.get("a")
        tokens.distrust(await tokens.get("a"))
        await tokens.get("a")
        assert self.more_s == [4.5, 13.5, 40.5, *[120.0] * 8, 4.5]

    async def test_how_long_an_answer_took_is_remembered(self):
        """The crowd that it waited in may be there still."""

        def late(number):
            self.now += 12.0 if number == 1 else 0.1
            return {"header": HEADER, "token": f"t.{number}"}

        tokens = self.tokens(late)

        for _ in range(3):
            tokens.distrust(await tokens.get("a"))
            self.now += 3600
        assert self.more_s == [4.5, 36.0, 4.5]

    def test_another_password_in_the_file_is_tried_at_once(self, tmp_path):
        file = tmp_path / "password"
        file.write_text("wrong\n")
        options = EtcdOptions(username="flannel", password_file=str(file))
        tokens = self.tokens(lambda _: WRONG, Password(options))
        self.spend(tokens, 3000)
        before = len(self.asked)
        file.write_text("wrong too\n")
        self.spend(tokens, 1)
        assert len(self.asked) == before + 1

    def test_a_password_that_is_put_right_is_found_within_two_minutes(self):
        tokens = self.tokens(
            lambda _: WRONG if self.now < 3000 else {"header": HEADER, "token": "t"}
        )
        self.spend(tokens, 3121)
        assert self.asked[-1] >= 3000


async def test_a_server_without_authentication_is_used_without_and_remembered():
    store = Scripted(
        ("a", gateway.AUTHENTICATE, NO_AUTH),
        ("a", gateway.RANGE, found()),
        ("a", gateway.RANGE, found()),
        ("a", gateway.RANGE, NO_TOKEN),
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.RANGE, found()),
        user="flannel",
    )

    async with played(store):
        for _ in range(3):
            await store.get(b"k")


async def test_silence_twice_in_a_row_throws_the_token_away():
    """A restored etcd waits for the log entry of a token it has never made."""
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.RANGE, SILENT),
        ("b", gateway.RANGE, SILENT),
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.2"}),
        ("a", gateway.RANGE, found()),
        user="flannel",
    )

    async with played(store):
        with pytest.raises(StoreUnavailable):
            await store.get(b"k")
        await store.get(b"k")
    tokens = [token for path, _, token in store.sent if path == gateway.RANGE]
    assert tokens == ["t.1", "t.1", "t.2"]


async def test_silence_of_an_etcd_that_is_slow_with_everything_is_not_the_tokens_fault():
    """Where a hundred nodes authenticate at once, to throw tokens away would never end."""
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        *[("a", gateway.RANGE, SILENT)] * (MOST_SILENCES - 1),
        ("a", gateway.RANGE, found()),
        user="flannel",
        count=1,
    )
    store.status_s = 2.0

    async with played(store):
        for _ in range(MOST_SILENCES - 1):
            with pytest.raises(StoreUnavailable):
                await store.get(b"k")
        await store.get(b"k")
    assert {token for path, _, token in store.sent if path == gateway.RANGE} == {"t.1"}


async def test_but_not_without_end():
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        *[("a", gateway.RANGE, SILENT)] * MOST_SILENCES,
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.2"}),
        ("a", gateway.RANGE, found()),
        user="flannel",
        count=1,
    )
    store.status_s = 2.0

    async with played(store):
        for _ in range(MOST_SILENCES):
            with pytest.raises(StoreUnavailable):
                await store.get(b"k")
        await store.get(b"k")


async def test_an_etcd_that_is_silent_now_and_then_is_not_asked_for_another_token():
    """It has too much to do, and a bcrypt is the last that it needs."""
    store = Scripted(
        ("a", gateway.AUTHENTICATE, {"header": HEADER, "token": "t.1"}),
        ("a", gateway.RANGE, SILENT),
        ("b", gateway.RANGE, found()),
        ("b", gateway.RANGE, SILENT),
        ("a", gateway.RANGE, found()),
        user="flannel",
    )

    async with played(store):
        await store.get(b"k")
        await store.get(b"k")


def test_without_credentials_a_server_that_wants_them_is_a_denial():
    with pytest.raises(StoreDenied, match="--etcd-username"):
        play(Scripted(("a", gateway.RANGE, NO_TOKEN)), lambda s: s.get(b"k"))


async def test_a_closed_store_says_so():
    store = EtcdStore(EtcdOptions())
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.get(b"k")
    with pytest.raises(StoreUnavailable, match="closed"):
        await anext(store.watch_prefix(b"k", 1))


def test_the_endpoints_are_described_without_secrets():
    store = EtcdStore(EtcdOptions(username="flannel", password="hunter2"))
    assert store.describe() == "http://127.0.0.1:2379"


class TestListings:
    """In pages at one revision, of any number and size."""

    @staticmethod
    def page(*kvs, more=False):
        return {"header": HEADER, "kvs": list(kvs), "more": more}

    def test_pages_are_read_at_the_revision_of_the_first(self):
        store = Scripted(
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b"x"), more=True)),
            ("a", gateway.RANGE, self.page(kv(b"/s/2", b"y"))),
        )
        listed = play(store, lambda s: s.range_prefix(b"/s/"))
        assert [found.key for found in listed.kvs] == [b"/s/1", b"/s/2"]
        first, second = (body for _, body, _ in store.sent)
        assert "revision" not in first
        assert second["revision"] == HEADER["revision"]
        assert base64.b64decode(second["key"]) == b"/s/1\0"

    def test_a_page_that_is_too_long_is_asked_for_in_smaller_ones(self):
        too_long = AnswerTooLong("its answer has more bytes than that")
        store = Scripted(
            ("a", gateway.RANGE, too_long),
            ("a", gateway.RANGE, too_long),
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b"x"))),
        )
        play(store, lambda s: s.range_prefix(b"/s/"))
        limits = [int(body["limit"]) for _, body, _ in store.sent]
        assert limits == sorted(limits, reverse=True)
        assert limits[0] > limits[1] > limits[2]

    def test_a_value_that_fits_no_page_is_passed_over_by_its_key(self):
        too_long = AnswerTooLong("its answer has more bytes than that")
        store = Scripted(
            *[("a", gateway.RANGE, too_long)] * 3,
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b""), more=True)),
            ("a", gateway.RANGE, self.page(kv(b"/s/2", b"y"))),
        )
        listed = play(store, lambda s: s.range_prefix(b"/s/"))
        assert [(found.key, found.left_out > 0) for found in listed.kvs] == [
            (b"/s/1", True),
            (b"/s/2", False),
        ]
        assert store.sent[3][1]["keys_only"] is True
        assert "keys_only" not in store.sent[4][1]

    def test_a_listing_whose_revision_is_compacted_begins_anew(self):
        compacted = Refused(
            Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"
        )
        store = Scripted(
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b"old"), more=True)),
            ("a", gateway.RANGE, compacted),
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b"new"))),
        )
        listed = play(store, lambda s: s.range_prefix(b"/s/"))
        assert [found.value for found in listed.kvs] == [b"new"]

    def test_large_values_are_left_out(self):
        large = kv(b"/s/1", bytes(MAX_VALUE_BYTES + 1))
        store = Scripted(("a", gateway.RANGE, self.page(large, kv(b"/s/2", b"y"))))
        listed = play(store, lambda s: s.range_prefix(b"/s/"))
        assert [(found.value, found.left_out) for found in listed.kvs] == [
            (b"", MAX_VALUE_BYTES + 1),
            (b"y", 0),
        ]

    def test_a_gateway_that_is_silent_over_a_large_page_is_asked_for_a_smaller_one(self):
        """It says nothing until it has put the whole answer into JSON."""
        store = Scripted(
            ("a", gateway.RANGE, SILENT),
            ("a", gateway.RANGE, self.page(kv(b"/s/1", b"x"))),
            count=1,
        )
        listed = play(store, lambda s: s.range_prefix(b"/s/"))
        assert [found.key for found in listed.kvs] == [b"/s/1"]

    def test_a_server_that_is_silent_over_a_single_key_is_frozen(self):
        store = Scripted(*[("a", gateway.RANGE, SILENT)] * 3, count=1)
        with pytest.raises(StoreUnavailable):
            play(store, lambda s: s.range_prefix(b"/s/"))

    @pytest.mark.parametrize(
        ("size", "left_out", "pages"),
        [(200, 0, [128, 512, 1024, 1024]), (0, 1_400_000, [1, 1, 1]), (60_000, 0, [34, 34])],
    )
    def test_pages_grow_to_what_their_values_let_fit(self, size, left_out, pages):
        limit, seen = 32, []
        for _ in pages:
            one = KeyValue(key=b"k", value=bytes(size), left_out=left_out, mod_revision=1)
            limit = next_page(limit, [one] * limit)
            seen.append(limit)
        assert seen == pages


class TestSilentOnes:
    """Black holes: each costs the one that asks it a second."""

    class Store(EtcdStore):
        """Endpoints that never answer, but for some."""

        def __init__(self, answering: str, *, cluster: int = 1) -> None:
            endpoints = tuple(f"http://{host}:1" for host in "abcd")
            super().__init__(EtcdOptions(endpoints=endpoints), connect=answered_by(self._answer))
            self.answering = answering
            self.asked: list[str] = []
            self._cluster = cluster

        async def _answer(self, endpoint, path, body, token):
            self.asked.append(endpoint.host)
            if endpoint.host not in self.answering:
                await asyncio.Event().wait()
            return {**found(), "header": {**HEADER, "cluster_id": str(self._cluster)}}

    @pytest.fixture(autouse=True)
    def at_once(self, monkeypatch):
        monkeypatch.setattr(turns, "HEAD_START_S", 0.0)

    @pytest.mark.parametrize("answering", ["a", "b", "d"])
    async def test_they_do_not_hold_a_start_up(self, answering):
        store = self.Store(answering)
        store.expect_cluster(1)
        async with closing(store, within=30):
            await asyncio.wait_for(store.get(b"k"), 5)
            store.asked.clear()
            await store.get(b"k")
            assert store.asked == [answering]

    async def test_who_answers_for_another_cluster_is_not_preferred(self, monkeypatch):
        """It is judged in its turn, with all that is known of the others."""
        monkeypatch.setattr(turns, "LOOK_AROUND_S", 0.0)

        store = self.Store("b", cluster=2)
        store.expect_cluster(1)
        async with closing(store, within=30):
            await store._turns._look_around()
            assert store._turns._verified == set()
            assert store._turns._preferred == 0


class TestStrangers:
    """Who is used has named its cluster when its use began, and not some time before."""

    class Members(EtcdStore):
        def __init__(self) -> None:
            hosts = "abc"
            endpoints = tuple(f"http://{host}:1" for host in hosts)
            super().__init__(EtcdOptions(endpoints=endpoints), connect=answered_by(self._answer))
            self.cluster_of = dict.fromkeys(hosts, "1")
            self.down: set[str] = set()
            self.asked: list[str] = []

        async def _answer(self, endpoint, path, body, token):
            if endpoint.host in self.down:
                raise REFUSED
            if path == gateway.RANGE:
                self.asked.append(endpoint.host)
            return {"header": HEADER | {"cluster_id": self.cluster_of[endpoint.host]}, "kvs": []}

    @pytest.mark.parametrize("used_before", [False, True])
    async def test_one_that_was_replaced_while_another_was_used_is_not_used(self, used_before):
        store = self.Members()
        try:
            if used_before:
                store.down = {"a"}
                await store.get(b"k")
                store.down = {"b", "c"}
                await store.get(b"k")
                store.down = set()
            await store.get(b"k")
            assert store.asked.pop() == "a"
            store.cluster_of["b"] = "2"
            store.down = {"a", "c"}
            store.asked.clear()
            with pytest.raises(StoreUnavailable, match="another cluster"):
                await store.get(b"k")
            assert store.asked == []
            store.down = {"a"}
            await store.get(b"k")
            assert store.asked == ["c"]
        finally:
            await store.close()

    async def test_one_that_is_replaced_between_two_answers_is_left_for_the_others(self):
        store = self.Members()
        try:
            await store.get(b"k")
            store.cluster_of["a"] = "2"
            found = await store.get(b"k")
            assert found.header.cluster_id == 1
            assert store.asked == ["a", "a", "b"]
        finally:
            await store.close()
