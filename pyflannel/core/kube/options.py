"""The options that are about Kubernetes: flags, and the variables that a pod is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pyflannel.core.errors import ConfigError
from pyflannel.core.flagfields import flags_of, option, read
from pyflannel.core.kube.annotations import DEFAULT_PREFIX, normal_prefix
from pyflannel.gocompat.flags import Flags, Mode
from pyflannel.records import dataclass

SWITCH: Final = "kube-subnet-mgr"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """How to reach the API server, and which of its nodes we are."""

    api_url: str = option(
        "",
        "URL of the Kubernetes API server; alone without credentials, with -kubeconfig-file "
        "in the place of the server there",
        name="kube-api-url",
        mode=Mode.KUBE,
        urls=True,
    )
    """Empty for what the kubeconfig, or the pod, says."""
    annotation_prefix: str = option(
        DEFAULT_PREFIX,
        "prefix of the annotations on Kubernetes nodes",
        name="kube-annotation-prefix",
        mode=Mode.KUBE,
    )
    """As given; see `key_prefix`."""
    kubeconfig_file: str = option(
        "",
        "how to reach the Kubernetes API server; without it the pod's service account",
        mode=Mode.KUBE,
    )
    net_config_path: str = option(
        "/etc/kube-flannel/net-conf.json", "network config file, for Kubernetes", mode=Mode.KUBE
    )
    set_node_network_unavailable: bool = option(
        True,
        "clear the NetworkUnavailable condition of the Kubernetes node when ready",
        mode=Mode.KUBE,
    )
    cni_conflist: str = option(
        "",
        "file to which the configuration for CNI is written after subnet.env, so that the "
        "kubelet calls the node ready when it is: cni-conf.json beside -net-config-path, or "
        "flannel's usual one",
        mode=Mode.KUBE,
        ours=True,
    )
    """Where to write the configuration for CNI; empty for nowhere."""
    node_name: str = ""
    """`NODE_NAME`; empty to ask for the pod."""
    pod_name: str = ""
    """`POD_NAME`."""
    pod_namespace: str = ""
    """`POD_NAMESPACE`."""

    @property
    def key_prefix(self) -> str:
        """What the keys of the annotations begin with, up to their last part."""
        return normal_prefix(self.annotation_prefix)


KUBE_FLAGS: Final = flags_of(KubernetesOptions)
"""The flags that have an effect with Kubernetes alone."""


def kubernetes_options(flags: Flags, env: Mapping[str, str]) -> KubernetesOptions:
    """The options, from flags that `kubernetes_errors` has found right."""
    if not flags.switch(SWITCH):
        return KubernetesOptions()
    return KubernetesOptions(
        **read(KubernetesOptions, flags),
        node_name=flags.text("node-name") or env.get("NODE_NAME", ""),
        pod_name=env.get("POD_NAME", ""),
        pod_namespace=env.get("POD_NAMESPACE", ""),
    )


def kubernetes_errors(flags: Flags, env: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with them."""
    if not flags.switch(SWITCH):
        return
    if flags.text("static-network"):
        yield f"-{SWITCH} and -static-network: there is one store at a time; remove one of them"
    try:
        normal_prefix(flags.text("kube-annotation-prefix"))
    except ConfigError as error:
        yield str(error)
    if not flags.text("net-config-path"):
        yield "-net-config-path is empty, expected a path"
    named = flags.text("node-name") or env.get("NODE_NAME")
    if not named and not (env.get("POD_NAME") and env.get("POD_NAMESPACE")):
        yield (
            f"-{SWITCH}: env variables POD_NAME and POD_NAMESPACE must be set, or NODE_NAME, or"
            " -node-name"
        )


def kubernetes_warnings(flags: Flags, env: Mapping[str, str]) -> Iterator[str]:
    """What is given and has no effect."""
    if not flags.switch(SWITCH):
        for flag in KUBE_FLAGS:
            if flag.name in flags.given:
                yield f"-{flag.name} has no effect without -{SWITCH}"
        return
    if env.get("CONT_WHEN_CACHE_NOT_READY"):
        yield "CONT_WHEN_CACHE_NOT_READY has no effect: a list of nodes is waited for without end"
