"""Which known word was probably meant by an unknown one.

For config keys, backend types and flags alike: case, `-` and `_` do not count, and a slip of the
fingers (a letter too many, too few, wrong, or two swapped) counts one.
"""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, or `None` if nothing is near.

    Near means at most one slip for every three letters of the shorter of the two, and at least one
    slip allowed; beyond that a suggestion confuses more than it helps. Ties go to the first.
    """
    plain = _plain(word)
    best: str | None = None
    best_distance = 0
    for candidate in known:
        other = _plain(candidate)
        allowed = max(1, min(len(plain), len(other)) // 3)
        if abs(len(plain) - len(other)) > allowed:
            continue
        distance = slips(plain, other)
        if distance <= allowed and (best is None or distance < best_distance):
            best, best_distance = candidate, distance
    return best


def slips(a: str, b: str) -> int:
    """How many letters must be inserted, deleted, replaced or swapped with their neighbour.

    The "optimal string alignment" distance: dynamic programming over prefixes, three rows of it.
    """
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row, older = row, [i], before
        before = above
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


def _plain(word: str) -> str:
    return word.lower().replace("-", "").replace("_", "")
