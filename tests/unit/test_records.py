"""The product's records: what the library promises of its own holds for them too."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

import pytest

from pyflannel import records
from pyflannel.core.ip import SubnetKey

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY: Callable[..., Any] = dataclasses.dataclass
OURS: Callable[..., Any] = records.dataclass


def build(decorate: Callable[..., Any], **options: bool) -> Any:
    """A class with what records of ours have: a default, a made one, a hidden one."""

    class Made:
        """Something."""

        name: str
        secret: str = field(default="", repr=False)
        parts: tuple[int, ...] = field(default_factory=tuple)

    Made.__annotations__ = {"name": str, "secret": str, "parts": tuple}
    return decorate(**options)(Made)


@pytest.mark.parametrize(
    "options",
    [
        {"frozen": True, "slots": True},
        {"frozen": True, "slots": True, "kw_only": True},
        {"frozen": True, "slots": True, "order": True},
        {"slots": True},
        {"slots": True, "eq": False},
    ],
    ids=str,
)
def test_a_record_behaves_as_the_librarys(options: dict[str, bool]) -> None:
    mine, theirs = build(OURS, **options), build(LIBRARY, **options)
    one, same, other = (mine(name=n, secret="s", parts=(1,)) for n in ("a", "a", "b"))
    lone, lsame, lother = (theirs(name=n, secret="s", parts=(1,)) for n in ("a", "a", "b"))
    assert repr(one) == repr(lone)
    assert "s" not in repr(one).split("name=")[1].replace("parts", "")
    assert (one == same, one == other) == (lone == lsame, lone == lother)
    assert _hashable(mine(name="a")) == _hashable(theirs(name="a"))
    if options.get("frozen"):
        assert hash(one) == hash(same)
        assert dataclasses.replace(one, name="b") == other
    if options.get("order"):
        assert one < other
    assert dataclasses.asdict(one) == dataclasses.asdict(lone)
    assert not hasattr(one, "__dict__")
    assert copy.copy(one) is not one


def _hashable(instance: object) -> str:
    try:
        hash(instance)
    except TypeError as error:
        return str(error)
    return "yes"


def test_methods_that_a_class_brings_are_kept() -> None:
    @OURS(frozen=True, slots=True)
    class Key:
        number: int

        def __hash__(self) -> int:
            return 7

        def __repr__(self) -> str:
            return "key"

    assert (hash(Key(1)), repr(Key(1))) == (7, "key")


def test_a_base_of_the_librarys_makes_a_class_of_the_librarys() -> None:
    @LIBRARY(frozen=True, slots=True)
    class Base:
        number: int = 1

    @OURS(frozen=True, slots=True)
    class Derived(Base):
        name: str = ""

    with pytest.raises(dataclasses.FrozenInstanceError):
        Derived().name = "x"


def test_records_can_be_pickled() -> None:
    key = SubnetKey(IPv4Network("10.5.34.0/24"))
    assert dataclasses.is_dataclass(key)
    assert pickle.loads(pickle.dumps(key)) == key
