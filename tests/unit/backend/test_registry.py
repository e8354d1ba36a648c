"""Backends by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyflannel.backend import registry
from pyflannel.core.backendconfig import KEYS
from pyflannel.core.errors import ConfigError
from tests.support.overlay import Machine, config


def context(tmp_path, backend: str):
    return Machine().context(config({"Type": backend}), tmp_path)


def test_the_built_in_names_are_those_that_the_config_knows():
    assert set(registry.BUILT_IN) == set(KEYS)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_built_in_name_is_made_by_a_module_of_ours(name, tmp_path):
    backend = registry.create(name, context(tmp_path, name))
    assert type(backend).__module__ == f"pyflannel.backend.{name.replace('-', '')}"


def test_upper_case_is_the_same_name(tmp_path):
    lower, upper = (registry.create(n, context(tmp_path, "alloc")) for n in ("alloc", "ALLOC"))
    assert type(lower) is type(upper)


@pytest.mark.parametrize("name", ["wireguard", "", "engine", "base", "../alloc", "host--gw", "os"])
def test_an_unknown_name_is_a_config_error_that_lists_the_known_ones(name, tmp_path):
    """Modules of the package that are no backends are unknown as well."""
    with pytest.raises(ConfigError, match="unknown backend type: ") as caught:
        registry.create(name, context(tmp_path, "alloc"))
    assert caught.value.exit_code == 78
    assert "alloc, extension, host-gw, ipip, udp, vxlan" in str(caught.value)


def test_a_name_cannot_be_registered_twice():
    registry.create("alloc", context("/nonexistent", "alloc"))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register("alloc")(lambda _context: None)


def test_a_name_that_could_not_be_asked_for_is_refused():
    with pytest.raises(ValueError, match="not a backend name"):
        registry.register("Upper")


def test_asking_for_one_backend_loads_no_other():
    """Imports are most of the start-up time."""
    code = (
        "import sys; from pyflannel.backend import registry; registry._load('alloc');"
        "print([m for m in sys.modules if m.startswith('pyflannel.backend.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pyflannel.backend.alloc" in done.stdout
    assert not any(name in done.stdout for name in ("vxlan", "hostgw", "ipip", "extension"))


def test_an_entry_point_of_another_package_is_found(monkeypatch, tmp_path):
    class Point:
        name = "ip-foo"

        def load(self):
            return lambda _context: "made elsewhere"

    def entry_points(*, group, name=None):
        assert group == "pyflannel.backends"
        return [Point()] if name in (None, "ip-foo") else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    monkeypatch.setattr(registry, "_REGISTRY", {})
    assert registry.create("IP-Foo", context(tmp_path, "alloc")) == "made elsewhere"
    with pytest.raises(ConfigError, match="ip-foo"):
        registry.create("ip-bar", context(tmp_path, "alloc"))
