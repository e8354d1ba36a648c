"""`kubernetes/pyflannel.yaml`: what stands in it is what the daemon takes, asks for and needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pyflannel.backend.kinds import KINDS
from pyflannel.core.cni import CONFLIST
from pyflannel.core.commandline import RunDaemon, parse_daemon
from pyflannel.core.configparse import parse_network_config
from pyflannel.store.kubernetes.access import SERVICE_ACCOUNT
from tests.support.kubeapi import ROLE

MANIFEST = Path(__file__).parents[2] / "kubernetes" / "pyflannel.yaml"


@pytest.fixture(scope="module")
def objects() -> dict:
    found = list(yaml.safe_load_all(MANIFEST.read_text()))
    return {made["kind"]: made for made in found}


@pytest.fixture(scope="module")
def pod(objects) -> dict:
    return objects["DaemonSet"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def options(pod):
    (container,) = pod["containers"]
    env = {entry["name"]: "n1" for entry in container["env"]}
    parsed = parse_daemon([container["command"][0], *container["args"]], env)
    assert isinstance(parsed, RunDaemon)
    assert parsed.warnings == ()
    return parsed.options


def test_the_role_is_the_least_that_the_daemon_asks_for(objects):
    rules = objects["ClusterRole"]["rules"]
    allowed = {(v, r) for rule in rules for r in rule["resources"] for v in rule["verbs"]}
    # Its name comes from NODE_NAME, so it need not look at its pod.
    assert allowed == ROLE - {("get", "pods")}
    (subject,) = objects["ClusterRoleBinding"]["subjects"]
    assert subject["name"] == objects["ServiceAccount"]["metadata"]["name"]
    assert subject["namespace"] == objects["Namespace"]["metadata"]["name"]


def test_the_daemon_takes_its_arguments_and_knows_its_node(options):
    assert options.kube_subnet_mgr
    assert options.kube.node_name == "n1"
    assert options.docker_opts_file == ""


def test_the_configs_are_right_and_the_conflist_is_flannels(objects):
    data = objects["ConfigMap"]["data"]
    parsed = parse_network_config(data["net-conf.json"], KINDS, allots=False)
    assert parsed.config is not None
    assert parsed.problems == ()
    assert json.loads(data["cni-conf.json"]) == json.loads(CONFLIST)


def test_all_that_the_daemon_writes_is_mounted_and_the_rest_is_read_only(pod, options):
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    for path in (
        options.subnet_file,
        options.status_socket,
        options.state_dir,
        options.kube.cni_conflist,
        options.kube.net_config_path,
        "/run/xtables.lock",
    ):
        assert any(Path(path).is_relative_to(mount) for mount in mounts), path
    assert not any(Path(mount).is_relative_to(SERVICE_ACCOUNT) for mount in mounts)
    volumes = {volume["name"] for volume in pod["volumes"]}
    used = {
        mount["name"]
        for c in (*pod["containers"], *pod["initContainers"])
        for mount in c["volumeMounts"]
    }
    assert volumes == used


def test_rights_are_the_least_and_nodes_are_replaced_one_at_a_time(objects, pod):
    (container,) = pod["containers"]
    rights = container["securityContext"]
    assert rights["privileged"] is False
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert objects["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 1
    assert pod["priorityClassName"] == "system-node-critical"
    assert {t["effect"] for t in pod["tolerations"]} == {"NoSchedule", "NoExecute"}


def test_the_probes_ask_what_the_health_server_answers(pod, options):
    (container,) = pod["containers"]
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")):
        asked = container[probe]["httpGet"]
        assert (asked["path"], asked["port"]) == (path, options.healthz_port)


def test_images_name_no_registry(pod):
    for container in (*pod["containers"], *pod["initContainers"]):
        assert "/" not in container["image"]
        assert ":" in container["image"], "never latest"
