"""How many requests the kernel is given at once."""

from __future__ import annotations

from pyflannel.kernel.channel import MOST_AT_ONCE, BatchSizes
from pyflannel.kernel.rtnl import Request

NEIGHBOUR, ROUTE = Request(28, 0, b""), Request(24, 0, b"")


def sizes_of(sizes: BatchSizes, requests: list[Request], cost_s: dict[int, float]) -> list[int]:
    """The batches that requests go out in, where each kind costs so much."""
    found: list[int] = []
    while sum(found) < len(requests):
        batch = sizes.next(requests, sum(found))
        found.append(len(batch))
        sizes.took(batch, sum(cost_s[request.kind] for request in batch))
    return found


def test_quick_requests_go_out_in_ever_larger_batches():
    sizes = BatchSizes()
    assert sizes_of(sizes, [ROUTE] * 188, {24: 0.000_01}) == [4, 8, 16, 32, 64, 64]
    assert sizes_of(sizes, [ROUTE] * 128, {24: 0.000_01}) == [MOST_AT_ONCE] * 2


def test_slow_ones_go_out_as_many_as_are_done_in_good_time():
    sizes = BatchSizes()
    assert sizes_of(sizes, [ROUTE] * 6, {24: 0.01}) == [4, 1, 1]
    assert sizes_of(sizes, [ROUTE] * 9, {24: 0.0005})[-1] in {1, 2, 4}


def test_what_is_slow_of_one_kind_leaves_the_other_as_it_is():
    sizes = BatchSizes()
    cost_s = {28: 0.000_01, 24: 0.01}
    sizes_of(sizes, [NEIGHBOUR] * 200, cost_s)
    sizes_of(sizes, [ROUTE] * 10, cost_s)
    assert len(sizes.next([NEIGHBOUR] * 100, 0)) == MOST_AT_ONCE
    assert len(sizes.next([ROUTE] * 100, 0)) == 1
    assert len(sizes.next([NEIGHBOUR, ROUTE, ROUTE, NEIGHBOUR], 0)) == 2
