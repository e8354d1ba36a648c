"""Which kernel is meant, and which packages it is made of."""

from __future__ import annotations

import pytest

from tests.kernels.archive import (
    Kernel,
    Stanza,
    choose,
    is_series,
    newest_of_each_series,
    parse_stanzas,
    parts,
    sources,
)
from tests.kernels.cache import KernelsError, Mirrors, parse_mirrors

SHOWN = """\
Package: linux-image-6.1.0-9-amd64
Version: 6.1.27-1
Depends: kmod, linux-base (>= 4.3~)
Description: Linux 6.1 for 64-bit PCs
 Version: not a field

Package: linux-image-6.1.0-49-amd64
Version: 6.1.192-1
Pre-Depends: dpkg
Depends: kmod

Package: linux-image-6.1.0-49-rt-amd64
Version: 6.1.192-1

Package: linux-image-6.1.0-49-cloud-amd64
Version: 6.1.192-1

Package: linux-image-6.12.9+bpo-amd64
Version: 6.12.9-1~bpo12+1

Package: linux-image-6.12.38+deb13-amd64
Version: 6.12.38-1

Package: linux-image-amd64
Version: 6.1.192-1
"""


def kernels():
    return newest_of_each_series(parse_stanzas(SHOWN))


def test_each_series_is_there_once_with_its_newest_kernel_in_ascending_order():
    assert list(kernels().items()) == [
        ("6.1", Kernel("6.1", "6.1.0-49-amd64", "6.1.192-1")),
        ("6.1-cloud", Kernel("6.1-cloud", "6.1.0-49-cloud-amd64", "6.1.192-1")),
        ("6.12", Kernel("6.12", "6.12.38+deb13-amd64", "6.12.38-1")),
    ]
    assert kernels()["6.1"].upstream == "6.1.192"


def test_the_newest_is_a_number_not_a_text_and_no_cloud_kernel():
    assert choose("newest", kernels()).series == "6.12"
    assert choose("6.1-cloud", kernels()).release == "6.1.0-49-cloud-amd64"


def test_a_kernel_that_is_not_to_be_had_is_answered_with_those_that_are():
    with pytest.raises(KernelsError, match=r"kernel 5\.4: .* it has 6\.1, 6\.1-cloud, 6\.12$"):
        choose("5.4", kernels())
    with pytest.raises(KernelsError, match="no kernel at all"):
        choose("newest", {})


def test_a_kernel_is_its_image_and_what_that_depends_on_of_the_same_release():
    kernel = Kernel("7.3", "7.3.4-amd64", "7.3.4-1")
    stanzas = [
        Stanza("linux-image-7.3.4-amd64", "1", ("linux-binary-7.3.4-amd64", "kmod", "linux-base")),
        Stanza("linux-binary-7.3.4-amd64", "1", ("linux-modules-7.3.4-amd64",)),
        Stanza("linux-modules-7.3.4-amd64", "1", ("linux-binary-7.3.4-amd64",)),
        Stanza("linux-headers-7.3.4-amd64", "1", ()),
    ]
    assert parts(kernel, stanzas) == [
        "linux-image-7.3.4-amd64",
        "linux-binary-7.3.4-amd64",
        "linux-modules-7.3.4-amd64",
    ]
    assert parts(kernel, []) == ["linux-image-7.3.4-amd64"]


def test_dependencies_are_names_without_versions_and_alternatives():
    text = "Package: p\nPre-Depends: a (>= 1)\nDepends: b:any, c | d, e\n"
    (stanza,) = parse_stanzas(text)
    assert stanza.depends == ("a", "b", "c", "e")


def test_security_updates_are_asked_for_where_the_machine_has_them():
    with_updates = sources(Mirrors("http://m.invalid/d", "http://m.invalid/s"))
    assert "http://m.invalid/s bullseye-security main" in with_updates
    assert "http://m.invalid/d trixie-backports main" in with_updates
    without = sources(parse_mirrors("main http://m.invalid/d\n"))
    assert "security" not in without
    assert without.count("\n") == 4


@pytest.mark.parametrize(
    ("word", "names_one"),
    [("6.1", True), ("5.10", True), ("6.1-cloud", True), ("newest", True), ("6", False),
     ("tests/contract", False), ("6.1.192", False)],
)  # fmt: skip
def test_kernels_and_tests_are_told_apart(word: str, names_one: bool):
    assert is_series(word) is names_one
