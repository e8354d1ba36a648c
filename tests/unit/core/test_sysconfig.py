"""The variables of distributions' flannel packages become flags, and contradictions are named."""

from __future__ import annotations

import pytest

from pyflannel.core.commandline import RunDaemon, parse_daemon
from pyflannel.core.errors import UsageError
from pyflannel.core.sysconfig import Launch, translate


def test_without_such_variables_nothing_changes() -> None:
    env = {"FLANNELD_ETCD_ENDPOINTS": "http://e:2379", "PATH": "/bin"}
    assert translate(["-v=1"], env) == Launch(("-v=1",))


@pytest.mark.parametrize(
    ("variable", "flag"),
    [
        ("FLANNEL_ETCD_ENDPOINTS", "-etcd-endpoints=x"),
        ("FLANNEL_ETCD", "-etcd-endpoints=x"),
        ("FLANNEL_ETCD_PREFIX", "-etcd-prefix=x"),
        ("FLANNEL_ETCD_KEY", "-etcd-prefix=x"),
    ],
)
def test_each_name_becomes_its_flag(variable: str, flag: str) -> None:
    assert translate([], {variable: "x"}) == Launch((flag,))


def test_options_are_split_as_a_shell_would_and_come_last() -> None:
    env = {"FLANNEL_ETCD": "http://e", "FLANNEL_OPTIONS": "-iface=eth1 --public-ip '192.0.2.1'"}
    assert translate(["-v=1"], env).argv == (
        "-etcd-endpoints=http://e", "-v=1", "-iface=eth1", "--public-ip", "192.0.2.1",
    )  # fmt: skip


def test_an_empty_variable_hides_nothing() -> None:
    env = {"FLANNEL_ETCD_ENDPOINTS": "", "FLANNEL_ETCD": "http://old", "FLANNEL_OPTIONS": ""}
    assert translate([], env) == Launch(("-etcd-endpoints=http://old",))


@pytest.mark.parametrize(
    ("env", "counts"),
    [
        ({"FLANNEL_ETCD_ENDPOINTS": "a", "FLANNEL_ETCD": "b"}, "FLANNEL_ETCD_ENDPOINTS"),
        ({"FLANNEL_ETCD": "a", "FLANNELD_ETCD_ENDPOINTS": "b"}, "FLANNEL_ETCD"),
        ({"FLANNEL_ETCD": "b", "FLANNEL_OPTIONS": "-etcd-endpoints=a"}, "-etcd-endpoints"),
        ({"FLANNELD_ETCD_ENDPOINTS": "b", "FLANNEL_OPTIONS": "-etcd-endpoints=a"},
         "-etcd-endpoints"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named_with_the_one_that_counts(
    env: dict[str, str], counts: str
) -> None:
    launch = translate([], env)
    (warning,) = launch.warnings
    assert all(value in warning for value in ("=a", "=b"))
    assert warning.endswith(f"{counts} counts")
    parsed = parse_daemon(["pyflanneld", *launch.argv], env)
    assert isinstance(parsed, RunDaemon)
    assert parsed.options.etcd.endpoints == ("a",)


def test_any_flag_that_a_variable_contradicts_is_named_but_no_secret_is_shown() -> None:
    env = {
        "FLANNEL_OPTIONS": "-ip-masq=false -iface=eth0 -etcd-password=a -v=1",
        "FLANNELD_IP_MASQ": "1",
        "FLANNELD_IFACE": "eth0",
        "FLANNELD_ETCD_PASSWORD": "b",
        "FLANNELD_V": "x",
        "FLANNELD_DATAPATH": "python",
    }
    assert translate([], env).warnings == (
        (
            "-etcd-password=*** and FLANNELD_ETCD_PASSWORD=*** contradict each other;"
            " -etcd-password counts"
        ),
        "-ip-masq=false and FLANNELD_IP_MASQ=true contradict each other; -ip-masq counts",
    )


def test_two_names_that_agree_are_no_contradiction() -> None:
    env = {"FLANNEL_ETCD_KEY": "/n", "FLANNEL_ETCD_PREFIX": "/n", "FLANNELD_ETCD_PREFIX": "/n"}
    assert translate([], env).warnings == ()


def test_a_misspelt_name_is_told_with_the_right_one() -> None:
    (warning,) = translate([], {"FLANNEL_ETCD_ENDPOINT": "x"}).warnings
    assert "did you mean FLANNEL_ETCD_ENDPOINTS?" in warning


def test_what_subnet_env_defines_is_no_mistake() -> None:
    assert translate([], {"FLANNEL_SUBNET": "10.5.1.1/24", "FLANNEL_MTU": "1450"}) == Launch(())


def test_an_open_quote_is_a_usage_error_that_names_the_variable() -> None:
    with pytest.raises(UsageError, match="FLANNEL_OPTIONS"):
        translate([], {"FLANNEL_OPTIONS": "-iface='eth0"})


def test_flags_that_do_not_parse_are_left_to_the_daemon() -> None:
    env = {"FLANNEL_OPTIONS": "-no-such-flag", "FLANNEL_ETCD": "http://e"}
    assert translate([], env) == Launch(("-etcd-endpoints=http://e", "-no-such-flag"))
