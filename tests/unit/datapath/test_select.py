"""`pyflannel.datapath.select`: the fastest that works, and why; what was asked for, or why not."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from pyflannel.core.errors import DatapathError
from pyflannel.datapath.base import Capabilities, Link
from pyflannel.datapath.python import PythonDatapath
from pyflannel.datapath.select import IMPLEMENTATIONS, Implementation, create, probe_all
from tests.support.datapaths import CONFIG


@pytest.fixture
def module(monkeypatch):
    """Makes importable modules with a given answer to `probe()`; tells which were asked."""
    asked = []

    def make(name, answer):
        fake = ModuleType(f"fake_datapath_{name}")

        def probe():
            asked.append(name)
            if isinstance(answer, Exception):
                raise answer
            return answer

        fake.probe = probe
        fake.Path = lambda config: (name, config)
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        return Implementation(fake.__name__, "Path", f"install {name}")

    make.asked = asked
    return make


def test_auto_takes_the_fastest_and_asks_no_slower_one(module):
    choice = create(
        "auto",
        {
            "fast": module("fast", Capabilities(name="fast", wants_vnet_hdr=True)),
            "slow": module("slow", Capabilities(name="slow")),
        },
    )
    assert choice.factory.capabilities.name == "fast"
    assert choice.factory.capabilities.wants_vnet_hdr
    assert choice.factory(CONFIG) == ("fast", CONFIG)
    assert choice.reason == "the fastest there is"
    assert module.asked == ["fast"]


def test_auto_says_why_it_passed_over_what_is_faster(module):
    factory, reason = create(
        "auto",
        {
            "fast": module("fast", "the kernel is too old"),
            "medium": Implementation("no_such_module_at_all", "Path", ""),
            "odd": module("odd", DatapathError("bpf: EPERM")),
            "slow": module("slow", Capabilities(name="slow")),
        },
    )
    assert factory(CONFIG) == ("slow", CONFIG)
    assert "not fast: the kernel is too old" in reason
    assert "not medium: it is not installed: No module named 'no_such_module_at_all'" in reason
    assert "not odd: bpf: EPERM" in reason


def test_auto_passes_over_what_has_just_failed_to_start(module):
    choice = create(
        "auto",
        {
            "fast": module("fast", Capabilities(name="fast")),
            "slow": module("slow", Capabilities(name="slow")),
        },
        failed={"fast": "attach to eth0: EBUSY"},
    )
    assert choice.factory.capabilities.name == "slow"
    assert choice.reason == "not fast: attach to eth0: EBUSY"


def test_auto_passes_over_what_would_not_be_faster_here(module):
    """But it is taken where it is asked for."""
    fast = Capabilities(name="fast", wants_ethernet=True)
    implementations = {
        "fast": module("fast", fast),
        "slow": module("slow", Capabilities(name="slow")),
    }
    choice = create("auto", implementations, link=Link(ethernet=False))
    assert choice.factory.capabilities.name == "slow"
    assert choice.reason.startswith("not fast: the external interface's packets have no Ethernet")
    asked = create("fast", implementations, link=Link(ethernet=False))
    assert asked.factory.capabilities.name == "fast"
    assert asked.reason.startswith("asked for, though the external interface's packets have no")


def test_auto_with_nothing_that_works_is_an_error(module):
    with pytest.raises(DatapathError, match="not fast: broken"):
        create("auto", {"fast": module("fast", "broken")})


def test_a_forced_kind_is_taken_even_if_another_is_faster(module):
    choice = create(
        "slow",
        {
            "fast": module("fast", Capabilities(name="fast")),
            "slow": module("slow", Capabilities(name="slow")),
        },
    )
    assert choice.factory.capabilities.name == "slow"
    assert choice.reason == "asked for"
    assert module.asked == ["slow"]


def test_a_forced_kind_that_cannot_be_had_names_what_is_missing_and_the_way_out(module):
    implementations = {"fast": module("fast", "no compiler was there")}
    with pytest.raises(DatapathError) as caught:
        create("fast", implementations)
    assert "no compiler was there" in str(caught.value)
    assert "install fast" in str(caught.value)
    assert "--datapath auto" in str(caught.value)
    assert caught.value.exit_code == 69


def test_a_package_without_its_built_part_is_not_available(monkeypatch):
    monkeypatch.setitem(sys.modules, "fake_unbuilt", ModuleType("fake_unbuilt"))
    implementation = Implementation("fake_unbuilt", "Path", "build it")
    assert implementation.probe() == "it is not part of this installation"


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(DatapathError, match="auto, ebpf, native, python"):
        create("turbo")


def test_the_order_is_ebpf_native_python_and_python_is_always_there():
    assert list(IMPLEMENTATIONS) == ["ebpf", "native", "python"]
    assert probe_all()["python"] == Capabilities(name="python")
    path = create("python").factory(CONFIG)
    assert isinstance(path, PythonDatapath)
