"""The cause of a failure is found under any wrapping, and said with the way out."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl

import aiohttp
import pytest
from aiohttp.http_exceptions import TransferEncodingError

from pyflannel.core.errors import (
    StoreConfigError,
    StoreDenied,
    StoreError,
    StoreLeaseNotFound,
    StoreUnavailable,
)
from pyflannel.store.etcd.failures import (
    Code,
    EndpointFailure,
    Refused,
    code_in,
    explain,
    judge,
    not_etcd,
    unavailable,
)


def certificate_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code = code
    error.verify_message = "as OpenSSL puts it"
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


class Wrapped(Exception):
    """Keeps its cause in `args`, as requests does."""


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), "connection refused (ECONNREFUSED)"),
        (OSError(errno.EHOSTUNREACH, "x"), "no route to host (EHOSTUNREACH)"),
        (socket.gaierror(-2, "Name or service not known"), "cannot resolve the host name"),
        (TimeoutError(), "no answer in time"),
        (certificate_error(20), "--etcd-cafile"),
        (certificate_error(62), "another host name"),
        (certificate_error(64), "another address"),
        (certificate_error(999), "as OpenSSL puts it"),
        (tls_error("WRONG_VERSION_NUMBER"), "write http://"),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "--etcd-certfile"),
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), "does not accept ours"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "write http://"),
        (ValueError("odd"), "odd"),
    ],
)
def test_the_cause_is_found_in_args_in_context_and_in_attributes(cause, text):
    assert text in explain(cause, tls=True)
    assert text in explain(Wrapped("outer", Wrapped(cause)), tls=True)
    chained = Wrapped("outer")
    chained.__context__ = cause
    assert text in explain(chained, tls=True)
    hidden = Wrapped("outer")
    hidden.os_error = cause  # type: ignore[attr-defined]
    assert text in explain(hidden, tls=True)


def test_a_server_that_hangs_up_on_plain_http_may_expect_tls():
    hung_up = http.client.RemoteDisconnected("Remote end closed connection without response")
    assert "write https://" in explain(Wrapped(hung_up), tls=False)
    assert "write http://" in explain(Wrapped(hung_up), tls=True)
    assert explain(Wrapped(hung_up), tls=None) == "it closed the connection"


def test_a_watch_that_ends_between_two_chunks_is_a_closed_connection():
    """What aiohttp says of it has two lines, and nothing in them means anything to people."""
    torn = aiohttp.ClientPayloadError("Response payload is not completed")
    torn.__cause__ = TransferEncodingError("Not enough data to satisfy transfer length header.")
    assert explain(torn, tls=None) == "it closed the connection"


def test_an_exception_of_aiohttp_that_only_looks_like_one_of_tls_hides_nothing():
    """aiohttp's `ClientConnectorCertificateError` is an `SSLError` without its attributes."""

    class Connector(ssl.SSLCertVerificationError):
        def __init__(self, inner: ssl.SSLError) -> None:
            self.certificate_error = inner
            self.args = ("outer",)

    outer = Connector.__new__(Connector)
    Connector.__init__(outer, certificate_error(20))
    assert "--etcd-cafile" in explain(outer, tls=True)


def test_causes_that_point_at_each_other_end():
    first, second = Wrapped("first"), Wrapped("second")
    first.reason, second.reason = second, first  # type: ignore[attr-defined]
    assert explain(first, tls=False) == "second"


def test_plain_http_on_a_tls_port_is_recognised_by_gos_answer():
    body = "Client sent an HTTP request to an HTTPS server.\n"
    assert "write https://" in str(not_etcd(400, body))
    assert "HTTP 404" in str(not_etcd(404, "<html>"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (Code.NOT_FOUND, StoreLeaseNotFound),
        (Code.PERMISSION_DENIED, StoreDenied),
        (Code.UNAUTHENTICATED, StoreDenied),
        (Code.INVALID_ARGUMENT, StoreError),
    ],
)
def test_a_refusal_becomes_the_error_of_its_code(code, kind):
    error = Refused(code, "because").as_store_error("write /k", "http://a:1")
    assert type(error) is kind
    assert "write /k" in str(error)
    assert "http://a:1" in str(error)
    assert "because" in str(error)


