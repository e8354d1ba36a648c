"""The page on what is ours names all that the code recognises as ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyflannel.backend.kinds import KINDS
from pyflannel.core.kind import every
from pyflannel.core.options import DaemonOptions
from pyflannel.docker import userchain
from pyflannel.store import record
from pyflannel.traffic import iptables, nftables

PAGE = (Path(__file__).parents[3] / "docs" / "ownership.md").read_text(encoding="utf-8")
CODE = set(re.findall(r"`([^`\n]+)`", PAGE))
KINDS_OF_BACKENDS = list(every(KINDS))
DEVICES = [device for kind in KINDS_OF_BACKENDS for device in kind.devices]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_every_device_stands_on_it_with_its_kind(device):
    rows = [line for line in PAGE.splitlines() if f"| {device.link_kind} |" in line]
    names = {re.sub(r"<\w+>", "1", name) for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert any(device.matches(name, device.link_kind) for name in names), names


@pytest.mark.parametrize(
    "name",
    [
        record.FILE_NAME,
        userchain.RECORD,
        *(file.name for kind in KINDS_OF_BACKENDS for file in kind.state_files),
        DaemonOptions().subnet_file,
        DaemonOptions().docker_opts_file,
        DaemonOptions().status_socket,
        DaemonOptions().state_dir,
    ],
)
def test_every_file_stands_on_it(name):
    assert name in CODE


@pytest.mark.parametrize(
    "name",
    [
        iptables.MASQUERADE.name,
        iptables.MASQUERADE.comment,
        iptables.FORWARD.name,
        iptables.FORWARD.comment,
        userchain.CHAIN,
        nftables.POSTROUTING,
        nftables.FORWARD,
        *(f"{nftables.NFT_FAMILY[family]} {table}" for family, table in nftables.TABLE.items()),
    ],
)
def test_every_chain_and_table_stands_on_it(name):
    assert name in CODE
