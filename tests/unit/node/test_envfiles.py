"""The environment files: written again when deleted or damaged, and not otherwise."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from pyflannel.core.cni import conflist_problem
from pyflannel.node.cniconf import conflist
from pyflannel.node.envfiles import EnvFiles, RealDisk
from pyflannel.testing.fakeclock import FakeClock

SUBNET_ENV = b"""\
FLANNEL_NETWORK=10.0.0.0/16
FLANNEL_SUBNET=10.0.7.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=false
"""
DOCKER_ENV = b"""\
DOCKER_OPT_BIP="--bip=10.0.7.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1450"
DOCKER_OPTS=" --bip=10.0.7.1/24 --ip-masq=true --mtu=1450"
"""


class Kept:
    """Both files in a directory, and a keeper that has written them."""

    def __init__(self, directory, disk=None) -> None:
        self.files = EnvFiles(FakeClock(), disk)
        self.subnet, self.docker = directory / "subnet.env", directory / "docker_opts.env"
        self.files.set(str(self.subnet), SUBNET_ENV, str(self.docker), DOCKER_ENV)

    def looks(self, times: int = 2) -> int:
        """Looks so often; how many files were written again."""
        before = self.files.report().restored
        for _ in range(times):
            self.files.look()
        return self.files.report().restored - before


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path)


def test_untouched_files_are_left_alone(kept):
    inodes = kept.subnet.stat().st_ino, kept.docker.stat().st_ino
    assert kept.looks(5) == 0
    assert (kept.subnet.stat().st_ino, kept.docker.stat().st_ino) == inodes


def test_a_deleted_file_is_written_again_at_once(kept):
    kept.subnet.unlink()
    kept.docker.unlink()
    assert kept.looks(1) == 2
    assert kept.subnet.read_bytes() == SUBNET_ENV


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"FLANNEL_NETWORK=10.0.0.0/16\nFLANNEL_SUB",
        SUBNET_ENV[:-4],
        SUBNET_ENV.replace(b"10.0.7.1", b"10.0.8.1"),
        SUBNET_ENV.replace(b"1450", b"1500"),
        SUBNET_ENV.replace(b"FLANNEL_MTU=1450\n", b""),
        b"\xff\xfe\0",
    ],
)
def test_a_damaged_subnet_env_is_written_again(kept, damage):
    kept.subnet.write_bytes(damage)
    assert kept.looks() == 1
    assert kept.subnet.read_bytes() == SUBNET_ENV
    assert kept.looks() == 0


class HastyDisk(RealDisk):
    """Where another program writes a file right after us, before anything else is done."""

    damage = b""

    def write(self, path: Path, content: bytes) -> None:
        super().write(path, content)
        if self.damage:
            path.write_bytes(self.damage)
            self.damage = b""


def test_damage_right_after_the_writing_is_seen(tmp_path):
    disk = HastyDisk()
    kept = Kept(tmp_path, disk)
    disk.damage = SUBNET_ENV.replace(b"1450", b"1500")
    kept.subnet.unlink()
    assert kept.looks() == 2
    assert kept.subnet.read_bytes() == SUBNET_ENV


def test_what_is_still_being_written_is_waited_for(kept):
    for size in range(1, 4):
        kept.subnet.write_bytes(SUBNET_ENV[: 20 * size])
        os.utime(kept.subnet, ns=(0, size))
        assert kept.looks(1) == 0
    kept.subnet.write_bytes(SUBNET_ENV)
    assert kept.looks(3) == 0


@pytest.mark.parametrize(
    "harmless",
    [
        b"# by the operator\n" + SUBNET_ENV + b"SITE=north\n",
        b"\n".join(sorted(SUBNET_ENV.split(b"\n"))),
        SUBNET_ENV.replace(b"=10.0.7.1/24", b"='10.0.7.1/24'"),
    ],
)
def test_what_says_the_same_stays(kept, harmless):
    kept.subnet.write_bytes(harmless)
    assert kept.looks(4) == 0
    assert kept.subnet.read_bytes() == harmless


def test_docker_options_of_another_program_stay(kept):
    """mk-docker-opts was run with `-c -m -k DOCKER_NETWORK_OPTIONS`, as a unit of theirs says."""
    theirs = b'DOCKER_NETWORK_OPTIONS=" --bip=10.0.7.1/24 --mtu=1400"\n'
    kept.docker.write_bytes(theirs)
    assert kept.looks(4) == 0
    assert kept.docker.read_bytes() == theirs


@pytest.mark.parametrize("damage", [b"", DOCKER_ENV.replace(b"10.0.7.1", b"10.0.8.1")])
def test_docker_options_without_our_subnet_are_written_again(kept, damage):
    kept.docker.write_bytes(damage)
    assert kept.looks() == 1
    assert kept.docker.read_bytes() == DOCKER_ENV


def test_a_directory_in_the_place_of_a_file_is_a_problem_and_no_end(kept):
    kept.subnet.unlink()
    kept.subnet.mkdir()
    kept.looks(3)
    assert "subnet.env" in kept.files.failures
    kept.subnet.rmdir()
    kept.looks(1)
    assert kept.subnet.read_bytes() == SUBNET_ENV
    assert kept.files.failures == ""


def test_files_that_are_taken_back_are_gone_until_they_are_set_again(kept):
    assert kept.files.ready_since is not None
    kept.files.withdraw("the subnet is another node's")
    assert kept.files.withdrawn
    assert kept.files.ready_since is None
    assert kept.looks(3) == 0
    assert not kept.subnet.exists()
    assert not kept.docker.exists()
    kept.files.set(str(kept.subnet), SUBNET_ENV, str(kept.docker), DOCKER_ENV)
    assert not kept.files.withdrawn
    assert kept.files.ready_since is not None
    assert kept.subnet.read_bytes() == SUBNET_ENV


def test_what_another_program_has_put_in_their_place_is_not_removed(kept):
    theirs = SUBNET_ENV.replace(b"10.0.7.1", b"10.0.8.1")
    kept.subnet.write_bytes(theirs)
    kept.files.withdraw("the subnet is another node's")
    assert kept.subnet.read_bytes() == theirs
    assert not kept.docker.exists()


class TestConfigurationForCni:
    """A node is Ready to Kubernetes when it is there, so it comes last and whole."""

    @pytest.fixture
    def place(self, tmp_path):
        (tmp_path / "conf").mkdir()
        return tmp_path / "net.d" / "10-flannel.conflist"

    @staticmethod
    def keeper(tmp_path, place, subnet="subnet.env") -> EnvFiles:
        files = EnvFiles(FakeClock())
        source = str(tmp_path / "conf" / "net-conf.json")
        content = partial(conflist, source)
        files.set(str(tmp_path / subnet), SUBNET_ENV, cni_file=str(place), cni_conf=content)
        return files

    def test_it_is_flannels_usual_one(self, tmp_path, place):
        assert self.keeper(tmp_path, place).complete.is_set()
        written = json.loads(place.read_text())
        assert written["name"] == "cbr0"
        assert [plugin["type"] for plugin in written["plugins"]] == ["flannel", "portmap"]
        assert conflist_problem(place.read_text()) == ""

    def test_it_is_the_clusters_own_where_there_is_one(self, tmp_path, place):
        own = '{"name":"mine","cniVersion":"1.0.0","plugins":[{"type":"flannel"}]}'
        (tmp_path / "conf" / "cni-conf.json").write_text(own)
        self.keeper(tmp_path, place)
        assert place.read_text() == own

    def test_it_waits_for_subnet_env(self, tmp_path, place):
        (tmp_path / "blocked").mkdir()
        files = self.keeper(tmp_path, place, subnet="blocked")
        assert not place.exists()
        assert not files.complete.is_set()
        assert "waits for" in files.report().failing[str(place)]
        (tmp_path / "blocked").rmdir()
        files.look()
        assert place.exists()
        assert files.complete.is_set()
        assert files.report().failing == {}

    @pytest.mark.parametrize("bad", ["{", "[]", '{"name":"x"}', '{"name":"x","plugins":[{}]}'])
    def test_a_bad_one_is_named_and_not_written_until_it_is_right(self, tmp_path, place, bad):
        source = tmp_path / "conf" / "cni-conf.json"
        source.write_text(bad)
        files = self.keeper(tmp_path, place)
        assert not place.exists()
        assert "cni-conf.json" in files.report().failing[str(place)]
        source.unlink()
        files.look()
        assert place.exists()

    def test_others_may_take_it_away(self, tmp_path, place):
        """Cilium renames it, Multus wraps it: to put it back would be a fight."""
        files = self.keeper(tmp_path, place)
        place.unlink()
        files.look()
        files.look()
        assert not place.exists()
        assert files.report().restored == 0
