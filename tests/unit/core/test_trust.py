"""Commands of a network config: who may make this node run them."""

from __future__ import annotations

import pytest

from pyflannel.backend.kinds import BUILT_IN, KINDS
from pyflannel.core.config import NetworkConfig
from pyflannel.core.configparse import load_network_config
from pyflannel.core.errors import EXIT_CONFIG, ConfigError
from pyflannel.core.kind import every
from pyflannel.core.trust import ConfigOrigin, check_commands, command_warning


def config(backend: str) -> NetworkConfig:
    return load_network_config(
        f'{{"Network": "10.9.0.0/16", "Backend": {{"Type": "{backend}"}}}}', KINDS
    )


@pytest.mark.parametrize("spelling", ["extension", "Extension", "EXTENSION"])
def test_a_config_from_etcd_needs_this_nodes_consent_to_run_commands(spelling: str) -> None:
    with pytest.raises(ConfigError, match="FLANNELD_ALLOW_EXTENSION") as caught:
        check_commands(config(spelling), ConfigOrigin.ETCD, allowed=False)
    assert "--allow-extension" in str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG
    check_commands(config(spelling), ConfigOrigin.ETCD, allowed=True)


def test_a_file_of_this_node_needs_none() -> None:
    check_commands(config("extension"), ConfigOrigin.LOCAL_FILE, allowed=False)


@pytest.mark.parametrize("backend", sorted(set(BUILT_IN) - {"extension"}))
def test_backends_without_commands_need_none(backend: str) -> None:
    check_commands(config(backend), ConfigOrigin.ETCD, allowed=False)
    assert command_warning(config(backend)) is None


def test_every_backend_whose_config_has_commands_is_known() -> None:
    """A new one whose config has commands must not be forgotten here."""
    for kind in every(KINDS):
        has_commands = any("Command" in each.key for each in kind.settings.declared().values())
        assert kind.settings.RUNS_COMMANDS is has_commands, kind.name


def test_the_warning_names_the_key_and_the_way_out() -> None:
    warning = command_warning(config("extension"))
    assert warning is not None
    assert warning.key == "Backend.Type"
    assert "--allow-extension" in warning.remedy
