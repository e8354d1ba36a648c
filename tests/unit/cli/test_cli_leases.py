"""`pyflannel leases`, with any content of etcd."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface

import pytest

from pyflannel.cli import leases
from pyflannel.core.errors import NotPermitted
from pyflannel.kernel.base import Address
from pyflannel.testing.fakeetcd import FakeEtcd
from tests.support.hostile import HOSTILE, is_fit
from tests.support.schema import check_printed

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
    (lease,) = check_printed("leases-list", run(capsys, "--json"))["leases"]
    assert lease["backend_data"] == data
    assert "10.5.1.0/24" in run(capsys)


def test_ordinary_backend_data_is_json(etcd, capsys) -> None:
    data = '{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}'
    etcd.put(ROOM + b"10.5.1.0-24", f'{{"PublicIP":"192.0.2.1","BackendData":{data}}}'.encode())
    (lease,) = check_printed("leases-list", run(capsys, "--json"))["leases"]
    assert lease["backend_data"] == json.loads(data)


def put(etcd: FakeEtcd, key: str, ip: str, **more: object) -> None:
    etcd.put(ROOM + key.encode(), json.dumps({"PublicIP": ip, **more}).encode())


def vxlan(etcd: FakeEtcd, key: str, ip: str) -> None:
    data = {"VNI": 1, "VtepMAC": "0a:00:00:00:00:01"}
    put(etcd, key, ip, BackendType="vxlan", BackendData=data)


def test_leases_come_in_the_order_of_their_numbers(etcd, capsys) -> None:
    for third in (10, 8, 100, 9):
        put(etcd, f"10.5.{third}.0-24", "192.0.2.7")
    _, *rows = run(capsys).splitlines()
    assert [row.split()[0] for row in rows] == [f"10.5.{n}.0/24" for n in (8, 9, 10, 100)]
    leases_ = json.loads(run(capsys, "--json"))["leases"]
    assert [each["subnet"] for each in leases_] == [f"10.5.{n}.0/24" for n in (8, 9, 10, 100)]


def test_the_lease_of_this_node_is_marked(etcd, capsys) -> None:
    put(etcd, "10.5.1.0-24", "192.0.2.1")
    put(etcd, "10.5.2.0-24", "192.0.2.2")
    head, own, other = run(capsys).splitlines()
    assert head.endswith("  OWN")
    assert (own[-1], other[-1]) == ("*", "d")
    assert [each["own"] for each in json.loads(run(capsys, "--json"))["leases"]] == [True, False]


def test_a_lease_that_would_be_given_back_is_told_as_json(etcd, capsys) -> None:
    vxlan(etcd, "10.5.2.0-24", "192.0.2.2")
    words = ("release", "10.5.2.0/24", "--dry-run", "--force", "--json")
    told = check_printed("leases-release", run(capsys, *words))
    assert told["lease"]["public_ip"] == "192.0.2.2"


def test_leases_that_share_a_public_ip_are_told_beside_the_list(etcd, capsys) -> None:
    """The list itself stays a line for each lease."""
    for third, host in ((1, 7), (2, 8), (3, 7)):
        put(etcd, f"10.5.{third}.0-24", f"192.0.2.{host}")
    assert leases.main([]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert err.startswith("pyflannel: 192.0.2.7 has 2 leases (10.5.1.0/24, 10.5.3.0/24): ")
    assert len(err.splitlines()) == 1


def terminal(monkeypatch, columns: int) -> None:
    monkeypatch.setattr(leases.sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


def test_an_ordinary_vxlan_lease_fits_a_line_of_a_terminal(etcd, capsys, monkeypatch) -> None:
    terminal(monkeypatch, 85)
    vxlan(etcd, "10.5.100.0-24", "192.168.1.10")
    _, row = run(capsys).splitlines()
    assert "vxlan    VNI=1 VtepMAC=0a:00:00:00:00:01" in row


def test_where_it_does_not_the_data_has_a_line_of_its_own(etcd, capsys, monkeypatch) -> None:
    terminal(monkeypatch, 80)
    key = "10.5.100.0-24&fd00:10:244:1234::-64"
    data = {"VNI": 1, "VtepMAC": "0a:00:00:00:00:01"}
    more = {"PublicIPv6": "2001:db8::1", "BackendType": "vxlan"}
    put(etcd, key, "192.168.100.100", BackendData=data, BackendV6Data=data, **more)
    head, v4, v6, below = run(capsys).splitlines()
    assert max(map(len, (head, v4, v6, below))) <= 80
    assert v4.split()[:3] == ["10.5.100.0/24", "192.168.100.100", "vxlan"]
    assert v6.split() == ["fd00:10:244:1234::/64", "2001:db8::1"]
    assert below == "  " + " ".join(["VNI=1 VtepMAC=0a:00:00:00:00:01"] * 2)


def test_a_program_gets_a_line_for_each(etcd, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    vxlan(etcd, "10.5.1.0-24", "192.0.2.1")
    assert len(run(capsys).splitlines()) == 2


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ('{"VNI":1,"VtepMAC":"02:00"}', "VNI=1 VtepMAC=02:00"),
        ("null", ""),
        ("{}", ""),
        ('"text"', '"text"'),
        ('{"a":{"b":1}}', '{"a":{"b":1}}'),
        ("no json", "no json"),
    ],
)
def test_a_backends_data_in_brief(raw: str, wanted: str) -> None:
    assert leases.brief(raw) == wanted


@pytest.mark.parametrize("fails", [False, True])
def test_a_kernel_that_does_not_tell_leaves_all_unmarked(fails: bool, monkeypatch) -> None:
    closed = []

    class Netlink:
        async def addresses(self) -> list[Address]:
            if fails:
                raise NotPermitted("list addresses", "", 1)
            return [Address(index=1, interface=ip_interface("192.0.2.9/24"))]

        async def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr("pyflannel.kernel.netlink.KernelNetlink", Netlink)
    assert leases.local_addresses() == (set() if fails else {ip_address("192.0.2.9")})
    assert closed == [True]
