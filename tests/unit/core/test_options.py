"""The daemon's command line and environment."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.core.commandline import (
    REMOVED,
    RunDaemon,
    ShowHelp,
    ShowVersion,
    parse_daemon,
    parse_etcd_flags,
    usage,
)
from pyflannel.core.errors import EXIT_CONFIG, EXIT_USAGE, ConfigError, FlannelError, UsageError
from pyflannel.core.kube.options import KubernetesOptions
from pyflannel.core.options import ETCD_FLAGS, FLAGS, DaemonOptions, EtcdOptions
from pyflannel.gocompat.flags import Kind, Mode

UPSTREAM = {
    "etcd-endpoints", "etcd-prefix", "etcd-keyfile", "etcd-certfile", "etcd-cafile",
    "etcd-username", "etcd-password", "iface", "iface-regex", "iface-can-reach", "subnet-file",
    "public-ip", "public-ipv6", "subnet-lease-renew-margin", "ip-masq",
    "ip-masq-fully-random-disable", "kube-subnet-mgr", "kube-api-url", "kube-annotation-prefix",
    "kubeconfig-file", "version", "healthz-ip", "healthz-port", "iptables-resync",
    "iptables-forward-rules", "ip-blackhole-route", "net-config-path",
    "set-node-network-unavailable", "v", "vmodule", "log_backtrace_at",
}  # fmt: skip
OURS = {
    "datapath", "udp-accept", "docker-opts-file", "docker-opts-keys", "status-socket", "state-dir",
    "log-format", "ready-when", "allow-extension", "static-network", "node-name", "status-group",
    "etcd-password-file", "instance", "lease-ttl", "release-on-exit",
    "metrics", "probe-interval", "cni-conflist",
    "etcd-discovery-srv", "etcd-discovery-srv-name", "etcd-insecure-discovery",
    "strict-health",
}  # fmt: skip


def run(*args: str, **env: str) -> RunDaemon:
    parsed = parse_daemon(["pyflanneld", *args], env)
    assert isinstance(parsed, RunDaemon)
    return parsed


def options(*args: str, **env: str) -> DaemonOptions:
    """The options of a command line that gives no reason for a warning."""
    parsed = run(*args, **env)
    assert parsed.warnings == ()
    return parsed.options


def refuse(*args: str, **env: str) -> FlannelError:
    with pytest.raises(FlannelError) as caught:
        parse_daemon(["pyflanneld", *args], env)
    return caught.value


def test_the_interval_of_probes_has_bounds_and_0_is_off() -> None:
    assert options().probe_interval == 10
    assert options("--probe-interval=0").probe_interval == 0
    assert options(FLANNELD_PROBE_INTERVAL="30").probe_interval == 30
    for wrong in ("-1", "3601"):
        assert "-probe-interval" in str(refuse(f"--probe-interval={wrong}"))


def test_the_table_has_every_flag_of_upstream_and_ours_once() -> None:
    assert {flag.name for flag in FLAGS if flag.since == "flannel"} == UPSTREAM
    assert {flag.name for flag in FLAGS if flag.since == "pyflannel"} == OURS
    assert len({flag.name for flag in FLAGS}) == len(FLAGS)
    assert not UPSTREAM & set(REMOVED)
    assert all(flag.help and not flag.help.endswith(".") for flag in FLAGS)


def test_defaults_are_those_of_upstream() -> None:
    assert options() == DaemonOptions()
    assert DaemonOptions().etcd.prefix == "/coreos.com/network"
    defaults = {flag.name: flag.default for flag in FLAGS}
    assert defaults["subnet-file"] == "/run/flannel/subnet.env"
    assert defaults["subnet-lease-renew-margin"] == 60
    assert defaults["iptables-resync"] == 5
    assert defaults["iptables-forward-rules"] is True
    assert defaults["set-node-network-unavailable"] is True
    assert defaults["healthz-ip"] == "0.0.0.0"
    assert defaults["kube-annotation-prefix"] == "flannel.alpha.coreos.com"
    assert defaults["net-config-path"] == "/etc/kube-flannel/net-conf.json"


def test_no_default_endpoint_has_a_port_that_any_local_user_may_take() -> None:
    """No etcd listens on 4001 today, so what does is another program; upstream asks there first."""
    assert options().etcd.endpoints == ("http://127.0.0.1:2379",)
    both = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    assert options(f"--etcd-endpoints={both}").etcd.endpoints == tuple(both.split(","))


def test_every_option_comes_from_its_flag() -> None:
    assert options(
        "-etcd-endpoints=http://a:1,http://b:2", "-etcd-prefix", "/p", "-etcd-keyfile=k",
        "-etcd-certfile=c", "-etcd-cafile=a", "-etcd-username=u", "-etcd-password-file=/w",
        "-iface=eth0", "--iface", "10.0.0.1", "-iface-regex=^e", "-iface-can-reach=192.0.2.9",
        "-subnet-file=/s", "-public-ip=192.0.2.1", "-public-ipv6=2001:db8::1",
        "-subnet-lease-renew-margin=1439", "-ip-masq", "-ip-masq-fully-random-disable",
        "-healthz-ip=::1", "-healthz-port=8080", "-iptables-resync=7",
        "-iptables-forward-rules=false", "-ip-blackhole-route", "-v=3", "-datapath=python",
        "-udp-accept=any", "-docker-opts-file=", "-docker-opts-keys=A,B",
        "-status-socket=/x", "-state-dir=/y", "-log-format=json", "-ready-when=files",
        "-lease-ttl=600", "-release-on-exit", "-metrics=false",
        "-allow-extension", "-status-group=adm", FLANNELD_ETCD_PASSWORD="w",
    ) == DaemonOptions(
        etcd=EtcdOptions(
            endpoints=("http://a:1", "http://b:2"), prefix="/p", keyfile="k", certfile="c",
            cafile="a", username="u", password="w", password_file="/w",
        ),
        iface=("eth0", "10.0.0.1"), iface_regex=("^e",), iface_can_reach="192.0.2.9",
        subnet_file="/s", public_ip="192.0.2.1", public_ipv6="2001:db8::1",
        subnet_lease_renew_margin=1439, ip_masq=True, ip_masq_fully_random_disable=True,
        healthz_ip="::1", healthz_port=8080, iptables_resync=7, iptables_forward_rules=False,
        ip_blackhole_route=True, v=3, datapath="python", udp_accept="any", docker_opts_file="",
        docker_opts_keys=("A", "B"), status_socket="/x", state_dir="/y", log_format="json",
        ready_when="files", allow_extension=True, status_group="adm", lease_ttl=600,
        release_on_exit=True, metrics=False,
    )  # fmt: skip


def test_every_option_has_a_flag() -> None:
    names = {flag.name.replace("-", "_") for flag in FLAGS}
    assert {field.name for field in dataclasses.fields(DaemonOptions)} - {"etcd", "kube"} <= names
    of_pod = {"node_name", "pod_name", "pod_namespace"}
    for field in {field.name for field in dataclasses.fields(KubernetesOptions)} - of_pod:
        assert names & {field, f"kube_{field}"}, field
    assert {f"etcd_{field.name}" for field in dataclasses.fields(EtcdOptions)} == {
        flag.name.replace("-", "_") for flag in ETCD_FLAGS
    }


def test_every_flag_has_a_variable() -> None:
    for flag in FLAGS:
        if flag.kind is Kind.STRING and flag.env and not flag.choices:
            usable = {
                "public-ipv6": "::1",
                "docker-opts-keys": "OPTIONS",
                "instance": "b",
                "kube-annotation-prefix": "example.org",
            }
            more = {"FLANNELD_KUBE_SUBNET_MGR": "1", **IN_A_POD} if flag.mode is Mode.KUBE else {}
            parsed = run(**{flag.variable(): usable.get(flag.name, "192.0.2.1")}, **more)
            if flag.mode is Mode.KUBE:
                assert parsed.options.kube != run(**more).options.kube, flag.name
            assert parsed.options != DaemonOptions() or flag.name in ("vmodule", "log_backtrace_at")
    assert options(FLANNELD_ETCD_ENDPOINTS="http://e").etcd.endpoints == ("http://e",)
    assert options(FLANNELD_IP_MASQ="true").ip_masq
    assert options(FLANNELD_V="2").v == 2
    assert options(FLANNELD_IFACE="a,b").iface == ("a,b",)
    assert run(FLANNELD_LOG_BACKTRACE_AT="x.go:1").warnings


def test_endpoints_are_split_at_commas_and_not_trimmed() -> None:
    assert options("-etcd-endpoints=a, b,,c").etcd.endpoints == ("a", " b", "", "c")
    assert options("-etcd-endpoints=").etcd.endpoints == ()


def test_the_line_that_centos_packaging_makes_is_understood() -> None:
    """Empty values first, then what the operator wrote: the last one counts."""
    parsed = options("-etcd-endpoints=", "-etcd-prefix=", "-etcd-endpoints=http://x", "-ip-masq")
    assert parsed.etcd.endpoints == ("http://x",)
    assert parsed.etcd.prefix == ""
    assert parsed.ip_masq


class TestVersionAndHelp:
    def test_version_comes_before_environment_and_checks(self) -> None:
        parsed = parse_daemon(["p", "-version", "-iptables-resync=0"], {"FLANNELD_V": "x"})
        assert parsed == ShowVersion()

    def test_a_bad_flag_comes_before_version(self) -> None:
        assert isinstance(refuse("-version", "-nope"), UsageError)

    def test_version_from_the_environment_has_no_effect(self) -> None:
        parsed = run(FLANNELD_VERSION="true")
        assert "FLANNELD_VERSION is ignored" in parsed.warnings[0]

    @pytest.mark.parametrize("word", ["-h", "-help", "--help"])
    def test_help_is_the_usage_text(self, word: str) -> None:
        parsed = parse_daemon(["/usr/bin/pyflanneld", word], {})
        assert parsed == ShowHelp(usage("/usr/bin/pyflanneld"))
        assert isinstance(parsed, ShowHelp)
        assert parsed.text.startswith("Usage: /usr/bin/pyflanneld [OPTION]...\n")
        for flag in FLAGS:
            assert f"\n  -{flag.name}" in parsed.text


class TestUsageErrors:
    @pytest.mark.parametrize(
        ("args", "texts"),
        [
            (["-nope"], ["flag provided but not defined: -nope"]),
            (["-etcd-endpoint=x"], ["did you mean -etcd-endpoints?"]),
            (["-ip_masq"], ["did you mean -ip-masq?"]),
            (["-healthz-port=abc"], ['"abc"', "-healthz-port", "whole number"]),
            (["-ip-masq=maybe"], ['"maybe"', "-ip-masq", "true or false"]),
            (["-datapath=fast"], ['"fast"', "-datapath", "auto, python, native, ebpf"]),
            (["-udp-accept=all"], ["peers, any-port, any"]),
            (["-log-format=xml"], ["auto, text, json"]),
            (["-iface"], ["flag needs an argument: -iface"]),
        ],
    )
    def test_the_message_names_flag_value_and_expectation(
        self, args: list[str], texts: list[str]
    ) -> None:
        error = refuse(*args)
        assert isinstance(error, UsageError)
        assert error.exit_code == EXIT_USAGE
        assert all(text in str(error) for text in texts)

    @pytest.mark.parametrize("name", sorted(REMOVED))
    def test_flags_of_older_flannels_say_what_became_of_them(self, name: str) -> None:
        error = refuse(f"-{name}=true")
        assert isinstance(error, UsageError)
        assert f"flag provided but not defined: -{name} (" in str(error)
        assert "flannel dropped" in str(error)


class TestConfigErrors:
    @pytest.mark.parametrize("minutes", ["0", "1440", "-1", "99999"])
    def test_a_renew_margin_outside_a_day(self, minutes: str) -> None:
        error = refuse("-subnet-lease-renew-margin", minutes)
        assert isinstance(error, ConfigError)
        assert error.exit_code == EXIT_CONFIG
        assert f"-subnet-lease-renew-margin is {minutes}" in str(error)

    @pytest.mark.parametrize("minutes", ["1", "1439"])
    def test_the_ends_of_the_range_are_fine(self, minutes: str) -> None:
        assert options("-subnet-lease-renew-margin", minutes)

    @pytest.mark.parametrize("seconds", ["59", "-1", "2592001"])
    def test_the_ttl_of_the_lease_has_bounds(self, seconds: str) -> None:
        error = refuse("-lease-ttl", seconds)
        assert isinstance(error, ConfigError)
        assert f"-lease-ttl is {seconds}, expected seconds between 60 and 2592000" in str(error)

    @pytest.mark.parametrize("seconds", ["0", "60", "2592000"])
    def test_within_them_it_is_taken(self, seconds: str) -> None:
        assert options("-lease-ttl", seconds).lease_ttl == int(seconds)

    @pytest.mark.parametrize("seconds", ["0", "-5"])
    def test_a_resync_period_that_would_spin(self, seconds: str) -> None:
        assert f"-iptables-resync is {seconds}" in str(refuse(f"-iptables-resync={seconds}"))

    def test_the_last_port_is_a_port(self) -> None:
        assert options("-healthz-port=65535").healthz_port == 65535

    @pytest.mark.parametrize(
        "arg",
        [
            "-healthz-port=65536", "-public-ip=fd00::1", "-public-ip=host", "-public-ipv6=10.0.0.1",
            "-subnet-file=", "-status-socket=", "-state-dir=",
        ],
    )  # fmt: skip
    def test_values_that_make_no_sense(self, arg: str) -> None:
        error = refuse(arg)
        assert isinstance(error, ConfigError)
        assert arg.partition("=")[0] in str(error)

    def test_all_errors_are_named_at_once(self) -> None:
        error = refuse("-kube-subnet-mgr", "-iptables-resync=0", "-public-ip=x")
        for name in ("-kube-subnet-mgr", "-iptables-resync", "-public-ip"):
            assert name in str(error)


IN_A_POD = {"POD_NAME": "kube-flannel-ds-x", "POD_NAMESPACE": "kube-flannel"}


class TestKubernetes:
    """The flags of upstream's DaemonSet, and what a pod has in its environment."""

    def test_upstreams_own_command_line(self) -> None:
        given = options(
            "--ip-masq",
            "--kube-subnet-mgr",
            "--healthz-port=8081",
            EVENT_QUEUE_DEPTH="5000",
            **IN_A_POD,
        )
        assert given.kube_subnet_mgr
        assert given.kube == KubernetesOptions(
            pod_name="kube-flannel-ds-x", pod_namespace="kube-flannel"
        )
        assert given.kube.net_config_path == "/etc/kube-flannel/net-conf.json"
        assert given.docker_opts_file == "", "no docker's containers there"

    def test_all_of_them(self) -> None:
        given = options(
            "-kube-subnet-mgr",
            "-kube-api-url=https://k:6443",
            "-kubeconfig-file=/c",
            "-kube-annotation-prefix=example.org/x",
            "-net-config-path=/n",
            "-set-node-network-unavailable=false",
            "-docker-opts-file=/d",
            "-cni-conflist=/etc/cni/net.d/10-flannel.conflist",
            NODE_NAME="n1",
        )
        assert given.kube == KubernetesOptions(
            api_url="https://k:6443",
            kubeconfig_file="/c",
            annotation_prefix="example.org/x",
            net_config_path="/n",
            set_node_network_unavailable=False,
            node_name="n1",
            cni_conflist="/etc/cni/net.d/10-flannel.conflist",
        )
        assert given.kube.key_prefix == "example.org/x-"
        assert given.docker_opts_file == "/d"
        assert "kube-api-url=" in given.describe()

    def test_the_name_of_the_node(self) -> None:
        assert options("-kube-subnet-mgr", "-node-name=a", NODE_NAME="b").kube.node_name == "a"
        assert "POD_NAME" in str(refuse("-kube-subnet-mgr"))
        assert "POD_NAME" in str(refuse("-kube-subnet-mgr", POD_NAME="x"))

    @pytest.mark.parametrize(
        ("arg", "words"),
        [
            ("-kube-annotation-prefix=a/b/c", "single slash"),
            ("-kube-annotation-prefix=org", "fqdn"),
            ("-net-config-path=", "net-config-path"),
            ("-static-network=/x", "one store"),
        ],
    )
    def test_values_that_make_no_sense(self, arg: str, words: str) -> None:
        error = refuse("-kube-subnet-mgr", arg, **IN_A_POD)
        assert isinstance(error, ConfigError)
        assert words in str(error)

    @pytest.mark.parametrize(
        "arg",
        [
            "-kube-api-url=http://x",
            "-kube-annotation-prefix=nonsense",
            "-kubeconfig-file=/x",
            "-net-config-path=/x",
            "-set-node-network-unavailable=false",
        ],
    )
    def test_without_the_switch_the_others_are_a_warning(self, arg: str) -> None:
        """Upstream ignores them."""
        parsed = run(arg)
        assert parsed.options == DaemonOptions()
        (warning,) = parsed.warnings
        assert arg.partition("=")[0] in warning
        assert "-kube-subnet-mgr" in warning

    def test_going_on_without_a_list_is_not_done(self) -> None:
        parsed = run("-kube-subnet-mgr", CONT_WHEN_CACHE_NOT_READY="true", **IN_A_POD)
        assert "CONT_WHEN_CACHE_NOT_READY" in parsed.warnings[0]


