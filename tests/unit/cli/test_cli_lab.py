"""The command line of `pyflannel lab`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pyflannel.cli import lab as cli
from pyflannel.core.errors import UsageError
from pyflannel.lab.processes import ProcessRef
from pyflannel.lab.state import StateDirectory
from pyflannel.lab.topology import LabSpec, Underlay


def spec(*arguments):
    return cli.spec_from_options(cli._parse(["up", *arguments]))


class TestUp:
    def test_the_defaults_are_three_nodes_over_udp(self):
        chosen = spec()
        assert (chosen.name, chosen.nodes, chosen.backend) == ("default", 3, "udp")
        assert chosen.underlay is Underlay.AS_IT_COMES

    def test_every_wish_arrives(self, tmp_path):
        config = tmp_path / "config.json"
        config.write_text('{"Network":"10.7.0.0/16"}')
        chosen = spec(
            *("--name", "x", "--nodes", "5", "--backend", "vxlan", "--config", str(config)),
            *("--datapath", "python", "--underlay", "bare", "--daemon-arg=--ip-masq"),
            *("--etcd", "/usr/bin/etcd", "--etcd-prefix", "/p", "--underlay-mtu=9000"),
            *("--no-daemons", "--tx-checksums-off"),
        )
        assert chosen.config_text() == '{"Network":"10.7.0.0/16"}'
        assert (chosen.name, chosen.nodes, chosen.datapath) == ("x", 5, "python")
        assert (chosen.underlay, chosen.underlay_mtu) == (Underlay.BARE, 9000)
        assert chosen.daemon_args == ("--ip-masq",)
        assert (chosen.etcd, chosen.prefix) == ("/usr/bin/etcd", "/p")
        assert not chosen.start_daemons
        assert not chosen.tx_checksums

    def test_single_nodes_can_run_something_else(self):
        chosen = spec("--node-command", "2=/usr/bin/flanneld -v=1", "--node-command=3=a=b")
        assert chosen.node_commands == {2: "/usr/bin/flanneld -v=1", 3: "a=b"}

    @pytest.mark.parametrize("text", ["", "2", "=x", "0=x", "x=y", "2=", "2= ", "4=x"])
    def test_a_node_command_that_names_no_node_is_refused(self, text):
        with pytest.raises(UsageError, match="--node-command"):
            spec("--node-command", text)

    def test_a_config_that_cannot_be_read_is_a_usage_error(self, tmp_path):
        with pytest.raises(UsageError, match="nowhere"):
            spec("--config", str(tmp_path / "nowhere"))


class TestExec:
    def test_what_follows_two_dashes_is_the_commands_own(self):
        options = cli._parse(["exec", "2", "--pod", "--", "ls", "--name", "--", "-l"])
        assert (options.node, options.pod, options.name) == ("2", True, "default")
        assert options.argv == ["ls", "--name", "--", "-l"]

    def test_a_simple_command_needs_no_dashes(self):
        assert cli._parse(["exec", "switch", "hostname"]).argv == ["hostname"]

    def test_tools_inside_find_the_labs_etcd_and_no_other(self):
        lab = SimpleNamespace(
            spec=LabSpec(prefix="/p"), etcd=SimpleNamespace(endpoint="http://192.0.2.254:2379")
        )
        outside = {
            "HOME": "/h",
            "FLANNELD_ETCD_PASSWORD": "x",
            "FLANNELD_ETCD_ENDPOINTS": "http://x",
        }
        assert cli.exec_environment(lab, outside) == {
            "HOME": "/h",
            "FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.254:2379",
            "FLANNELD_ETCD_PREFIX": "/p",
            "ETCDCTL_ENDPOINTS": "http://192.0.2.254:2379",
        }
        static = SimpleNamespace(spec=LabSpec(store="static"))
        assert cli.exec_environment(static, outside) == {"HOME": "/h"}

    def test_other_commands_take_nothing_there(self):
        with pytest.raises(UsageError, match="after --"):
            cli._parse(["ping", "--", "ls"])


@pytest.mark.parametrize(
    "argv", [[], ["dance"], ["up", "--nodes", "many"], ["ping", "--js"], ["up", "--nodes", "0"]]
)
def test_a_wrong_command_line_ends_2_with_one_line(argv, capsys):
    assert cli.main(argv) == 2
    assert capsys.readouterr().err.startswith("pyflannel lab: ")


@pytest.mark.parametrize(
    "argv", [["--backend", "nosuch"], ["--network", "10.0.0.0/99"], ["--config", "/dev/null"]]
)
def test_a_wrong_config_ends_78_before_anything_is_made(argv, capsys, monkeypatch):
    monkeypatch.setattr(cli.rootless, "has_rights", lambda: True)
    monkeypatch.setattr(cli.precheck, "find_etcd", lambda wanted: wanted)
    monkeypatch.setattr(cli, "Lab", lambda _spec: pytest.fail("a lab was made"))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(["up", *argv]) == 78
    assert "the network config is wrong" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["ping", "--count", "0"],
        ["ping", "--count", "x"],
        ["ping", "--deadline", "0"],
        ["ping", "--deadline", "nan"],
        ["bench", "--seconds", "0"],
        ["bench", "--seconds", "inf"],
    ],
)
def test_a_value_out_of_its_range_ends_2_with_the_option_named(argv, capsys):
    assert cli.main(argv) == 2
    assert argv[1] in capsys.readouterr().err


class TestBreak:
    def test_a_fault_may_be_several_words_in_any_place(self):
        options = cli._parse(["break", "--hide", "route", "--node", "2", "deleted"])
        assert (options.fault, options.hide, options.node) == (["route", "deleted"], True, "2")

    def test_the_list_needs_no_lab_and_no_rights(self, capsys, monkeypatch):
        monkeypatch.setattr(cli.rootless, "has_rights", lambda: False)
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        assert cli.main(["break", "--list"]) == 0
        assert "  cable-pulled " in capsys.readouterr().out

    @pytest.mark.parametrize("argv", [["break"], ["break", "x", "--random"], ["break", "nosuch"]])
    def test_what_is_to_be_broken_has_to_be_clear(self, argv, capsys, monkeypatch):
        monkeypatch.setattr(cli.rootless, "has_rights", lambda: True)
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        assert cli.main(argv) == 2
        assert "--list" in capsys.readouterr().err


class TestLogs:
    @pytest.fixture
    def ran(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PYFLANNEL_LAB_DIR", str(tmp_path / "labs"))
        monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
        directory = StateDirectory("default")
        state = directory.create(LabSpec())
        state.processes = {f"node{k}": ProcessRef(1, 1) for k in (1, 2)}
        directory.save(state)
        for node in ("node1", "node2"):
            (directory.path / node).mkdir()
            (directory.path / node / "log").touch()
        ran = []
        monkeypatch.setattr(cli.os, "execvp", lambda _program, argv: ran.append(argv))
        return ran

    def test_all_that_are_there_or_the_ones_asked_for(self, ran):
        cli._logs(cli._parse(["logs"]))
        cli._logs(cli._parse(["logs", "2", "-f", "-n", "5"]))
        everything, one = ran
        assert [name.split("/")[-2] for name in everything if "/" in name] == ["node1", "node2"]
        assert one[:5] == ["tail", "-n", "5", "-F", "--"]
        assert one[5].endswith("/node2/log")

    @pytest.mark.parametrize("node", ["3", "switch"])
    def test_a_node_that_is_not_there_is_named(self, ran, node, capsys):
        assert cli.main(["logs", node]) == 2
        assert node in capsys.readouterr().err
        assert ran == []


def test_a_list_of_no_labs_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYFLANNEL_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    assert cli.main(["list"]) == 0
    assert "pyflannel lab up" in capsys.readouterr().out


def test_a_list_has_size_and_state_of_each(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYFLANNEL_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    StateDirectory("one").create(LabSpec(name="one"))
    assert cli.main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["one", "0", "broken"]
