"""Which limit of the machine is too low, and what to do about it."""

from __future__ import annotations

import pytest

from pyflannel.core.limits import MIN_ADDRESS_SPACE, MIN_FILES, MIN_TASKS, Limits, too_low


def test_no_limit_and_the_floors_themselves_are_enough():
    assert too_low(Limits()) == ""
    floors = Limits(files=MIN_FILES, address_space=MIN_ADDRESS_SPACE, tasks=MIN_TASKS)
    assert too_low(floors) == ""


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(files=MIN_FILES - 1), ["open files is 63", "LimitNOFILE="]),
        (Limits(address_space=MIN_ADDRESS_SPACE - 1), ["767 MiB", "LimitAS=", "MemoryMax="]),
        (Limits(tasks=MIN_TASKS - 1, tasks_where="/x.slice"), ["/x.slice allows 23", "TasksMax="]),
    ],
)
def test_one_below_is_named_with_the_way_out(limits, words):
    text = too_low(limits)
    assert all(word in text for word in words)