class TestWarnings:
    def test_words_behind_the_flags_are_ignored_but_not_silently(self) -> None:
        parsed = run("-ip-masq", "true", "-iface", "eth0", "-version")
        assert parsed.options == DaemonOptions(ip_masq=True)
        (warning,) = parsed.warnings
        assert '"true" "-iface" "eth0" "-version"' in warning
        assert "-flag=true" in warning
        assert '"word"' in run("word").warnings[0]

    def test_a_password_among_them_is_not_shown(self) -> None:
        parsed = run("x", "-etcd-password", "hunter2", "--etcd-password=hunter3")
        assert "hunter" not in parsed.warnings[0]

    @pytest.mark.parametrize("arg", ["-vmodule=a=1", "-log_backtrace_at=a.go:1"])
    def test_debugging_knobs_of_flanneld_have_no_effect(self, arg: str) -> None:
        (warning,) = run(arg).warnings
        assert arg.partition("=")[0] in warning
        assert "no effect" in warning

    def test_a_bad_variable_keeps_the_default(self) -> None:
        parsed = run(FLANNELD_HEALTHZ_PORT="abc", FLANNELD_ETCD_PASSWORD="")
        assert parsed.options == DaemonOptions()
        (warning,) = parsed.warnings
        assert warning.startswith("Failed to set flag FLANNELD from env")
        assert all(text in warning for text in ("FLANNELD_HEALTHZ_PORT", '"abc"', "-healthz-port"))

    def test_a_variable_that_belongs_to_no_flag(self) -> None:
        (warning,) = run(FLANNELD_ETCD_ENDPOINT="x", FLANNEL_ETCD_PREFIX="y").warnings
        assert "did you mean FLANNELD_ETCD_ENDPOINTS?" in warning

    def test_a_negative_health_port_means_none(self) -> None:
        parsed = run("-healthz-port=-1")
        assert parsed.options.healthz_port == 0
        assert "-healthz-port" in parsed.warnings[0]


