"""What a test that needs certain devices comes to, here and in a guest."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import guests


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch):
    """Plays `ip` on a kernel: what it says about each kind of device."""

    def says(**errors: str) -> None:
        def run(argv, **_):
            text = errors[argv[-1]]
            return subprocess.CompletedProcess(argv, 2 if text else 0, "", text)

        monkeypatch.setattr(guests.subprocess, "run", run)

    guests.has_device.cache_clear()
    yield says
    guests.has_device.cache_clear()


LACKING = {
    "bond": "Error: Unknown device type.\n",
    "vrf": "RTNETLINK answers: Operation not supported\n",
}


def test_a_kind_is_there_if_the_kernel_asks_for_more_than_its_name(kernel):
    kernel(
        vlan="Error: 8021q: VLAN properties not specified.\n",
        ipip="File exists\n",
        dummy="",
        **LACKING,
    )
    assert [k for k in ("vlan", "ipip", "dummy", "bond", "vrf") if guests.has_device(k)] == [
        "vlan",
        "ipip",
        "dummy",
    ]


@pytest.mark.parametrize(
    ("guest", "outcome"), [("", pytest.skip.Exception), ("6.1", pytest.fail.Exception)]
)
def test_what_lacks_is_skipped_here_and_a_failure_there(
    kernel, guest: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
):
    kernel(dummy="", **LACKING)
    monkeypatch.setattr(guests, "GUEST", guest)
    guests.need_devices("dummy")
    with pytest.raises(outcome, match="no devices of kind bond, vrf"):
        guests.need_devices("dummy", "bond", "vrf")