def test_a_missing_token_is_a_denial_that_names_the_flags():
    error = Refused(Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
    told = error.as_store_error("read /k", "http://a:1")
    assert isinstance(told, StoreDenied)
    assert "--etcd-username" in str(told)


@pytest.mark.parametrize(
    ("code", "unsure"),
    [
        (Code.UNAVAILABLE, True),
        (Code.DEADLINE_EXCEEDED, True),
        (Code.UNKNOWN, True),
        (Code.RESOURCE_EXHAUSTED, False),
    ],
)
def test_what_another_member_may_answer_is_a_failure_of_the_endpoint(code, unsure):
    verdict = judge(code, "text")
    assert isinstance(verdict, EndpointFailure)
    assert verdict.unsure is unsure


def test_codes_are_read_from_the_text_of_a_cancelled_watch():
    assert code_in("rpc error: code = PermissionDenied desc = x") == Code.PERMISSION_DENIED
    assert code_in("rpc error: code = Unauthenticated desc = x") == Code.UNAUTHENTICATED
    assert code_in("rpc error: code = Nonsense desc = x") == Code.UNKNOWN
    assert code_in("") == Code.UNKNOWN


def test_when_all_fail_every_endpoint_is_named_with_its_reason():
    error = unavailable(
        "read /k",
        {"http://a:1": EndpointFailure("refused"), "http://b:2": EndpointFailure("frozen")},
    )
    assert isinstance(error, StoreUnavailable)
    assert "http://a:1: refused" in str(error)
    assert "http://b:2: frozen" in str(error)


class TestMisfits:
    """Endpoints that answer, and will never answer otherwise."""

    CN = (
        "CommonName of client sending a request against gateway will be ignored and not used as "
        "expected\n"
    )

    def test_a_client_certificate_with_a_name_is_told_from_something_that_is_not_etcd(self):
        failure = not_etcd(400, self.CN)
        assert failure.misfit
        assert "CommonName" in str(failure)
        assert "--etcd-username" in str(failure)

    def test_an_etcd_without_gateway_is_told_with_the_way_out(self):
        failure = not_etcd(404, "404 page not found\n")
        assert failure.misfit
        assert "--enable-grpc-gateway" in str(failure)

    def test_another_servers_404_is_waited_out(self):
        assert not not_etcd(404, "<html>nginx</html>").misfit

    def test_only_if_all_endpoints_are_such_the_configuration_is_wrong(self):
        misfit, dead = not_etcd(400, self.CN), EndpointFailure("connection refused")
        assert isinstance(unavailable("read", {"a": misfit, "b": misfit}), StoreConfigError)
        assert isinstance(unavailable("read", {"a": misfit, "b": dead}), StoreUnavailable)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old"),
        (Code.UNKNOWN, "auth: revision in header is old"),
    ],
)
def test_a_token_from_before_a_change_of_users_or_roles_is_outdated(code, text):
    """As 3.6 and as 3.5 say it; refused before anything was carried out."""
    refused = judge(code, text)
    assert isinstance(refused, Refused)
    assert refused.wants_token


@pytest.mark.parametrize("code", [Code.FAILED_PRECONDITION, Code.UNAVAILABLE])
def test_a_learner_makes_another_endpoint_worth_trying(code):
    failure = judge(code, "etcdserver: rpc not supported for learner")
    assert isinstance(failure, EndpointFailure)
    assert not failure.unsure
    assert "learner" in str(failure)


def test_of_many_preconditions_only_one_says_that_there_are_no_users():
    assert Refused(
        Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"
    ).auth_is_off
    assert not Refused(Code.FAILED_PRECONDITION, "etcdserver: root user does not exist").auth_is_off


def test_what_tells_one_kind_of_failure_from_another_leaves_the_operation_out():
    failures = {"http://a:1": EndpointFailure("connection refused")}
    assert unavailable("read x", failures).kind == unavailable("renew 7", failures).kind
    denied = Refused(Code.PERMISSION_DENIED, "permission denied")
    assert denied.as_store_error("read x", "a").kind == denied.as_store_error("put y", "a").kind
