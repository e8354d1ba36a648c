"""The unit of an instance is the unit, but for what makes it one of several."""

from __future__ import annotations

from pathlib import Path

from pyflannel.core.commandline import instance_files
from pyflannel.docker.unitfile import merge

SYSTEMD = Path(__file__).parents[2] / "systemd"
OF_ITS_OWN = {
    ("Unit", "Description"),
    ("Unit", "After"),  # flanneld may be there for another network
    ("Unit", "Before"),  # docker's options are the other's
    ("Unit", "Conflicts"),
    ("Unit", "JobRunningTimeoutSec"),
    ("Service", "EnvironmentFile"),
    ("Service", "Environment"),
    ("Service", "ExecStartPre"),
    ("Service", "RuntimeDirectory"),
    ("Service", "StateDirectory"),
    ("Service", "BindPaths"),
    ("Install", "WantedBy"),
}


def settings(name: str) -> dict[tuple[str, str], tuple[str, ...]]:
    return dict(merge([(name, (SYSTEMD / name).read_text())]).settings)


def test_they_differ_where_they_have_to_and_nowhere_else() -> None:
    one, several = settings("pyflannel.service"), settings("pyflannel@.service")
    differing = {key for key in one.keys() | several.keys() if one.get(key) != several.get(key)}
    assert differing == OF_ITS_OWN


def test_an_instance_may_write_the_files_that_it_has_by_default() -> None:
    unit = settings("pyflannel@.service")
    files = instance_files("b")
    runtime = "/run/" + unit["Service", "RuntimeDirectory"][0].replace("%i", "b")
    assert files["subnet-file"].startswith(f"{runtime}/")
    assert files["status-socket"].startswith(f"{runtime}/")
    assert runtime in unit["Service", "BindPaths"][0].replace("%i", "b").split()
    state = "/var/lib/" + unit["Service", "StateDirectory"][0].replace("%i", "b")
    assert files["state-dir"] == state


def test_what_is_mounted_into_its_sandbox_is_the_same_but_for_the_directory() -> None:
    one = settings("pyflannel.service")["Service", "BindPaths"]
    several = settings("pyflannel@.service")["Service", "BindPaths"]
    assert [path.replace("/%i", "") for path in several] == list(one)
