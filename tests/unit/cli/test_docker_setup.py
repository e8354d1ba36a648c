"""`docker-setup` and `doctor` on a tree of files."""

from __future__ import annotations

import json
import subprocess

import pytest

from pyflannel.cli import dockersetup, doctor
from pyflannel.core.errors import ConfigError, DeviceUnavailable, KernelError, UsageError
from tests.support.schema import check_printed

UNIT = "[Service]\nExecStart=/usr/bin/dockerd -H fd://\n"
TARGET = "etc/systemd/system/docker.service.d/pyflannel.conf"


@pytest.fixture
def root(tmp_path):
    unit = tmp_path / "usr/lib/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    return tmp_path


def run(root, *words):
    return dockersetup.main(["--root", str(root), *words])


def test_it_writes_the_drop_in_and_says_what_to_do_next(root, capsys):
    assert run(root) == 0
    said = capsys.readouterr()
    assert str(root / TARGET) in said.out
    assert "daemon-reload" in said.err
    assert "ExecStart=/usr/bin/dockerd -H fd:// $DOCKER_OPTS\n" in (root / TARGET).read_text()


def test_it_says_that_an_agent_which_is_not_enabled_is_not_started_with_docker(root, capsys):
    unit = root / "usr/lib/systemd/system/pyflannel.service"
    unit.write_text("[Service]\n")
    run(root)
    assert "systemctl enable pyflannel" in capsys.readouterr().err
    link = root / "etc/systemd/system/docker.service.wants/pyflannel.service"
    link.parent.mkdir()
    link.symlink_to("/usr/lib/systemd/system/pyflannel.service")
    (root / TARGET).unlink()
    run(root)
    assert "enable" not in capsys.readouterr().err


def test_docker_is_restarted_however_often_that_was_done_before(root, monkeypatch):
    """A refused start would leave it stopped: docker's unit allows three a minute."""
    asked = []

    def systemctl(command, **_):
        asked.append(command[1:])
        refused = command[1] == "reset-failed"  # of a unit that is not loaded
        return subprocess.CompletedProcess(command, 1 if refused else 0)

    monkeypatch.setattr(dockersetup.subprocess, "run", systemctl)
    assert run(root, "--now") == 0
    unit = "docker.service"
    assert asked == [["daemon-reload"], ["reset-failed", unit], ["restart", unit]]


def test_a_drop_in_of_an_earlier_version_is_written_anew(root):
    run(root)
    text = (root / TARGET).read_text()
    (root / TARGET).write_text(text.replace("After=", "Wants=pyflannel.service\nAfter="))
    assert run(root) == 0
    assert (root / TARGET).read_text() == text


def test_a_second_time_nothing_changes(root, capsys):
    run(root)
    before = (root / TARGET).read_text()
    capsys.readouterr()
    assert run(root) == 0
    assert "as it should be" in capsys.readouterr().out
    assert (root / TARGET).read_text() == before


def test_a_unit_that_changed_meanwhile_is_followed(root):
    run(root)
    unit = root / "usr/lib/systemd/system/docker.service"
    unit.write_text("[Service]\nExecStart=/usr/sbin/dockerd --new\n")
    run(root)
    assert "ExecStart=/usr/sbin/dockerd --new $DOCKER_OPTS\n" in (root / TARGET).read_text()


def test_print_writes_nothing(root, capsys):
    assert run(root, "--print") == 0
    assert "EnvironmentFile=-/run/docker_opts.env" in capsys.readouterr().out
    assert not (root / TARGET).exists()


def test_another_programs_drop_in_of_that_name_is_kept_unless_forced(root):
    (root / TARGET).parent.mkdir(parents=True)
    (root / TARGET).write_text("[Service]\nNice=5\n")
    with pytest.raises(ConfigError, match="--force"):
        run(root)
    assert (root / TARGET).read_text() == "[Service]\nNice=5\n"
    assert run(root, "--force") == 0
    assert "pyflannel.service" in (root / TARGET).read_text()


def test_without_docker_there_is_nothing_to_set_up(tmp_path):
    with pytest.raises(DeviceUnavailable, match=r"docker\.service"):
        run(tmp_path)


def test_a_masked_drop_in_counts_for_nothing(root):
    directory = root / "etc/systemd/system/docker.service.d"
    directory.mkdir(parents=True)
    (directory / "x.conf").symlink_to("/dev/null")
    shadowed = root / "usr/lib/systemd/system/docker.service.d"
    shadowed.mkdir()
    (shadowed / "x.conf").write_text("[Service]\nExecStart=\nExecStart=/other\n")
    run(root)
    assert "ExecStart=/usr/bin/dockerd -H fd:// $DOCKER_OPTS\n" in (root / TARGET).read_text()


def test_a_later_drop_in_that_takes_it_back_is_named(root):
    other = root / "etc/systemd/system/docker.service.d/z-proxy.conf"
    other.parent.mkdir(parents=True)
    other.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/dockerd -H tcp://0.0.0.0\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"no effect.*z-proxy\.conf"):
            run(root)
    other.rename(other.with_name("a-proxy.conf"))
    assert run(root) == 0
    assert "ExecStart=/usr/bin/dockerd -H tcp://0.0.0.0 $DOCKER_OPTS" in (root / TARGET).read_text()


