"""Where commands find etcd, and why a daemon is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from pyflannel.cli import common, doctor, leases, status, unit
from pyflannel.core.errors import DeviceUnavailable, StoreUnavailable, UsageError
from pyflannel.testing.fakeetcd import FakeEtcd

CENTOS = 'FLANNEL_ETCD_ENDPOINTS="http://b:2379"\nFLANNEL_ETCD_PREFIX="/atomic.io/network"\n'


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    ours, centos = tmp_path / "default", tmp_path / "sysconfig"
    monkeypatch.setattr(unit, "ENVIRONMENT_FILES", (str(ours), str(centos)))
    for name in ("ENDPOINTS", "PREFIX", "USERNAME", "PASSWORD"):
        monkeypatch.delenv(f"FLANNELD_ETCD_{name}", raising=False)
    return ours, centos


class TestWhereEtcdIs:
    def test_it_is_where_the_units_file_says(self, files) -> None:
        files[0].write_text("FLANNELD_ETCD_ENDPOINTS=http://a:2379\nFLANNELD_ETCD_USERNAME=u\n")
        options, rest = common.split_etcd(["--json"])
        assert (options.endpoints, options.username) == (("http://a:2379",), "u")
        assert rest == ["--json"]

    def test_the_names_of_centos_and_flags_in_them_count_too(self, files) -> None:
        files[1].write_text(CENTOS)
        options, _ = common.split_etcd([])
        assert (options.endpoints, options.prefix) == (("http://b:2379",), "/atomic.io/network")
        files[1].write_text('FLANNEL_OPTIONS="-iface eth0 -etcd-endpoints http://c:1 -ip-masq"\n')
        assert common.split_etcd([])[0].endpoints == ("http://c:1",)

    def test_what_is_given_on_the_line_counts_more(self, files) -> None:
        files[1].write_text(CENTOS)
        options, _ = common.split_etcd(["--etcd-prefix=/x"])
        assert (options.endpoints, options.prefix) == (("http://b:2379",), "/x")

    def test_other_endpoints_get_nothing_from_the_file(self, files, monkeypatch) -> None:
        """A password is for one etcd."""
        files[0].write_text(
            "FLANNELD_ETCD_ENDPOINTS=http://a:1\nFLANNELD_ETCD_USERNAME=u\n"
            "FLANNELD_ETCD_PASSWORD=p\n"
        )
        options, _ = common.split_etcd(["--etcd-endpoints=http://evil:1"])
        assert (options.username, options.password) == ("", "")
        monkeypatch.setenv("FLANNELD_ETCD_ENDPOINTS", "http://evil:1")
        assert common.split_etcd([])[0].username == ""

    @pytest.mark.parametrize("content", ["", "FLANNEL_OPTIONS='x", "garbage\n", "FLANNELD_IFACE=x"])
    def test_a_file_that_says_nothing_changes_nothing(self, files, content: str) -> None:
        files[0].write_text(content)
        assert common.split_etcd([])[0].endpoints == ("http://127.0.0.1:2379",)

    def test_no_answer_names_the_file_and_the_option(self, files) -> None:
        files[0].write_text("FLANNELD_ETCD_ENDPOINTS=http://127.0.0.1:1\n")
        options, _ = common.split_etcd([])
        with pytest.raises(StoreUnavailable, match="--etcd-endpoints") as caught:
            common.with_store(options, lambda store: store.get(b"x"))
        assert str(files[0]) in str(caught.value)


def test_an_empty_list_says_what_it_means(
    etcd: FakeEtcd,
    files,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert leases.main(["--etcd-prefix=/wrong"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "no leases and no network config under /wrong" in said.err
    etcd.put(b"/wrong/config", b"{}")
    assert leases.main(["--etcd-prefix=/wrong"]) == 0
    assert "no leases under /wrong yet" in capsys.readouterr().err


class TestUnit:
    FAILED: Final = {
        "LoadState": "loaded",
        "ActiveState": "activating",
        "SubState": "auto-restart",
        "ExecMainStatus": "78",
    }

    def test_the_last_words_of_the_last_run_are_repeated(self) -> None:
        journal = (
            "level=info x\npyflanneld: nosuch0: no such interface\npyflannel.service: Failed\n"
        )
        assert unit.explain(self.FAILED, journal) == (
            "pyflannel.service is activating (auto-restart), its last run ended with 78:"
            " nosuch0: no such interface"
        )

    def test_one_that_starts_says_what_it_waits_for(self) -> None:
        state = {**self.FAILED, "SubState": "start", "ExecMainStatus": "0", "StatusText": "waiting"}
        assert unit.explain(state, "") == "pyflannel.service is activating (start): waiting"

    def test_one_that_was_not_started_is_to_be_started(self) -> None:
        state = {"LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"}
        assert unit.explain(state, "").endswith("systemctl start pyflannel")

    def test_without_a_unit_or_with_one_that_runs_there_is_nothing_to_say(self) -> None:
        assert unit.explain({}, "") == ""
        assert unit.explain({"LoadState": "not-found", "ActiveState": "inactive"}, "") == ""
        assert unit.explain({"LoadState": "loaded", "ActiveState": "active"}, "") == ""


class TestStatus:
    def test_what_is_no_socket_is_said_to_be_none(self, tmp_path: Path) -> None:
        with pytest.raises(DeviceUnavailable, match="not a socket; --status-socket"):
            status.ask(str(tmp_path))

    def test_a_daemon_that_is_not_there_is_explained_by_its_unit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(unit, "describe", lambda: "pyflannel.service is failed")
        with pytest.raises(DeviceUnavailable, match="service is failed"):
            status.ask(str(tmp_path / "s.sock"))


class TestDoctor:
    def test_a_root_that_is_not_there_is_named(self) -> None:
        with pytest.raises(UsageError, match="--root /nonexistent"):
            doctor.main(["--root", "/nonexistent"])
