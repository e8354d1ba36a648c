"""As `test_do_no_harm`: every backend and data path, both traffic managers, IPv4 and dual stack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.integration.test_do_no_harm import CASES
from tests.support.guests import need_devices
from tests.support.photograph import IPV4_ALONE, WAYS, life_changes_nothing

pytestmark = [pytest.mark.root, pytest.mark.slow]

EVERY = [
    replace(way, nftables=nftables, ipv6=ipv6)
    for way in WAYS
    for nftables in (False, True)
    for ipv6 in ((False,) if way.backend in IPV4_ALONE else (False, True))
]

# Few machines have the module; the guests of `make kernels` do.
CHOSEN = [
    pytest.param(case, marks=[pytest.mark.guest] if case.backend == "ipip" else [], id=str(case))
    for case in EVERY
    if case not in CASES
]


@pytest.mark.parametrize("case", CHOSEN)
def test_nothing_but_what_is_listed_differs(case):
    if case.backend == "ipip":
        need_devices("ipip")
    life_changes_nothing(case, restart=case.backend in {"vxlan", "ipip", "udp"})
