"""The drop-in fits docker's unit of every package."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyflannel.docker import options as docker_options
from pyflannel.docker.dockerd import Direct
from pyflannel.docker.dropin import KEYS, MARK, drop_in, referenced
from pyflannel.docker.unitfile import Unit, merge

UNITS = {
    "debian": "ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/c.sock $DOCKER_OPTS",
    "docker": "ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/c.sock",
    "centos": "ExecStart=/usr/bin/dockerd-current \\\n  --exec-opt native.cgroupdriver=systemd"
    " \\\n  $OPTIONS $DOCKER_STORAGE_OPTIONS $DOCKER_NETWORK_OPTIONS",
    "one word": "ExecStart=/usr/bin/dockerd -H fd:// ${DOCKER_OPTS}",
}


def unit(name: str) -> tuple[str, str]:
    return "/lib/docker.service", f"[Unit]\nAfter=network.target\n[Service]\n{UNITS[name]}\n"


def with_drop_in(name: str) -> Unit:
    return merge([unit(name), ("/etc/pyflannel.conf", drop_in(merge([unit(name)])))])


@pytest.mark.parametrize("name", UNITS)
def test_with_it_docker_gets_the_options_and_waits_for_us(name: str) -> None:
    whole = with_drop_in(name)
    assert "/run/docker_opts.env" in whole.environment_files
    assert "pyflannel.service" in whole.words("Unit", "After")
    assert not {"Wants", "Requires", "BindsTo"} & {name for _, name in whole.settings}
    assert referenced(whole)


@pytest.mark.parametrize(
    ("name", "rewritten"), list(zip(UNITS, (False, True, False, True), strict=True))
)
def test_the_command_line_is_taken_over_only_where_it_has_to_be(name: str, rewritten: bool) -> None:
    before = merge([unit(name)]).command_line
    after = with_drop_in(name).command_line
    if rewritten:
        assert after == f"{before.replace(' ${DOCKER_OPTS}', '')} $DOCKER_OPTS"
    else:
        assert after == before


@pytest.mark.parametrize("name", UNITS)
def test_of_a_unit_that_has_it_the_same_comes_out(name: str) -> None:
    """Looked at without it, as `docker-setup` does, nothing changes the second time."""
    assert drop_in(merge([unit(name)])) == drop_in(merge([unit(name)]))
    assert drop_in(merge([unit(name)])).startswith(MARK)


def test_the_packaged_drop_in_is_the_one_for_units_that_have_a_variable() -> None:
    packaged = Path(__file__).parents[3] / "systemd/docker.service.d/pyflannel.conf"
    assert packaged.read_text() == drop_in(None) == drop_in(merge([unit("debian")]))


def test_the_unit_has_the_daemon_write_both_variables() -> None:
    service = Path(__file__).parents[3] / "systemd/pyflannel.service"
    found = merge([(str(service), service.read_text())])
    assert f"FLANNELD_DOCKER_OPTS_KEYS={','.join(KEYS)}" in found.values("Service", "Environment")


def test_enabling_makes_the_want_that_the_drop_in_does_not_have() -> None:
    """Package installed, not enabled: docker must start without it, and must not start it."""
    service = Path(__file__).parents[3] / "systemd/pyflannel.service"
    found = merge([(str(service), service.read_text())])
    assert found.words("Install", "WantedBy") == ("multi-user.target", "docker.service")
    # No one waits without end, a package manager that has docker started least of all.
    assert found.values("Unit", "JobRunningTimeoutSec") == ("300",)


@pytest.mark.parametrize("name", UNITS)
def test_a_docker_that_drops_other_nodes_packets_is_told_not_to(name: str) -> None:
    before = merge([unit(name)])
    text = drop_in(before, direct=Direct.FLAG)
    whole = merge([unit(name), ("/etc/pyflannel.conf", text)])
    assert whole.command_line.count("--allow-direct-routing") == 1
    assert referenced(whole)
    # Looked at again with the option in the unit itself, it is not given twice.
    there = merge(
        [unit(name), ("/etc/a.conf", f"[Service]\nExecStart=\nExecStart={whole.command_line}")]
    )
    assert "--allow-direct-routing" not in drop_in(there, direct=Direct.FLAG)


@pytest.mark.parametrize("name", UNITS)
def test_one_that_only_knows_the_variable_gets_that(name: str) -> None:
    before = merge([unit(name)])
    text = drop_in(before, direct=Direct.VARIABLE)
    whole = merge([unit(name), ("/etc/pyflannel.conf", text)])
    assert "DOCKER_INSECURE_NO_IPTABLES_RAW=1" in whole.words("Service", "Environment")
    assert "--allow-direct-routing" not in whole.command_line


def test_the_options_file_has_upstreams_bytes_for_every_docker() -> None:
    assert "allow-direct-routing" not in docker_options.render({"FLANNEL_MTU": "1450"}).decode()


def test_the_units_daemon_writes_where_the_units_link_leads() -> None:
    service = Path(__file__).parents[3] / "systemd/pyflannel.service"
    found = merge([(str(service), service.read_text())])
    place = f"FLANNELD_DOCKER_OPTS_FILE={docker_options.UNIT_FILE}"
    assert place in found.values("Service", "Environment")
    link, *_ = found.values("Service", "ExecStartPre")
    assert f"cd /run; if [ ! -L {Path(docker_options.DOCKER_ENV).name} ]" in link
    assert f"ln -s {docker_options.UNIT_LINK} ." in link
