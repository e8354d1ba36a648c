"""Where the API server is, and who we are to it."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import pytest

from pyflannel.core.errors import EXIT_CONFIG, StoreConfigError
from pyflannel.store.kubernetes.access import Access, find_access, from_kubeconfig
from pyflannel.store.kubernetes.credentials import Credentials

PATH = Path("/etc/kube/config")
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: here
contexts:
- name: there
  context: {cluster: c2, user: u2}
- name: here
  context:
    cluster: c1
    user: u1
clusters:
- name: c1
  cluster:
    server: https://kube.example:6443/
    certificate-authority: pki/ca.crt
    tls-server-name: kubernetes
    proxy-url: http://proxy.example:3128
users:
- name: u1
  user:
    tokenFile: token
    as: somebody
"""


def test_a_pod_has_all_it_needs(tmp_path):
    env = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    access = find_access("", "", env, tmp_path)
    assert access.server == "https://[fd00::1]:443"
    assert access.token_file == tmp_path / "token"
    assert access.ca is not None
    assert access.ca.path == tmp_path / "ca.crt"


def test_nothing_given_outside_of_a_pod_is_said_to_be_so():
    with pytest.raises(StoreConfigError, match="KUBERNETES_SERVICE_HOST") as caught:
        find_access("", "", {"KUBECONFIG": "/x", "KUBERNETES_MASTER": "http://x"})
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.parametrize("as_json", [False, True])
def test_a_kubeconfig_in_yaml_or_json(as_json):
    yaml = pytest.importorskip("yaml")
    text = json.dumps(yaml.safe_load(KUBECONFIG)) if as_json else KUBECONFIG
    access = from_kubeconfig(text, PATH)
    assert access.server == "https://kube.example:6443"
    assert access.ca is not None
    assert access.ca.path == Path("/etc/kube/pki/ca.crt")
    assert access.server_name == "kubernetes"
    assert access.proxy == "http://proxy.example:3128"
    assert access.token_file == Path("/etc/kube/token")
    assert access.headers == {"Impersonate-User": "somebody"}


def test_data_in_the_file_win_over_paths():
    data = base64.b64encode(b"PEM").decode()
    text = KUBECONFIG.replace(
        "certificate-authority: pki",
        f"certificate-authority-data: {data}\n    certificate-authority: pki",
    )
    access = from_kubeconfig(text, PATH)
    assert access.ca is not None
    assert (access.ca.path, access.ca.data) == (None, b"PEM")


@pytest.mark.parametrize(
    ("former", "now", "named"),
    [
        ("tokenFile: token", "exec: {command: aws}", "exec"),
        ("tokenFile: token", "auth-provider: {name: gcp}", "auth-provider"),
        ("current-context: here", "current-context: nowhere", "nowhere"),
        ("current-context: here", "kind: Config", "current-context"),
        ("cluster: c1", "cluster: c9", "c9"),
        ("user: u1", "user: u9", "u9"),
        ("server: https://kube.example:6443/", "server: ftp://x", "not the URL"),
        ("server: https://kube.example:6443/", "insecure-skip-tls-verify: true", "no server"),
        ("tokenFile: token", "token: [1]", "token"),
        ("certificate-authority: pki/ca.crt", "certificate-authority-data: '***'", "base64"),
        ("contexts:", "contexts: {", "not YAML"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(former, now, named):
    with pytest.raises(StoreConfigError, match=named) as caught:
        from_kubeconfig(KUBECONFIG.replace(former, now), PATH)
    assert str(PATH) in str(caught.value)


def test_a_yaml_error_shows_nothing_of_the_file():
    with pytest.raises(StoreConfigError) as caught:
        from_kubeconfig("users:\n- token: 'geheim\n  x: {", PATH)
    assert "geheim" not in str(caught.value)


def test_without_pyyaml_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(StoreConfigError, match="PyYAML"):
        from_kubeconfig(KUBECONFIG, PATH)


def test_the_url_replaces_the_server_of_the_file_alone(tmp_path):
    path = tmp_path / "config"
    path.write_text(KUBECONFIG)
    access = find_access(str(path), "https://other:1", {})
    assert access.server == "https://other:1"
    assert access.token_file == tmp_path / "token"
    with pytest.raises(StoreConfigError, match="no such file"):
        find_access(str(tmp_path / "none"), "", {})


def test_a_url_alone_is_anonymous():
    assert find_access("", "http://127.0.0.1:8080", {}) == Access(server="http://127.0.0.1:8080")


class TestCredentials:
    def test_a_token_is_read_for_each_request(self, tmp_path):
        token = tmp_path / "token"
        token.write_text("one\n")
        ours = Credentials(Access(server="https://x", token_file=token))
        assert ours.headers() == {"Authorization": "Bearer one"}
        fresh = tmp_path / "fresh"
        fresh.write_text("two")
        fresh.rename(token)
        assert ours.headers() == {"Authorization": "Bearer two"}

    def test_nothing_is_sent_in_clear(self, tmp_path):
        token = tmp_path / "token"
        token.write_text("one\n")
        access = Access(server="http://x", token_file=token, username="u", headers={"A": "b"})
        assert Credentials(access).headers() == {}

    @pytest.mark.parametrize("text", ["", "\n", "a\x00b", "zwei\nZeilen", "schlüssel"])
    def test_what_is_no_token_is_refused_without_showing_it(self, tmp_path, text):
        token = tmp_path / "token"
        token.write_text(text)
        with pytest.raises(StoreConfigError) as caught:
            Credentials(Access(server="https://x", token_file=token)).headers()
        assert text.strip() == "" or text not in str(caught.value)

    def test_user_and_password(self):
        ours = Credentials(Access(server="https://x", username="u", password="p"))
        assert ours.headers() == {"Authorization": "Basic dTpw"}

    def test_secrets_are_not_shown(self):
        access = Access(server="https://x", token="geheim", password="geheim")
        assert "geheim" not in repr(access)
