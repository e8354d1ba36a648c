"""The accept in docker's chain: where it stands, whose it is, and that nothing else is touched."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from pyflannel.core.ip import Family
from pyflannel.core.subnetenv import parse
from pyflannel.docker.userchain import (
    Overlay,
    SetUp,
    comment,
    difference,
    load,
    overlays_of_file,
    own_rules,
    save,
)

MARK = comment("/var/lib/pyflannel")
OVERLAY = Overlay(IPv4Network("10.5.0.0/16"), IPv4Network("10.5.7.0/24"))
OURS = (
    '-A DOCKER-USER -s 10.5.0.0/16 -d 10.5.7.0/24 -m comment --comment "pyflannel'
    ' /var/lib/pyflannel" -j ACCEPT'
)
INSERT = OURS.replace("-A DOCKER-USER", "-I DOCKER-USER {}")
OTHERS = OURS.replace("/var/lib/pyflannel", "/var/lib/pyflannel-b").replace("10.5", "10.6")
OPERATORS = "-A DOCKER-USER -i eth0 -j DROP"
RETURN = "-A DOCKER-USER -j RETURN"


def saved(*rules: str) -> str:
    """The filter table as docker 28.5 leaves it, with these rules in its chain for users."""
    return "\n".join(
        [
            "*filter",
            ":FORWARD DROP [0:0]",
            ":DOCKER - [0:0]",
            ":DOCKER-USER - [0:0]",
            "-A FORWARD -j DOCKER-USER",
            "-A FORWARD -j DOCKER-FORWARD",
            "-A DOCKER ! -i docker0 -o docker0 -j DROP",
            *rules,
            "COMMIT",
        ]
    )


def written(*lines: str) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""])


@pytest.mark.parametrize(
    ("there", "place"),
    [((), 1), ((RETURN,), 1), ((OPERATORS,), 2), ((OPERATORS, RETURN), 2), ((OTHERS,), 2)],
)
def test_it_stands_last_but_before_the_return_for_all(there: tuple[str, ...], place: int) -> None:
    """An operator's drop before it keeps winning, and what stands behind RETURN is never asked."""
    assert difference(saved(*there), OVERLAY, MARK) == written(INSERT.format(place))


@pytest.mark.parametrize("there", [(OURS,), (OPERATORS, OURS, RETURN), (OURS, OPERATORS, OTHERS)])
def test_what_is_there_already_is_left_alone(there: tuple[str, ...]) -> None:
    assert difference(saved(*there), OVERLAY, MARK) == ""


def test_one_that_is_never_reached_is_moved() -> None:
    delete = OURS.replace("-A", "-D", 1)
    changes = difference(saved(OPERATORS, RETURN, OURS), OVERLAY, MARK)
    assert changes == written(delete, INSERT.format(2))


def test_a_rule_of_a_former_lease_is_replaced_in_one_step() -> None:
    former = OURS.replace("10.5.7.0/24", "10.5.9.0/24")
    changes = difference(saved(former, OTHERS), OVERLAY, MARK)
    assert changes == written(former.replace("-A", "-D", 1), INSERT.format(2))


def test_without_docker_there_is_no_chain_and_nothing_to_do() -> None:
    assert difference("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", OVERLAY, MARK) == ""


def test_removed_are_our_own_rules_and_no_others() -> None:
    again = OURS.replace("10.5.7.0", "10.5.8.0")
    changes = difference(saved(OPERATORS, OURS, OTHERS, again, RETURN), None, MARK)
    assert changes == written(OURS.replace("-A", "-D", 1), again.replace("-A", "-D", 1))
    assert own_rules(saved(OPERATORS, OTHERS, RETURN), MARK) == []


def test_the_comment_is_no_longer_than_the_kernel_takes() -> None:
    assert len(comment("/" + "a" * 400)) == 255


def test_the_record_is_for_root_alone_and_survives_damage(tmp_path) -> None:
    state = tmp_path / "state"
    assert load(state) is None
    save(state, SetUp(drop_in="/etc/x.conf"))
    assert load(state) == SetUp(drop_in="/etc/x.conf")
    (record,) = state.iterdir()
    assert (state.stat().st_mode & 0o777, record.stat().st_mode & 0o777) == (0o700, 0o600)
    for damage in (b"", b"[]", b"\xff", b'{"drop_in": 7}'):
        record.write_bytes(damage)
        assert load(state) == SetUp()


def test_what_is_accepted_is_in_subnet_env() -> None:
    text = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.7.1/24\n"
    assert overlays_of_file(parse(text)) == {Family.V4: OVERLAY}
    assert overlays_of_file(parse("FLANNEL_SUBNET=10.5.7.1/24\n")) == {}
