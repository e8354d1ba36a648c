"""`DeltaMap`: what should be, what is, and the difference between the two, kept up to date.

Everything that reconciles keeps two maps: *desired*, which we know exactly because we decide it,
and *actual*, which other programs may change and which we therefore read back now and then. The
work to do is their difference, and it is asked for far more often than either map changes as a
whole; so the difference is kept beside them and touched by every change:

    want / unwant     one desired key changes         O(1)
    replace_actual    a new listing of what is there  O(n)
    applied           one operation was carried out   O(1)

`sets()` and `deletes()` list what is pending. Carrying it out is the caller's business, and so is
the order between maps. What failed is simply not reported as `applied` and stays pending.

(The idea is that of Calico Felix's `deltatracker`.)
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from types import MappingProxyType
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

AT_ONCE: Final = 100
"""Values that are compared between two pauses: some 0.5 ms."""


class DeltaMap(Generic[K, V]):
    """Desired and actual values by key, and what is pending between them.

    Values are compared with `==`. Iteration is in the order in which keys became pending. Not
    thread-safe, and not to be changed while one of its iterators is in use.
    """

    __slots__ = ("_actual", "_deletes", "_desired", "_sets")

    def __init__(self) -> None:
        self._desired: dict[K, V] = {}
        self._actual: dict[K, V] = {}
        # Dictionaries as ordered sets: pending work is carried out in the order it came up.
        self._sets: dict[K, None] = {}
        self._deletes: dict[K, None] = {}

    @property
    def desired(self) -> Mapping[K, V]:
        """What should be; a read-only view."""
        return MappingProxyType(self._desired)

    @property
    def actual(self) -> Mapping[K, V]:
        """What is, as far as we know; a read-only view."""
        return MappingProxyType(self._actual)

    def want(self, key: K, value: V) -> None:
        """From now on `value` should be there under `key`."""
        self._desired[key] = value
        self._deletes.pop(key, None)
        if key in self._actual and self._actual[key] == value:
            self._sets.pop(key, None)
        else:
            self._sets[key] = None

    def unwant(self, key: K) -> None:
        """From now on nothing should be there under `key`."""
        self._desired.pop(key, None)
        self._sets.pop(key, None)
        if key in self._actual:
            self._deletes[key] = None

    def replace_actual(self, actual: Mapping[K, V]) -> list[K]:
        """Takes a complete listing of what is there.

        Where an actual value equals the desired one, the desired object itself is kept, so that a
        thousand equal values take memory once.

        Returns:
            The keys that *drifted*: nothing was pending for them before, and something is now.
        """
        steps = self.replacing_actual(actual)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                drifted: list[K] = end.value
                return drifted

    def replacing_actual(self, actual: Mapping[K, V]) -> Generator[None, None, list[K]]:
        """As `replace_actual`, with a pause after each `AT_ONCE` values.

        Until the end `want` and `unwant` have to wait.
        """
        desired = self._desired
        kept: dict[K, V] = {}
        sets = dict.fromkeys(desired)
        deletes: dict[K, None] = {}
        for count, (key, value) in enumerate(actual.items(), 1):
            if count % AT_ONCE == 0:
                yield
            if key not in desired:
                deletes[key] = None
            elif desired[key] == value:
                kept[key] = desired[key]
                del sets[key]
                continue
            kept[key] = value
        drifted: list[K] = []
        for pending, before in ((sets, self._sets), (deletes, self._deletes)):
            for count, key in enumerate(pending, 1):
                if count % AT_ONCE == 0:
                    yield
                if key not in before:
                    drifted.append(key)
        replaced, self._actual = self._actual, kept
        self._sets, self._deletes = sets, deletes
        while replaced:
            replaced.popitem()
            if len(replaced) % AT_ONCE == 0:
                yield
        return drifted

    def applied(self, key: K) -> None:
        """What was pending for `key` has been carried out: actual is now as desired."""
        self._sets.pop(key, None)
        self._deletes.pop(key, None)
        if key in self._desired:
            self._actual[key] = self._desired[key]
        else:
            self._actual.pop(key, None)

    def sets(self) -> Iterator[tuple[K, V]]:
        """What is missing or different, with the desired value."""
        return ((key, self._desired[key]) for key in self._sets)

    def deletes(self) -> Iterator[tuple[K, V]]:
        """What is there and should not be, with the actual value."""
        return ((key, self._actual[key]) for key in self._deletes)

    def __len__(self) -> int:
        """How many keys are pending."""
        return len(self._sets) + len(self._deletes)
