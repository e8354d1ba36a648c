"""The past of peers: bounded, with rates between two reports."""

from __future__ import annotations

from pyflannel.report.model import PeerReport
from pyflannel.web.history import MOST_PEERS, SAMPLES, UNKNOWN, History, Rates

NAME = "10.5.2.0/24"


def peer(received=None, sent=None, **more):
    return PeerReport(subnet=NAME, bytes_in=received, bytes_out=sent, **more)


def test_a_ring_keeps_the_newest_samples():
    history = History()
    for now in range(SAMPLES + 7):
        history.add([peer(rtt_s=now / 1000)], float(now))
    samples = history.samples(NAME)
    assert len(samples) == SAMPLES
    assert samples[0][:3] == (7.0, "unknown", 0.007)
    assert samples[-1][0] == SAMPLES + 6


def test_rates_are_those_between_the_last_two_reports():
    history = History()
    history.add([peer(1000, 10)], 100.0)
    assert history.rates(NAME) == UNKNOWN
    history.add([peer(3000, 10)], 104.0)
    assert history.rates(NAME) == Rates(500.0, 0.0)
    assert history.samples(NAME)[-1][4:] == (500.0, 0.0)


def test_a_counter_that_began_anew_or_is_not_there_has_no_rate():
    history = History()
    history.add([peer(1000, 10)], 100.0)
    history.add([peer(5, None)], 102.0)
    assert history.rates(NAME) == UNKNOWN
    history.add([peer(7, 4)], 104.0)
    assert history.rates(NAME) == Rates(1.0, None)


def test_the_same_report_again_and_an_older_one_are_no_samples():
    history = History()
    history.add([peer(1)], 100.0)
    history.add([peer(9)], 100.0)
    history.add([peer(9)], 50.0)
    assert len(history.samples(NAME)) == 1


def test_a_peer_that_is_gone_is_forgotten():
    history = History()
    history.add([peer(1)], 100.0)
    history.add([], 102.0)
    assert history.samples(NAME) == []
    assert history.rates(NAME) == UNKNOWN


def test_so_many_peers_have_a_past_and_no_more():
    history = History()
    many = [PeerReport(subnet=f"peer {number}") for number in range(MOST_PEERS + 5)]
    for now in (1.0, 2.0):
        history.add(many, now)
    assert len(history.samples(f"peer {MOST_PEERS - 1}")) == 2
    assert history.samples(f"peer {MOST_PEERS}") == []