class TestEtcdFlagsOfOtherCommands:
    def test_they_work_anywhere_and_leave_the_rest(self) -> None:
        command = parse_etcd_flags(
            ["set", "-etcd-prefix", "/p", "file", "--json", "--etcd-endpoints=http://x"],
            {"FLANNELD_ETCD_USERNAME": "u", "FLANNELD_ETCD_PREFIX": "/no", "FLANNELD_IFACE": "e"},
        )
        assert command.rest == ("set", "file", "--json")
        assert command.options == EtcdOptions(endpoints=("http://x",), prefix="/p", username="u")
        assert command.warnings == ()

    def test_they_mean_what_they_mean_to_the_daemon(self) -> None:
        args = ["-etcd-endpoints=a,b", "-etcd-cafile", "c", "-etcd-password-file=w"]
        env = {"FLANNELD_ETCD_KEYFILE": "k"}
        assert parse_etcd_flags(args, env).options == options(*args, **env).etcd


class TestDescription:
    def test_it_lists_what_is_not_at_its_default_in_one_line(self) -> None:
        text = options("-iface=eth0", "-iface=eth 1", "-ip-masq", "-subnet-file=/x").describe()
        assert text == 'iface="eth0","eth 1" subnet-file="/x" ip-masq=true'
        assert options("-v=0").describe() == ""

    def test_it_shows_no_secret(self) -> None:
        endpoints = "-etcd-endpoints=http://u:hunter3@h:1,http://i"
        parsed = options(endpoints, FLANNELD_ETCD_PASSWORD="hunter2")
        assert "hunter" not in parsed.describe()
        assert "etcd-password=***" in parsed.describe()
        assert "http://***@h:1,http://i" in parsed.describe()


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from([f"-{flag.name}" for flag in FLAGS] + ["=1", "x", "--", "5"]), max_size=6
    ),
    st.dictionaries(st.sampled_from([flag.variable() for flag in FLAGS]), st.text(max_size=4)),
)
def test_any_command_line_gives_options_or_an_expected_error(
    args: list[str], env: dict[str, str]
) -> None:
    with contextlib.suppress(UsageError, ConfigError):
        parse_daemon(["p", *args], env)


