"""A new backend is one file, ours or another package's; everybody else knows it by its kind."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyflannel.lab import Lab, LabSpec

ROOT = Path(__file__).parents[2]
FOREIGN = ROOT / "tests" / "data" / "foreign-backend"
LIST = "pyflannel/backend/kinds.py"

pytestmark = pytest.mark.slow


def run(path: Path, *argv: str, stdin: str = "", check: bool = True):
    """Runs a program that finds packages below `path` before all others."""
    done = subprocess.run(
        argv,
        input=stdin,
        env={**os.environ, "PYTHONPATH": str(path), "COLUMNS": "200"},
        cwd=path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def pyflannel(path: Path, *words: str, stdin: str = "", check: bool = True):
    return run(
        path, sys.executable, "-m", "pyflannel.cli.pyflannel", *words, stdin=stdin, check=check
    )


def checked(path: Path, backend: dict[str, object]) -> dict:
    config = {"Network": "10.9.0.0/16", "Backend": backend}
    done = pyflannel(path, "config", "check", "-", "--json", stdin=json.dumps(config), check=False)
    return json.loads(done.stdout)


def changed_files(path: Path) -> set[str]:
    """What a tree has that ours has not, or has otherwise; nothing of ours may be missing."""
    files = {
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    return {f for f in files if not (ROOT / f).exists() or not filecmp.cmp(ROOT / f, path / f)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """pyflannel with two more backends: alloc under another name, and one with all there is."""
    path = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("pyflannel", "tools"):
        shutil.copytree(ROOT / name, path / name, ignore=skip)
    room = path / "pyflannel" / "backend"
    alloc = (room / "alloc.py").read_text()
    (room / "throwaway.py").write_text(alloc.replace('"alloc"', '"throw-away"'))
    shutil.copy(FOREIGN / "flannel_sample.py", room / "sample.py")
    listing = path / LIST
    before = listing.read_text()
    after = before.replace('BUILT_IN: Final = ("alloc",', 'BUILT_IN: Final = ("alloc", "sample",')
    listing.write_text(after.replace('"udp",', '"throw-away", "udp",'))
    where = run(path, sys.executable, "-c", "import pyflannel; print(pyflannel.__file__)")
    assert where.stdout.startswith(str(path)), "another pyflannel would be asked"
    return path


class TestOneMoreFile:
    """It touches its own file and the list."""

    def test_nothing_else_is_touched(self, tree):
        own = {"pyflannel/backend/throwaway.py", "pyflannel/backend/sample.py"}
        assert changed_files(tree) == own | {LIST}

    def test_config_check_knows_its_settings(self, tree):
        report = checked(tree, {"Type": "Throw-Away"})
        assert report["problems"] == []
        assert report["config"]["Backend"] == {"Type": "throw-away"}
        report = checked(tree, {"Type": "sample"})
        assert report["config"]["Backend"] == {"Type": "sample", "Colour": "blue"}
        (problem,) = checked(tree, {"Type": "sample", "Color": "red"})["problems"]
        assert problem["remedy"] == "did you mean Colour?"
        (problem,) = checked(tree, {"Type": "sample", "Colour": "octarine"})["problems"]
        assert (problem["severity"], problem["key"]) == ("error", "Backend.Colour")
        (problem,) = checked(tree, {"Type": "sampel"})["problems"]
        assert problem["remedy"].startswith("did you mean sample?")

    def test_help_man_pages_and_tables_know_it(self, tree, tmp_path):
        shown = pyflannel(tree, "config", "--help").stdout
        assert "  throw-away a subnet and nothing else" in shown
        assert "    Colour: published, and of no use" in shown
        assert "sample, throw-away, udp" in pyflannel(tree, "lab", "up", "--help").stdout
        run(tree, sys.executable, "tools/manuals.py", str(tmp_path))
        page = (tmp_path / "man/man8/pyflannel-config.8").read_text()
        assert "throw\\-away" in page
        assert "Colour: published" in page
        run(tree, sys.executable, "tools/backends.py", str(tmp_path / "backends.md"))
        table = (tmp_path / "backends.md").read_text()
        assert "| `throw-away` |" in table
        assert '| `Colour` | `"blue"` | a string | published, and of no use |' in table
        assert "`flannelsample0` | `sample.json` |" in table

    def test_the_lab_knows_what_can_be_done_to_it(self, tree):
        code = (
            "from pyflannel.lab.faults import faults_for\n"
            "names = [fault.name for fault in faults_for('sample')]\n"
            "assert 'device deleted' in names and 'route deleted' in names\n"
            "assert not any('VNI' in name for name in names)\n"
            "try: faults_for('throw-away')\n"
            "except Exception as error: print(type(error).__name__)\n"
        )
        assert run(tree, sys.executable, "-c", code).stdout == "UsageError\n"

    @pytest.mark.root
    def test_cleanup_knows_its_devices_and_files(self, tree, tmp_path):
        (tmp_path / "sample.json").write_text('{"colour": "red"}')
        paths = " ".join(
            f"--{name}={tmp_path}/{name}"
            for name in ("subnet-file", "docker-opts-file", "status-socket")
        )
        script = (
            "ip link add flannelsample0 type bridge && ip link add flannelsample1x type bridge && "
            f"{sys.executable} -m pyflannel.cli.pyflannel cleanup --json --dry-run"
            f" --state-dir={tmp_path} {paths}"
        )
        found = json.loads(run(tree, "unshare", "-n", "sh", "-c", script).stdout)["found"]
        assert "device flannelsample0" in found
        assert f"file {tmp_path}/sample.json" in found
        assert not any("flannelsample1x" in what for what in found)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The sample backend as its own distribution, put there by pip."""
    path = tmp_path_factory.mktemp("site")
    sources = tmp_path_factory.mktemp("sources") / "sample"
    shutil.copytree(FOREIGN, sources)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install"),
            *("--no-index", "--no-build-isolation", "--no-deps", "--target", path, sources),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert list(path.glob("flannel_sample-1.0.dist-info"))
    return path


