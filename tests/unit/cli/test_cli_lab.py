"""The command line of `pyflannel lab`."""

from __future__ import annotations

import pytest

from pyflannel.cli import lab as cli
from pyflannel.core.errors import UsageError
from pyflannel.lab.topology import Underlay


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
