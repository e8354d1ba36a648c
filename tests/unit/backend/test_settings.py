"""The settings of each backend."""

from __future__ import annotations

import pytest

from pyflannel.backend.extension import ExtensionSettings
from pyflannel.backend.ipip import IpipSettings
from pyflannel.backend.kinds import BUILT_IN, KINDS
from pyflannel.backend.udp import UdpSettings
from pyflannel.backend.vxlan.settings import VxlanSettings
from pyflannel.core.fields import Problem, Severity
from pyflannel.core.kind import decode
from pyflannel.core.settings import Settings
from pyflannel.gocompat.json import JsonObject, loads_go


def decode_backend(
    name: str, members: dict[str, object] | JsonObject
) -> tuple[Settings | None, tuple[Problem, ...]]:
    kind = KINDS.get(name)
    assert kind is not None
    return decode(kind, members, KINDS, outside=("Network", "SubnetLen"))


@pytest.mark.parametrize(
    ("kind", "members", "config"),
    [
        ("udp", {}, UdpSettings(port=8285)),
        ("udp", {"Type": "udp", "PORT": 9000}, UdpSettings(port=9000)),
        ("udp", {"Port": None}, UdpSettings()),
        ("vxlan", {}, VxlanSettings(vni=1, port=0, mtu=0)),
        (
            "vxlan",
            {
                "VNI": 7, "Port": 4789, "MTU": 1400, "GBP": True, "Learning": True,
                "DirectRouting": True,
            },
            VxlanSettings(vni=7, port=4789, mtu=1400, gbp=True, learning=True, direct_routing=True),
        ),
        ("vxlan", {"vni": 0, "mtu": 118, "directrouting": True},
         VxlanSettings(vni=0, mtu=118, direct_routing=True)),
        ("vxlan", {"VNI": 16777215}, VxlanSettings(vni=16777215)),
        ("vxlan", {"txchecksumoffload": False}, VxlanSettings(tx_checksum_offload=False)),
        ("vxlan", {"TxChecksumOffload": "auto"}, VxlanSettings(tx_checksum_offload="auto")),
        ("vxlan", {"Port": 65535, "MTU": 9216}, VxlanSettings(port=65535, mtu=9216)),
        ("udp", {"Port": 1}, UdpSettings(port=1)),
        ("udp", {"Port": 65535}, UdpSettings(port=65535)),
        ("host-gw", {"Type": "host-gw"}, Settings()),
        ("ipip", {"DirectRouting": True}, IpipSettings(direct_routing=True)),
        ("ipip", {}, IpipSettings()),
        ("alloc", {}, Settings()),
        ("extension", {}, ExtensionSettings()),
        (
            "extension",
            {"PreStartupCommand": "a", "PostStartupCommand": "b", "SubnetAddCommand": "c",
             "subnetremovecommand": "d"},
            ExtensionSettings(
                pre_startup_command="a", post_startup_command="b", subnet_add_command="c",
                subnet_remove_command="d",
            ),
        ),
    ],
)  # fmt: skip
def test_settings_are_read_and_written(
    kind: str, members: dict[str, object], config: Settings
) -> None:
    assert decode_backend(kind, members) == (config, ())
    written = config.encode()
    assert tuple(written) == config.keys()
    assert decode_backend(kind, written) == (config, ())


