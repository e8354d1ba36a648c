"""`pyflannel doctor datapath` on the kernel at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.datapath.abilities import ABILITIES
from pyflannel.datapath.ebpf import attachment
from pyflannel.kernel.limits import linux_version
from tests.support.schema import check_printed

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.guest]

COMMAND = [str(Path(sys.executable).with_name("pyflannel")), "doctor", "datapath", "--json"]


def ask(**environment: str) -> dict:
    done = subprocess.run(
        ["unshare", "--net", *COMMAND],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )
    assert done.returncode == 0, done.stderr
    return check_printed("doctor-datapath", done.stdout)


def test_each_data_path_says_what_the_kernel_granted():
    told = ask()
    assert told["chosen"] == "ebpf", told["why"]
    ebpf, native, python = told["paths"]
    assert [path["obstacle"] for path in (ebpf, native, python)] == ["", "", ""]
    for path in told["paths"]:
        assert set(path["can"]) == set(ABILITIES[path["name"]])
    assert ebpf["can"]["clsact"] == "on"
    assert ebpf["can"]["gro"] == ebpf["can"]["strip"] == "on"
    has_tcx = linux_version() >= (6, 6)
    assert (ebpf["can"]["tcx"] == "on") is has_tcx
    assert native["can"]["gso"] == "on"
    assert (native["can"]["uso"] == "on") is (linux_version() >= (6, 2))


def test_what_the_environment_forbids_is_told():
    told = ask(PYFLANNEL_NATIVE_OFF="gso", **{attachment.FORCED: "clsact"})
    assert told["paths"][0]["can"]["clsact"] == "on"
    assert told["paths"][1]["can"]["gso"] == "off (forced)"


def test_nothing_is_left_on_the_node():
    script = f"ip -o link; {' '.join(COMMAND)} >/dev/null; ip -o link; tc qdisc; ip -6 rule"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", script], capture_output=True, text=True, check=True
    )
    assert "flannel" not in done.stdout
    assert "clsact" not in done.stdout
