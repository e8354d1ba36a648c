"""The whole node photographed: among objects of others the daemon changes nothing but its own.

Before a start, while running, after a stop, after `pyflannel cleanup`, with foreign objects of
every kind beside ours and in their way. What may differ is what `docs/ownership.md` lists, and
while the daemon runs nothing that was there before may be missing. After the clean-up the node is
as it was. Some cases; `test_do_no_harm_everywhere.py` has the rest.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.photograph import IPV4_ALONE, SILENT, WAYS, life_changes_nothing

pytestmark = [pytest.mark.root, pytest.mark.slow]

CASES = [
    replace(way, nftables=number % 2 == 1, ipv6=way.backend not in IPV4_ALONE)
    for number, way in enumerate(WAYS)
    if way.backend not in SILENT | {"ipip"}
    and way.datapath != "python"
    and "DirectRouting" not in way.settings
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nothing_but_what_is_listed_differs(case):
    life_changes_nothing(case, restart=case.backend == "vxlan")
