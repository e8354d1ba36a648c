"""Gathers what `diagnose.kubernetes` judges. Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.diagnose.kubernetes import PLUGINS, CniFile, KubeFacts
from pyflannel.kernel.files import FileText, read_text_if_exists
from pyflannel.kernel.lock import processes_here
from pyflannel.report.model import NodeReport
from pyflannel.report.problems import KUBERNETES

CONFIGURATIONS: Final = "/etc/cni/net.d"
PROGRAMS: Final = "/opt/cni/bin"
"""Defaults of containerd and CRI-O."""
ENDINGS: Final = frozenset({".conf", ".conflist", ".json"})
"""Names that the runtimes take for a configuration (libcni, `ConfFiles`)."""


def gather_kube(
    report: NodeReport | None,
    *,
    environment: Mapping[str, str],
    programs: Path = Path(PROGRAMS),
) -> KubeFacts | None:
    """The facts about Kubernetes on this node; `None` if the daemon has another store.

    Args:
        report: the daemon's, which may write the configuration elsewhere.
        environment: a pod's tells where its API server is.
        programs: where CNI's are.
    """
    if report is None or report.store is None or report.store.kind != KUBERNETES:
        return None
    written = (Path(path) for path in report.files.states if path.endswith(".conflist"))
    directory = next((path.parent for path in written), Path(CONFIGURATIONS))
    return KubeFacts(
        in_pod="KUBERNETES_SERVICE_HOST" in environment,
        directory=str(directory),
        files=_files(directory),
        plugins={name: (programs / name).exists() for name in PLUGINS} if programs.is_dir() else {},
        plugin_directory=str(programs),
        kubelets=tuple(processes_here("kubelet")),
        proxies=tuple(processes_here("kube-proxy")),
    )


def _files(directory: Path) -> tuple[CniFile, ...] | None:
    try:
        paths = sorted(directory.iterdir())
    except OSError:
        return None
    return tuple(_file(path) for path in paths if path.suffix in ENDINGS)


def _file(path: Path) -> CniFile:
    found = read_text_if_exists(path)
    try:
        value = json.loads(found.text) if isinstance(found, FileText) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return CniFile(name=path.name)
    # A `.conf` is one plugin, a `.conflist` has a list of them.
    listed = value.get("plugins", [value])
    plugins = (
        [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    )
    types = tuple(str(each["type"]) for each in plugins if each.get("type"))
    manager = plugins[0].get("ipam") if plugins else None
    return CniFile(
        name=path.name,
        plugins=types,
        address_manager=str(manager.get("type", "")) if isinstance(manager, dict) else "",
    )
