"""How a lab is written down, and that nothing else is ever taken for one."""

from __future__ import annotations

import os
import signal

import pytest

from pyflannel.lab import state
from pyflannel.lab.errors import LabError, LabExists, NoSuchLab
from pyflannel.lab.processes import ProcessRef, end_all, ref_of, wait_gone
from pyflannel.lab.state import StateDirectory, all_labs, state_from_json
from pyflannel.lab.topology import LabSpec


@pytest.fixture
def directory(tmp_path):
    return StateDirectory("box", tmp_path / "labs")


class TestStateDirectory:
    def test_what_is_saved_is_loaded(self, directory):
        state = directory.create(LabSpec(name="box", nodes=2, config="{}"))
        state.processes["node1"] = ProcessRef(4711, 99)
        directory.save(state)
        assert directory.load() == state

    def test_a_name_is_given_away_once(self, directory):
        first = directory.create(LabSpec(name="box"))
        with pytest.raises(LabExists, match="pyflannel lab down --name box"):
            directory.create(LabSpec(name="box"))
        assert directory.load().lab_id == first.lab_id
        assert [entry.name for entry in directory.path.parent.iterdir()] == ["box"]

    def test_from_the_first_moment_on_it_can_be_loaded(self, directory):
        state = directory.create(LabSpec(name="box"))
        assert directory.load().lab_id == state.lab_id
        assert all_labs(directory.path.parent) == ["box"]

    def test_removal_leaves_nothing_behind(self, directory):
        state = directory.create(LabSpec(name="box"))
        state.etcd_data.mkdir(parents=True)
        (directory.path / "node1").mkdir()
        directory.remove(state)
        assert not state.etcd_data.exists()
        assert not directory.path.parent.exists()

    def test_removal_leaves_other_labs_alone(self, directory):
        other = StateDirectory("other", directory.path.parent)
        other.create(LabSpec(name="other"))
        directory.remove(directory.create(LabSpec(name="box")))
        assert all_labs(directory.path.parent) == ["other"]

    def test_what_cannot_be_removed_keeps_no_name(self, directory, monkeypatch):
        """A node's last process may still be writing into the directory."""
        former = directory.create(LabSpec(name="box"))
        monkeypatch.setattr(state.shutil, "rmtree", lambda *_, **__: None)
        monkeypatch.setattr(state, "_REMOVALS", 1)
        directory.remove(former)
        assert all_labs(directory.path.parent) == []
        assert directory.create(LabSpec(name="box")).lab_id != former.lab_id

    def test_an_etcd_directory_that_is_not_the_labs_is_not_removed(self, directory, tmp_path):
        state = directory.create(LabSpec(name="box"))
        state.etcd_data = tmp_path / "precious"
        state.etcd_data.mkdir()
        directory.remove(state)
        assert state.etcd_data.is_dir()

    def test_no_lab_is_its_own_error(self, directory):
        with pytest.raises(NoSuchLab, match="box"):
            directory.load()
        with pytest.raises(NoSuchLab), directory.locked():
            pass

    @pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"lab_id": 1, "spec": {}}'])
    def test_a_directory_that_no_lab_made_is_left_alone(self, directory, content):
        directory.path.mkdir(parents=True)
        if content is not None:
            (directory.path / "state.json").write_text(content)
        with pytest.raises(LabError, match="left alone"):
            directory.load()
        assert directory.path.is_dir()

    def test_a_base_of_another_user_is_refused(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "labs").symlink_to(tmp_path / "real")
        with pytest.raises(LabError, match="not a directory of ours"):
            StateDirectory("box", tmp_path / "labs").create(LabSpec(name="box"))

    def test_two_commands_do_not_work_on_one_lab_at_once(self, directory, monkeypatch):
        monkeypatch.setattr("pyflannel.lab.state._LOCK_WAIT_S", 0.0)
        directory.create(LabSpec(name="box"))
        with (
            directory.locked(),
            pytest.raises(LabError, match="by another command"),
            directory.locked(),
        ):
            pass
        with directory.locked():
            pass

    @pytest.mark.parametrize("text", ["", "nonsense", "null", '{"lab_id": "x"}'])
    def test_what_is_no_state_is_refused(self, text):
        with pytest.raises(ValueError, match=r"."):
            state_from_json(text)


class TestProcessRef:
    def test_a_process_is_its_pid_and_its_start(self):
        myself = ref_of(os.getpid())
        assert myself is not None
        assert myself.alive()

    def test_another_process_under_a_known_pid_is_not_touched(self):
        myself = ref_of(os.getpid())
        former = ProcessRef(myself.pid, myself.start - 1)
        assert not former.alive()
        assert not former.send(signal.SIGKILL)
        assert end_all([former], grace_s=0.0) == []

    def test_a_pid_that_is_not_in_use_is_no_error(self):
        beyond = 2**22 + 1  # PID_MAX_LIMIT of the kernel is 2^22
        assert ref_of(beyond) is None
        assert not ProcessRef(beyond, 1).send(signal.SIGKILL)
        assert wait_gone([ProcessRef(beyond, 1)], deadline=0.0) == []


class TestRootsLab:
    @pytest.fixture
    def roots(self, tmp_path, monkeypatch):
        monkeypatch.setattr(state, "ROOTS", tmp_path / "run")
        StateDirectory("box", tmp_path / "run").create(LabSpec(name="box"))

    def test_a_user_is_told_that_it_is_roots(self, directory, roots, monkeypatch):
        monkeypatch.setattr(state.os, "geteuid", lambda: 1000)
        assert directory.is_roots()
        with pytest.raises(NoSuchLab, match="one of root's is: use sudo"):
            directory.load()

    def test_root_and_a_user_with_one_of_their_own_are_not(self, directory, roots, monkeypatch):
        user = os.geteuid()
        monkeypatch.setattr(state.os, "geteuid", lambda: 0)
        assert not directory.is_roots()
        monkeypatch.setattr(state.os, "geteuid", lambda: user)
        directory.create(LabSpec(name="box"))
        monkeypatch.setattr(state.os, "geteuid", lambda: 1000)
        assert not directory.is_roots()

    def test_another_name_is_not(self, tmp_path, roots, monkeypatch):
        monkeypatch.setattr(state.os, "geteuid", lambda: 1000)
        with pytest.raises(NoSuchLab, match="makes one"):
            StateDirectory("other", tmp_path / "labs").load()
