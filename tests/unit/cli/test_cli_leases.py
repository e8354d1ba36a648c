"""`pyflannel leases`, whatever stands in etcd."""

from __future__ import annotations

import json

import pytest

from pyflannel.cli import leases
from pyflannel.testing.fakestore import FakeEtcd
from tests.support.hostile import HOSTILE, is_fit

PREFIX = "/coreos.com/network"
ROOM = b"/coreos.com/network/subnets/"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert leases.main(list(argv)) == 0
    return capsys.readouterr().out


def fill(etcd: FakeEtcd) -> None:
    for number, text in enumerate(HOSTILE, start=1):
        quoted = json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogatepass")
        value = b'{"PublicIP":"192.0.2.1","BackendType":%s,"BackendData":%s}' % (quoted, quoted)
        etcd.put(ROOM + b"10.5.%d.0-24" % number, value)
        etcd.put(ROOM + text.encode("utf-8", "surrogatepass"), b"{}")
        etcd.put(ROOM + b"10.6.%d.0-24" % number, b'{"PublicIP":%s}' % quoted)


def test_nothing_from_etcd_reaches_the_terminal_raw(etcd, capsys) -> None:
    fill(etcd)
    assert is_fit(run(capsys))
    assert is_fit(run(capsys, "--json").replace("\x7f", ""))


def test_a_huge_value_is_shown_in_a_line_that_can_be_read(etcd, capsys) -> None:
    etcd.put(ROOM + b"10.5.1.0-24", b'{"PublicIP":"192.0.2.1","BackendData":"%s"}' % (b"x" * 99999))
    etcd.put(ROOM + b"y" * 99999, b"")
    assert max(map(len, run(capsys).splitlines())) < 800


@pytest.mark.parametrize("levels", [101, 900, 5000, 9000])
def test_deep_backend_data_is_text(etcd, capsys, levels: int) -> None:
    data = "[" * levels + "]" * levels
    etcd.put(ROOM + b"10.5.1.0-24", f'{{"PublicIP":"192.0.2.1","BackendData":{data}}}'.encode())
    (lease,) = json.loads(run(capsys, "--json"))["leases"]
    assert lease["backend_data"] == data
    assert "10.5.1.0/24" in run(capsys)


def test_ordinary_backend_data_is_json(etcd, capsys) -> None:
    data = '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}'
    etcd.put(ROOM + b"10.5.1.0-24", f'{{"PublicIP":"192.0.2.1","BackendData":{data}}}'.encode())
    (lease,) = json.loads(run(capsys, "--json"))["leases"]
    assert lease["backend_data"] == json.loads(data)
