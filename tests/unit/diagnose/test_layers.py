"""What the answers of a peer's layers say together."""

from __future__ import annotations

import pytest

from pyflannel.diagnose.layers import Ask, Layer, Outcome, verdict

UDP = "UDP port 8472"


def asked(**outcomes: str) -> list[Layer]:
    """Layers by name: `ok`, `lost`, `no`."""
    words = {"ok": Outcome.OK, "lost": Outcome.LOST, "no": Outcome.NOT_TRIED}
    return [
        Layer(ask=Ask[name], target="10.5.7.0", outcome=words[word], passed=1300)
        for name, word in outcomes.items()
    ]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (asked(BESIDE="ok", TUNNEL="lost", BRIDGE="no"), "drops UDP port 8472"),
        (asked(BESIDE="lost", TUNNEL="lost", BRIDGE="no"), "the node is down"),
        (asked(BESIDE="ok", TUNNEL="ok", LARGE="lost", BRIDGE="ok"), "passed had 1300 bytes"),
        (asked(BESIDE="ok", TUNNEL="ok", BRIDGE="ok", POD="lost"), "packets are lost on the peer"),
        (asked(TUNNEL="ok", POD="ok", POD_LARGE="lost"), "large ones do not"),
        (asked(BESIDE="ok", TUNNEL="ok", LARGE="ok", POD="ok", TCP="lost"), "TCP does not"),
    ],
)
def test_the_first_that_fails_names_the_place(layers, words):
    found = verdict(layers, UDP)
    assert not found.well
    assert words in found.text
    assert found.remedy


@pytest.mark.parametrize(
    "layers",
    [
        asked(BESIDE="ok", TUNNEL="ok", LARGE="ok", BRIDGE="ok", POD="ok", TCP="ok"),
        # A node whose underlay drops ping, one without containers, a pod that drops ping.
        asked(BESIDE="lost", TUNNEL="ok", LARGE="ok", BRIDGE="no"),
        asked(BESIDE="ok", TUNNEL="ok", POD="lost", TCP="ok"),
        # Kernels that take the first address of a bridge's subnet for a broadcast.
        asked(BESIDE="ok", TUNNEL="lost", BRIDGE="ok"),
    ],
)
def test_what_answers_is_well_and_what_need_not_answer_is_no_fault(layers):
    assert verdict(layers, UDP).well


@pytest.mark.parametrize("behind", ["BRIDGE", "POD", "TCP"])
def test_a_tunnel_that_works_is_told_though_the_peers_own_address_is_silent(behind):
    """The answer to a status that calls the peer down."""
    found = verdict(asked(BESIDE="ok", TUNNEL="lost", **{behind: "ok"}), UDP)
    assert found.well
    assert "the tunnel works" in found.text
    assert "drops ping" in found.text


def test_without_a_tunnel_a_silent_node_is_the_fault():
    assert not verdict(asked(BESIDE="lost", BRIDGE="lost"), "").well
    assert verdict(asked(BESIDE="lost", BRIDGE="ok"), "").well is False


def test_a_peer_that_this_node_has_not_programmed_is_not_asked():
    found = verdict([], UDP, "its subnet overlaps eth0")
    assert not found.well
    assert "overlaps eth0" in found.text
