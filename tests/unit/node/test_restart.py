"""A stop is told from one half of a restart."""

from __future__ import annotations

import asyncio

import pytest

from pyflannel.core.errors import CommandError
from pyflannel.node.restart import is_restart, own_unit

SERVICE = {"INVOCATION_ID": "x"}
CGROUP = "0::/system.slice/pyflannel.service\n"


def ask(tmp_path, listed, environ=SERVICE):
    async def jobs():
        if listed is None:
            raise CommandError("no answer")
        return listed

    cgroups = tmp_path / "cgroup"
    cgroups.write_text(CGROUP)
    return asyncio.run(is_restart(environ, jobs, cgroups))


def test_without_a_service_manager_a_stop_is_a_stop(tmp_path):
    assert not ask(tmp_path, None, {})


@pytest.mark.parametrize(
    ("listed", "restart"),
    [
        ("1234 pyflannel.service stop running\n", False),
        ("7 docker.service stop waiting\n1234 pyflannel.service restart running\n", True),
        ("7 docker.service stop running\n", True),
        ("", True),
        (None, True),
        ("garbage", True),
    ],
)
def test_only_a_job_that_says_stop_is_one(tmp_path, listed, restart):
    """In doubt the subnet is kept: its lease ends by itself."""
    assert ask(tmp_path, listed) is restart


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (CGROUP, "pyflannel.service"),
        ("3:cpu:/x\n1:name=systemd:/system.slice/pyflannel.service\n", "pyflannel.service"),
        (
            "0::/system.slice/system-pyflannel.slice/pyflannel@a.service/sub\n",
            "pyflannel@a.service",
        ),
        ("0::/user.slice/session-1.scope\n", ""),
    ],
)
def test_the_unit_is_in_the_path_of_the_cgroup(text, unit):
    assert own_unit(text) == unit
