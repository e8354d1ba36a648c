"""The API server's JSON."""

from __future__ import annotations

import json

import pytest

from pyflannel.core.errors import StoreConflict, StoreDenied, StoreError, StoreUnavailable
from pyflannel.store.kubernetes import wire
from pyflannel.store.kubernetes.failures import (
    Busy,
    Expired,
    NodeMissing,
    NodeReplaced,
    NotReached,
    failure,
    message_of,
)
from pyflannel.store.kubernetes.wire import Names
from tests.support.kubeapi import PREFIX, KubeCluster

OURS = Names(PREFIX, "n1")


@pytest.fixture
def cluster() -> KubeCluster:
    made = KubeCluster()
    made.create("n1", "10.244.1.0/24")
    return made


def test_of_a_node_a_few_hundred_bytes_are_kept(cluster):
    cluster.annotate("n1", public_ip="192.0.2.1", backend_type="vxlan")
    node = wire.parse_node(cluster.nodes["n1"], OURS)
    assert node.pod_cidrs == ("10.244.1.0/24",)
    assert node.annotations == {"public-ip": "192.0.2.1", "backend-type": "vxlan"}
    assert node.network_unavailable == ""
    assert node.writer == "kubectl"


def test_a_single_podcidr_counts_where_there_is_no_list(cluster):
    del cluster.nodes["n1"]["spec"]["podCIDRs"]
    assert wire.parse_node(cluster.nodes["n1"], OURS).pod_cidrs == ("10.244.1.0/24",)


def test_a_node_without_any_annotation_is_a_node(cluster):
    """It crashes flannel v0.28.9."""
    del cluster.nodes["n1"]["metadata"]["annotations"]
    assert wire.parse_node(cluster.nodes["n1"], OURS).annotations == {}


def test_more_is_read_of_our_own_node_alone(cluster):
    cluster.annotate("n1", public_ip="192.0.2.1")
    node = wire.parse_node(cluster.nodes["n1"], Names(PREFIX, "n9"))
    assert node.writer == ""


@pytest.mark.parametrize(
    "line",
    [
        b"<html>",
        b"[]",
        b'{"type":"NEWS","object":{}}',
        b'{"type":"ADDED","object":{}}',
        b'{"type":"ADDED","object":{"metadata":7}}',
        b"{",
        b"null",
        b'{"type":"ADDED"}',
    ],
)
def test_what_is_no_api_server_is_said_to_be_none(line):
    with pytest.raises(StoreUnavailable):
        wire.parse_event(line, OURS)


def test_the_patches_are_what_flannel_writes_with_the_uid_beside():
    body = wire.annotations_patch("u-1", {"public-ip": "192.0.2.1", "backend-data": "null"}, OURS)
    assert body == (
        b'{"metadata":{"annotations":{"flannel.alpha.coreos.com/backend-data":"null",'
        b'"flannel.alpha.coreos.com/public-ip":"192.0.2.1"},"uid":"u-1"}}'
    )
    (condition,) = json.loads(wire.condition_patch("u-1", 1_700_000_000.9))["status"]["conditions"]
    assert condition == {
        "type": "NetworkUnavailable",
        "status": "False",
        "lastHeartbeatTime": "2023-11-14T22:13:20Z",
        "lastTransitionTime": "2023-11-14T22:13:20Z",
        "reason": "FlannelIsUp",
        "message": "Flannel is running on this node",
    }


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (401, "Unauthorized", StoreDenied),
        (403, "nodes is forbidden", StoreDenied),
        (404, "", NodeMissing),
        (409, "", StoreConflict),
        (410, "", Expired),
        (422, "metadata.uid: field is immutable", NodeReplaced),
        (422, "sendInitialEvents: Forbidden", StoreError),
        (429, "", Busy),
        (500, "", StoreUnavailable),
        (504, "Timeout: Too large resource version: 9, current: 8", NotReached),
        (504, "", StoreUnavailable),
    ],
)
def test_each_status_has_its_meaning(code, message, kind):
    error = failure(code, message, "list nodes")
    assert type(error) is kind
    assert "list nodes" in str(error)
    assert str(code) in str(error)


def test_a_refusal_names_the_role():
    message = 'nodes is forbidden: User "x" cannot list resource "nodes"'
    text = str(failure(403, message, "list nodes"))
    assert message in text
    assert "nodes/status" in text


def test_a_page_of_a_proxy_is_cut_and_escaped():
    assert len(message_of(b"<html>" + b"\x1b" * 9999)) < 1200
    assert "\x1b" not in message_of(b"\x1b[2J")