def test_the_doctor_sees_the_tree_before_and_after(root, capsys):
    (root / "run/flannel").mkdir(parents=True)
    (root / "run/flannel/subnet.env").write_text("FLANNEL_SUBNET=10.5.7.1/24\nFLANNEL_MTU=1450\n")
    (root / "run/docker_opts.env").write_text('DOCKER_OPTS=" --bip=10.5.7.1/24"\n')

    def states():
        code = doctor.main(["docker", "--root", str(root), "--json"])
        found = check_printed("doctor-docker", capsys.readouterr().out)["findings"]
        return code, {finding["check"]: finding["state"] for finding in found}

    code, before = states()
    assert code == 1
    checks = ("lease", "options file", "EnvironmentFile", "command line", "order")
    assert [before[name] for name in checks] == ["ok", "ok", "problem", "problem", "problem"]
    run(root)
    capsys.readouterr()
    _, after = states()
    assert [after[name] for name in checks] == ["ok"] * 5


@pytest.mark.parametrize("link", ["etc", "etc/systemd", f"{TARGET[: TARGET.rindex('/')]}"])
@pytest.mark.parametrize("absolute", [True, False])
def test_links_of_another_machines_tree_do_not_lead_out_of_it(tmp_path, link, absolute):
    """Absolute ones start at its root, as they do on that machine; `..` stops there."""
    root, outside = tmp_path / "tree", tmp_path / "outside"
    unit = root / "usr/lib/systemd/system/docker.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)
    outside.mkdir()
    (root / link).parent.mkdir(parents=True, exist_ok=True)
    (root / link).symlink_to(outside if absolute else "../" * 40 + str(outside).lstrip("/"))
    assert run(root) == 0
    assert list(outside.rglob("*")) == []
    written = root / str(outside).lstrip("/") / f"{TARGET.removeprefix(link)}".lstrip("/")
    assert "EnvironmentFile=-/run/docker_opts.env" in written.read_text()
    assert run(root) == 0


def test_a_unit_behind_a_link_out_of_the_tree_is_looked_for_inside(root, capsys):
    """`/etc/systemd/system/docker.service -> /lib/…` is the tree's own /lib."""
    secret = root.parent / "secret.service"
    secret.write_text("[Service]\nExecStart=/usr/bin/secret\n")
    link = root / "etc/systemd/system/docker.service"
    link.parent.mkdir(parents=True)
    link.symlink_to(secret)
    assert run(root, "--print") == 0
    assert "secret" not in capsys.readouterr().out
    link.unlink()
    link.symlink_to("/usr/lib/systemd/system/docker.service")
    assert run(root, "--print") == 0
    assert "ExecStart=/usr/bin/dockerd" in capsys.readouterr().out


def test_a_link_in_the_place_of_the_drop_in_is_not_ours(root, tmp_path):
    """To /dev/null it says that the operator wants no drop-in of that name."""
    (root / TARGET).parent.mkdir(parents=True)
    (root / TARGET).symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="--force"):
        run(root)
    assert (root / TARGET).is_symlink()
    assert run(root, "--force") == 0
    assert not (root / TARGET).is_symlink()


def test_a_unit_is_a_name(root):
    with pytest.raises(UsageError, match="--unit"):
        run(root, "--unit", "../../../x")


def test_links_in_a_circle_are_named(root):
    (root / "etc").symlink_to("etc")
    with pytest.raises(KernelError, match="ELOOP"):
        run(root)


def newest(root, content=b"\x7fELF allow-direct-routing"):
    """A dockerd in the tree that knows, or does not know, the option."""
    (root / "usr/bin").mkdir(exist_ok=True)
    (root / "usr/bin/dockerd").write_bytes(content)


def test_a_dockerd_that_knows_the_option_gets_it_and_an_older_one_does_not(root):
    newest(root)
    run(root)
    command = "ExecStart=/usr/bin/dockerd -H fd:// --allow-direct-routing $DOCKER_OPTS\n"
    assert command in (root / TARGET).read_text()
    newest(root, b"\x7fELF")
    run(root)
    assert "--allow-direct-routing" not in (root / TARGET).read_text()


def test_where_daemon_json_has_the_option_it_is_not_given_twice(root):
    """dockerd refuses to start with both."""
    newest(root)
    (root / "etc/docker").mkdir(parents=True)
    (root / "etc/docker/daemon.json").write_text('{"allow-direct-routing": true}')
    run(root)
    assert "--allow-direct-routing" not in (root / TARGET).read_text()


def test_it_leaves_word_for_the_daemon_that_it_was_run(root):
    run(root)
    record = root / "var/lib/pyflannel/docker-setup.json"
    assert json.loads(record.read_text()) == {"drop_in": str(root / TARGET)}
    run(root, "--networks")
    assert json.loads(record.read_text()) == {"drop_in": str(root / TARGET)}


def test_print_leaves_no_word(root):
    run(root, "--print")
    assert not (root / "var").exists()


def test_for_docker_networks_alone_no_unit_is_needed_and_no_drop_in_written(tmp_path):
    assert run(tmp_path, "--networks") == 0
    assert json.loads((tmp_path / "var/lib/pyflannel/docker-setup.json").read_text()) == {
        "drop_in": ""
    }
    assert not (tmp_path / "etc").exists()
    with pytest.raises(UsageError, match="--networks"):
        run(tmp_path, "--networks", "--now")


def test_a_unit_that_is_not_there_has_no_drop_in_to_print(root):
    with pytest.raises(DeviceUnavailable, match=r"nosuch\.service"):
        run(root, "--print", "--unit", "nosuch.service")
