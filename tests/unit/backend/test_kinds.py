"""The kinds of backend: ours, and those of other packages."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import pyflannel.backend
from pyflannel.backend import alloc, kinds
from pyflannel.backend.kinds import BUILT_IN, KINDS, BackendKinds, create
from pyflannel.cli import cleanup
from pyflannel.core.errors import ConfigError
from pyflannel.core.ip import Family
from pyflannel.core.kind import DevicePattern, every
from tests.support.overlay import Machine, config

ALL = list(every(KINDS))


def context(tmp_path, backend: str):
    return Machine().context(config({"Type": backend}), tmp_path)


def test_the_list_is_what_is_there():
    modules = {
        module.name
        for module in pkgutil.iter_modules(pyflannel.backend.__path__)
        if "= BackendKind(" in Path(module.module_finder.find_spec(module.name).origin).read_text()
    }
    assert modules == {name.replace("-", "") for name in BUILT_IN}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_name_of_ours_is_a_module_of_ours(name, tmp_path):
    kind = KINDS.get(name)
    assert kind.name == name
    assert KINDS.get(name) is kind
    backend = create(context(tmp_path, name))
    assert type(backend).__module__ == f"pyflannel.backend.{name.replace('-', '')}"


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_the_devices_of_a_kind_are_those_that_cleanup_recognises(kind):
    names = kind.device_names(config({"Type": kind.name}, ipv6=True))
    assert set(names) <= set(kind.families)
    link_kinds = {pattern.link_kind for pattern in kind.devices}
    for name in names.values():
        assert any(kind.is_device(name, link_kind) for link_kind in link_kinds)
        assert not kind.is_device(name, "bridge")
        assert not any(kind.is_device(name + "x", link_kind) for link_kind in link_kinds)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_a_kind_says_all_that_people_are_shown_and_is_fine_on_a_usual_node(kind):
    assert set(kind.overhead) == set(kind.families)
    assert kind.summary
    assert not kind.summary.endswith(".")
    assert kind.fits(config({"Type": kind.name}), Machine().external()) == ()


@pytest.mark.parametrize("name", ["wireguard", "", "engine", "base", "../alloc", "host--gw", "os"])
def test_an_unknown_name_is_a_config_error_that_lists_the_known_ones(name, tmp_path):
    """Modules of the package that are no backends are unknown as well."""
    assert KINDS.get(name) is None
    unknown = replace(config({"Type": "alloc"}), backend_type=name)
    with pytest.raises(ConfigError, match="unknown backend type: ") as caught:
        create(Machine().context(unknown, tmp_path))
    assert caught.value.exit_code == 78
    assert "alloc, extension, host-gw, ipip, udp, vxlan" in str(caught.value)


def test_asking_for_one_backend_loads_no_other():
    """Imports are most of the start-up time."""
    code = (
        "import sys; from pyflannel.backend.kinds import KINDS; KINDS.get('alloc');"
        "print(*(m for m in sys.modules if m.startswith(('pyflannel.backend.', 'importlib.'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "pyflannel.backend.alloc" in loaded
    others = {f"pyflannel.backend.{n.replace('-', '')}" for n in BUILT_IN if n != "alloc"}
    assert not (others | {"importlib.metadata"}) & set(loaded)


@pytest.mark.parametrize(
    ("name", "link_kind", "ours", "cleaned_up"),
    [
        ("flannel0", "tun", True, True),
        ("flannel.1", "vxlan", True, True),
        ("flannel-v6.4096", "vxlan", True, True),
        ("flannel.ipip", "ipip", True, True),
        ("flannelgro0", "veth", True, True),
        ("flannelgro1", "veth", True, False),
        ("flannel0", "bridge", False, False),
        ("flannel.1x", "vxlan", False, False),
        ("eth0", "tun", False, False),
    ],
)
def test_devices_of_all_kinds_are_told_from_others(name, link_kind, ours, cleaned_up):
    """The other end of a pair goes with the first: it need not be removed."""
    assert KINDS.is_device(name, link_kind) is ours
    assert any(kind.leaves(name, link_kind) for kind in ALL) is cleaned_up


def test_devices_of_others_and_of_backends_in_use_load_no_other_kind(monkeypatch):
    """A start looks at all links of the node."""
    known = announce(monkeypatch)
    assert known.get("vxlan").is_device("flannel.1", "vxlan")
    monkeypatch.setattr(kinds, "installed", lambda: pytest.fail("all were loaded"))
    assert known.is_device("flannel.1", "vxlan")
    assert not known.is_device("eth0", "")
    assert not known.is_device("docker0", "bridge")


# Other packages.


@dataclass
class Point:
    """An entry point."""

    name: str
    found: object
    value: str = "elsewhere:KIND"

    def load(self):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def announce(monkeypatch, *points: Point) -> BackendKinds:
    monkeypatch.setattr(kinds, "installed", lambda: points)
    return BackendKinds()


FOO = replace(alloc.KIND, name="ip-foo")


def test_a_backend_of_another_package_is_found(monkeypatch, tmp_path):
    known = announce(monkeypatch, Point("ip-foo", FOO))
    assert known.get("ip-foo") is FOO
    assert "ip-foo" in known.names()
    wanted = replace(config({"Type": "alloc"}), backend_type="ip-foo")
    assert isinstance(create(Machine().context(wanted, tmp_path), known), alloc.AllocBackend)


def test_ours_win(monkeypatch):
    known = announce(monkeypatch, Point("alloc", replace(alloc.KIND, summary="another")))
    assert known.get("alloc") is alloc.KIND
    assert known.names() == sorted(BUILT_IN)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            ImportError("no module named foo"),
            "cannot be loaded: ImportError('no module named foo')",
        ),
        (ZeroDivisionError(), "cannot be loaded: ZeroDivisionError()"),
        (alloc.AllocBackend, "it is type, expected its BackendKind"),
        (replace(FOO, name="ip-bar"), "it is ip-bar, expected its BackendKind"),
    ],
)
def test_one_that_cannot_be_used_is_an_error_only_where_it_is_asked_for(found, reason, monkeypatch):
    known = announce(monkeypatch, Point("ip-foo", found))
    with pytest.raises(ConfigError) as caught:
        known.get("ip-foo")
    assert str(caught.value).startswith("backend ip-foo of another package (elsewhere:KIND) ")
    assert reason in str(caught.value)
    assert [kind.name for kind in every(known)] == sorted(BUILT_IN)


def test_cleanup_says_whose_traces_it_cannot_tell(monkeypatch, capsys):
    known = announce(monkeypatch, Point("ip-foo", ImportError("no module foo")))
    assert [kind.name for kind in cleanup.loadable(known)] == sorted(BUILT_IN)
    said = capsys.readouterr().err
    assert said.startswith("pyflannel cleanup: what it left is not looked for: backend ip-foo ")
    assert "no module foo" in said


@pytest.mark.parametrize("name", ["", "Upper", "a--b", "-a", "a b", "ä"])
def test_a_name_that_could_not_be_asked_for_is_refused(name):
    with pytest.raises(ValueError, match="not a backend name"):
        replace(FOO, name=name)


def test_a_device_with_a_common_name_is_refused():
    with pytest.raises(ValueError, match="starts with flannel"):
        replace(FOO, devices=(DevicePattern(r"tun\d+", "tun"),))


def test_a_kind_without_a_family_is_refused():
    with pytest.raises(ValueError, match="carries no family"):
        replace(FOO, families=())


# The families.

LOST = "pods get {} subnets but no way out; vxlan and host-gw carry both; or"
USE = "is not enabled; use vxlan or host-gw, or enable"


@pytest.mark.parametrize(
    ("mine", "ipv4", "ipv6", "key", "text"),
    [
        (4, True, True, "EnableIPv6", f"{LOST.format('IPv6')} leave EnableIPv6 out"),
        (4, False, True, "Backend.Type", f"IPv4 {USE} IPv4"),
        (6, True, True, "EnableIPv4", f"{LOST.format('IPv4')} set EnableIPv4 to false"),
        (6, True, False, "Backend.Type", f"IPv6 {USE} IPv6"),
    ],
)
def test_a_family_that_a_kind_does_not_carry(mine, ipv4, ipv6, key, text):
    kind = replace(FOO, families=(Family(mine),))
    (problem,) = kind.fits(config({"Type": "alloc"}, ipv4=ipv4, ipv6=ipv6), kinds=KINDS)
    assert str(problem).startswith(f"backend ip-foo carries IPv{mine} only")
    assert str(problem).endswith(text)
    assert problem.key == key
    assert problem.is_error is (key == "Backend.Type")
