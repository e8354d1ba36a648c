"""How to reach the API server: from within a pod, or by a kubeconfig. Pure but for reading files.

    neither flag given       the service account of the pod
    --kube-api-url alone     that server, without credentials
    --kubeconfig-file        what its current context names; --kube-api-url replaces the server

`KUBECONFIG`, `~/.kube/config` and `KUBERNETES_MASTER` are ignored, as in upstream.

All of a kubeconfig is used except `exec` and `auth-provider`, which would run programs or speak
other protocols: these are refused by name. A kubeconfig is YAML, and JSON is YAML too; PyYAML is
needed only for one that is not JSON.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pyflannel.core.errors import StoreConfigError
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists
from pyflannel.records import dataclass

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet mounts `token` and `ca.crt`."""

Json = Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A certificate or a key: a file, which is read again when it changes, or its content."""

    path: Path | None = None
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A server and our credentials for it."""

    server: str
    """URL without a slash at its end."""
    ca: Material | None = None
    """`None` for the system's certificate authorities."""
    insecure: bool = False
    server_name: str = ""
    """The name in the server's certificate, if it is not that of the URL."""
    proxy: str = ""
    certificate: Material | None = None
    key: Material | None = None
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    """Read for each request. Takes precedence over `token`."""
    username: str = ""
    password: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of an impersonation."""

    @property
    def is_encrypted(self) -> bool:
        """Whether credentials may be sent."""
        return self.server.startswith("https:")


def find_access(
    kubeconfig: str, url: str, env: Mapping[str, str], account: Path = SERVICE_ACCOUNT
) -> Access:
    """How to reach the server, from the two flags and the environment.

    Raises:
        StoreConfigError: something is missing or wrong.
    """
    if kubeconfig:
        path = Path(kubeconfig)
        found = read_text_if_exists(path)
        if not isinstance(found, FileText):
            reason = found.reason if isinstance(found, FileUnreadable) else "there is no such file"
            raise StoreConfigError(f"--kubeconfig-file {kubeconfig}: {reason}")
        access = from_kubeconfig(found.text, path)
        return replace(access, server=_server(url, "--kube-api-url")) if url else access
    if url:
        return Access(server=_server(url, "--kube-api-url"))
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise StoreConfigError(
            "--kube-subnet-mgr: neither --kubeconfig-file nor --kube-api-url is given, and this is"
            " no pod: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set"
        )
    if ":" in host:
        host = f"[{host}]"
    return Access(
        server=f"https://{host}:{port}",
        ca=Material(path=account / "ca.crt"),
        token_file=account / "token",
    )


def from_kubeconfig(text: str, path: Path) -> Access:
    """How to reach the server, from the current context of a kubeconfig.

    Args:
        text: its content.
        path: of the file; relative paths in it start at its directory.

    Raises:
        StoreConfigError: it cannot be read, or asks for something unsupported.
    """
    config = _parse(text, path)
    context_name = _text(config, "current-context", path)
    if not context_name:
        raise StoreConfigError(f"{path}: current-context is not set")
    context = _named(config, "contexts", "context", context_name, path)
    cluster = _named(config, "clusters", "cluster", _text(context, "cluster", path), path)
    user_name = _text(context, "user", path)
    user = _named(config, "users", "user", user_name, path) if user_name else {}
    for key in ("exec", "auth-provider"):
        if user.get(key):
            raise StoreConfigError(
                f"{path}: user {user_name} has {key}, which pyflannel does not do; give it a token,"
                " a tokenFile or a client certificate"
            )
    server = _text(cluster, "server", path)
    if not server:
        raise StoreConfigError(f"{path}: the cluster of context {context_name} has no server")
    token_file = _text(user, "tokenFile", path)
    return Access(
        server=_server(server, str(path)),
        ca=_material(cluster, "certificate-authority", path),
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=_text(cluster, "tls-server-name", path),
        proxy=_text(cluster, "proxy-url", path),
        certificate=_material(user, "client-certificate", path),
        key=_material(user, "client-key", path),
        token=_text(user, "token", path),
        token_file=path.parent / token_file if token_file else None,
        username=_text(user, "username", path),
        password=_text(user, "password", path),
        headers=_impersonation(user, path),
    )


def _parse(text: str, path: Path) -> Json:
    value: object
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _parse_yaml(text, path)
    if not isinstance(value, dict):
        raise StoreConfigError(f"{path}: not a kubeconfig: no mapping")
    return value


def _parse_yaml(text: str, path: Path) -> object:
    try:
        import yaml
    except ImportError:
        raise StoreConfigError(
            f"{path} is not JSON, and PyYAML, which reads YAML, is not installed: install"
            " pyflannel[kubernetes], or write the file as JSON (kubectl config view --raw -o json)"
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", "") or "it cannot be parsed"
        # Without the error's own text: it shows lines of the file, which hold secrets.
        raise StoreConfigError(f"{path}: not YAML: {problem}{where}") from None
    except RecursionError:
        raise StoreConfigError(f"{path}: nested too deeply") from None


def _named(config: Json, key: str, inner: str, name: str, path: Path) -> Json:
    entries = config.get(key)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            value = entry.get(inner)
            return value if isinstance(value, dict) else {}
    raise StoreConfigError(f"{path}: {key} has no entry with the name {name!r}")


def _text(values: Json, key: str, path: Path) -> str:
    value = values.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise StoreConfigError(f"{path}: {key} is not a text")
    return value


def _material(values: Json, key: str, path: Path) -> Material | None:
    """A file or its content. The content takes precedence, as in kubectl."""
    data = _text(values, f"{key}-data", path)
    if data:
        try:
            return Material(data=base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError):
            raise StoreConfigError(f"{path}: {key}-data is not base64") from None
    name = _text(values, key, path)
    return Material(path=path.parent / name) if name else None


def _impersonation(user: Json, path: Path) -> dict[str, str]:
    headers = {}
    if name := _text(user, "as", path):
        headers["Impersonate-User"] = name
    if uid := _text(user, "as-uid", path):
        headers["Impersonate-Uid"] = uid
    groups = user.get("as-groups")
    if isinstance(groups, list) and groups:
        if len(groups) > 1:
            raise StoreConfigError(f"{path}: as-groups has more than one group, give one")
        headers["Impersonate-Group"] = str(groups[0])
    return headers


def _server(url: str, where: str) -> str:
    full = url if "://" in url else f"https://{url}"
    try:
        parts = urlsplit(full)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
        _ = parts.port
    except ValueError:
        good = False
    if not good:
        raise StoreConfigError(f"{where}: {url!r} is not the URL of a server")
    return full.rstrip("/")