class TestAnotherPackage:
    def test_the_check_knows_it_where_it_is_installed_and_only_there(self, installed, tmp_path):
        assert checked(installed, {"Type": "sample"})["problems"] == []
        (problem,) = checked(tmp_path, {"Type": "sample"})["problems"]
        assert problem["message"] == "unknown backend type: sample"

    @pytest.mark.root
    def test_nodes_run_with_it_from_the_config_to_the_cleanup(self, installed):
        environment = {"PYTHONPATH": str(installed)}
        config = {
            "Network": "10.9.0.0/16",
            "SubnetMin": "10.9.1.0",
            "Backend": {"Type": "sample", "Colour": "green"},
        }
        spec = LabSpec(nodes=2, name="foreign", config=config, daemon_env=environment)
        with Lab(spec) as lab:
            lab.wait(lambda: lab.ping_all(count=1).ok, 10, what="all pods")
            leases = [
                json.loads(kv.value) for kv in lab.etcd.get_prefix("/coreos.com/network/subnets/")
            ]
            assert {lease["PublicIP"] for lease in leases} == {n.address for n in lab.nodes}
            for lease in leases:
                assert lease["BackendType"] == "sample"
                assert lease["BackendData"] == {"Colour": "green"}

            node = lab.node(1)
            link = ["ip", "-o", "link", "show", "dev", "flannelsample0"]
            assert "UP" in node.exec(link).stdout
            status = json.loads(node.exec(["pyflannel", "status", "--json"]).stdout)
            assert status["problems"] == []
            assert status["network"]["backend"] == "sample"
            node.exec(["ip", "link", "del", "flannelsample0"])
            lab.wait(lambda: node.exec(link, check=False).returncode == 0, 10, what="its device")

            assert node.path("/var/lib/pyflannel/sample.json").exists()
            assert node.stop_daemon() == 0
            assert node.exec(link).returncode == 0, "it outlives the daemon"
            cleanup = ["pyflannel", "cleanup", "--json"]
            done = json.loads(node.exec(cleanup, env=environment).stdout)
            assert done["failed"] == {}
            assert "device flannelsample0" in done["found"]
            assert "file /var/lib/pyflannel/sample.json" in done["found"]
            assert node.exec(link, check=False).returncode != 0
            assert not node.path("/var/lib/pyflannel/sample.json").exists()
            routes = node.exec(["ip", "route"]).stdout.splitlines()
            assert [r for r in routes if r.startswith("10.9.") and "dev docker0" not in r] == []
