"""What `pyflannel cleanup` takes away of docker-setup: what that wrote, as its record says."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.cli import cleanup
from pyflannel.docker import dropin, userchain


@pytest.fixture
def drop_in(tmp_path, monkeypatch):
    """A drop-in with its record, and an iptables without rules."""

    async def nothing(_):
        return []

    monkeypatch.setattr(userchain.UserChain, "leftovers", nothing)
    path = tmp_path / "docker.service.d/pyflannel.conf"
    path.parent.mkdir()
    path.write_text(dropin.drop_in(None))
    userchain.save(tmp_path / "state", userchain.SetUp(drop_in=str(path)))
    return path


def clean(tmp_path):
    async def go():
        traces = await cleanup._docker_traces(str(tmp_path / "state"))
        for trace in traces:
            await trace.remove()
        return [trace.what for trace in traces]

    return asyncio.run(go())


def test_the_drop_in_goes_with_its_empty_directory(tmp_path, drop_in):
    (said,) = clean(tmp_path)
    assert str(drop_in) in said
    assert not drop_in.parent.exists()


def test_drop_ins_of_others_stay(tmp_path, drop_in):
    other = drop_in.with_name("proxy.conf")
    other.write_text("[Service]\n")
    clean(tmp_path)
    assert list(drop_in.parent.iterdir()) == [other]


def test_one_that_was_rewritten_stays(tmp_path, drop_in):
    drop_in.write_text("[Service]\nNice=5\n")
    assert clean(tmp_path) == []
    assert drop_in.exists()


def test_without_a_record_nothing_of_docker_is_touched(tmp_path, drop_in):
    """A lab's node, another state directory: the drop-in is another daemon's."""
    (tmp_path / "state" / userchain.RECORD).unlink()
    assert clean(tmp_path) == []
    assert drop_in.exists()