def test_a_password_on_the_command_line_is_a_warning_that_names_the_file() -> None:
    for word in ("-etcd-password=hunter2", "--etcd-password=hunter2"):
        (warning,) = run(word).warnings
        assert "-etcd-password-file" in warning
        assert "hunter2" not in warning
        assert parse_etcd_flags([word], {}).warnings == (warning,)
    assert run(FLANNELD_ETCD_PASSWORD="hunter2").warnings == ()
    assert run("-etcd-password-file=/x").warnings == ()


def of_instance(*flags: str, env: dict[str, str] | None = None) -> DaemonOptions:
    found = parse_daemon(["pyflanneld", *flags], env or {})
    assert isinstance(found, RunDaemon)
    return found.options


def test_an_instance_has_files_of_its_own_and_no_docker_options() -> None:
    for options in (of_instance("-instance=b"), of_instance(env={"FLANNELD_INSTANCE": "b"})):
        assert options.subnet_file == "/run/flannel/b/subnet.env"
        assert options.status_socket == "/run/flannel/b/pyflannel.sock"
        assert options.state_dir == "/var/lib/pyflannel/b"
        assert options.docker_opts_file == ""


def test_a_path_that_is_given_is_taken_for_any_instance() -> None:
    options = of_instance(
        "-instance=b", "-subnet-file=/srv/x", env={"FLANNELD_STATE_DIR": "/srv/y"}
    )
    assert (options.subnet_file, options.state_dir) == ("/srv/x", "/srv/y")
    assert options.status_socket == "/run/flannel/b/pyflannel.sock"
    assert of_instance("-instance=b", "-docker-opts-file=/srv/d").docker_opts_file == "/srv/d"


def test_the_prefix_alone_changes_no_file() -> None:
    """CentOS's /atomic.io/network is a single daemon."""
    options = of_instance("-etcd-prefix=/atomic.io/network")
    assert options.subnet_file == DaemonOptions().subnet_file
    assert options.docker_opts_file == DaemonOptions().docker_opts_file


@pytest.mark.parametrize("name", ["..", "a/b", "a.b", "-a", "a" * 33, "ü"])
def test_a_name_that_is_no_part_of_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="-instance"):
        parse_daemon(["pyflanneld", f"-instance={name}"], {})