@pytest.mark.parametrize(
    ("kind", "members", "key", "text"),
    [
        ("vxlan", {"Port": "8472"}, "Port",
         'error decoding VXLAN backend config: Port is "8472", expected a whole number'),
        ("vxlan", {"VNI": 1.0}, "VNI", "error decoding VXLAN backend config: VNI is 1.0"),
        ("vxlan", {"VNI": True}, "VNI", "expected a whole number"),
        ("vxlan", {"GBP": 1}, "GBP", "expected true or false"),
        ("vxlan", {"TxChecksumOffload": 0}, "TxChecksumOffload", 'expected true, false or "auto"'),
        ("vxlan", {"TxChecksumOffload": "false"}, "TxChecksumOffload", "true, false or"),
        ("vxlan", {"Learning": "true"}, "Learning", "expected true or false"),
        ("vxlan", {"DirectRouting": 0}, "DirectRouting", "expected true or false"),
        ("vxlan", {"VNI": 16777216}, "VNI", "expected 24 bits"),
        ("vxlan", {"VNI": -1}, "VNI", "expected 24 bits"),
        ("vxlan", {"Port": 65536}, "Port", "expected a UDP port"),
        ("vxlan", {"MTU": 117}, "MTU", "expected the MTU of the underlay, 118 to"),
        ("vxlan", {"MTU": -5}, "MTU", "expected the MTU of the underlay"),
        ("vxlan", {"MTU": 65586}, "MTU", "expected the MTU of the underlay"),
        ("udp", {"Port": "x"}, "Port", "error decoding UDP backend config: "),
        ("udp", {"Port": 0}, "Port", "expected a UDP port, 1 to 65535"),
        ("udp", {"Port": 65536}, "Port", "expected a UDP port"),
        ("ipip", {"DirectRouting": []}, "DirectRouting", "error decoding IPIP backend config: "),
        ("extension", {"SubnetAddCommand": ["ip"]}, "SubnetAddCommand",
         "error decoding backend config: SubnetAddCommand is an array, expected a string"),
        ("extension", {"SubnetAddCommand": "echo 'oops"}, "SubnetAddCommand",
         "Backend.SubnetAddCommand \"echo 'oops\" cannot be split: No closing quotation"),
        ("extension", {"PreStartupCommand": 5}, "PreStartupCommand", "expected a string"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_that_names_its_key(
    kind: str, members: dict[str, object], key: str, text: str
) -> None:
    config, problems = decode_backend(kind, members)
    assert config is None
    (problem,) = problems
    assert problem.severity is Severity.ERROR
    assert problem.key == f"Backend.{key}"
    assert text in problem.message


@pytest.mark.parametrize(
    ("kind", "members", "key", "text"),
    [
        ("udp", {"VNI": 1}, "VNI", "backend udp does not use it, vxlan does"),
        ("host-gw", {"DirectRouting": True}, "DirectRouting", "ipip, vxlan does"),
        ("udp", {"Prot": 8285}, "Prot", "did you mean Port?"),
        ("vxlan", {"DirectRuoting": True}, "DirectRuoting", "did you mean DirectRouting?"),
        ("vxlan", {"BackendType": "x"}, "BackendType", "the key is called Type"),
        ("vxlan", {"SubnetLen": 24}, "SubnetLen", "outside Backend"),
        ("extension", {"ShutdownCommand": "x"}, "ShutdownCommand", "runs no command when it stops"),
        ("alloc", {"Comment": 1}, "Comment", "it knows Type"),
        ("vxlan", {"Port": -1}, "Port", "taken as 0"),
        ("vxlan", {"MTU": 9217}, "MTU", "jumbo"),
        ("vxlan", {"MTU": 65585}, "MTU", "jumbo"),
        ("extension", {"SubnetAddComand": "x"}, "SubnetAddComand", "did you mean SubnetAddCommand"),
    ],
)
def test_what_upstream_ignores_is_a_warning_that_says_what_was_meant(
    kind: str, members: dict[str, object], key: str, text: str
) -> None:
    config, problems = decode_backend(kind, members)
    assert config is not None
    (problem,) = problems
    assert problem.severity is Severity.WARNING
    assert problem.key == f"Backend.{key}"
    assert text in str(problem)


def test_a_negative_vxlan_port_is_the_kernels_own_as_upstream_never_sends_it() -> None:
    assert decode_backend("vxlan", {"Port": -1})[0] == VxlanSettings(port=0)


def test_of_duplicate_keys_the_last_wins_in_any_case() -> None:
    members = loads_go('{"Port":1,"port":2,"PORT":3}')
    assert isinstance(members, JsonObject)
    config, problems = decode_backend("udp", members)
    assert config == UdpSettings(port=3)
    assert [p.severity for p in problems] == [Severity.WARNING, Severity.WARNING]


def test_all_problems_are_reported() -> None:
    config, problems = decode_backend("vxlan", {"x": 1, "GBP": 1, "Port": 70000, "VNI": "1"})
    assert config is None
    assert [p.key for p in problems] == ["Backend.x", "Backend.GBP", "Backend.VNI", "Backend.Port"]


@pytest.mark.parametrize("name", BUILT_IN)
def test_everything_has_a_default_that_is_right_and_a_line_for_people(name: str) -> None:
    assert decode_backend(name, {}) == (KINDS.get(name).settings(), ())
    for setting in KINDS.get(name).settings.declared().values():
        assert setting.key
        assert setting.effect
        assert not setting.effect.endswith(".")
        assert setting.wanted != "anything"
