"""The options that are about Kubernetes: flags, and the variables that a pod is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pyflannel.core.errors import ConfigError
from pyflannel.core.kube.annotations import DEFAULT_PREFIX, normal_prefix
from pyflannel.gocompat.flags import Flag, Flags, Kind, Mode
from pyflannel.records import dataclass

SWITCH: Final = "kube-subnet-mgr"


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesOptions:
    """How to reach the API server, and which of its nodes we are."""

    api_url: str = ""
    """Empty for what the kubeconfig, or the pod, says."""
    kubeconfig_file: str = ""
    annotation_prefix: str = f"{DEFAULT_PREFIX}/"
    """As `normal_prefix` gives it."""
    net_config_path: str = "/etc/kube-flannel/net-conf.json"
    set_node_network_unavailable: bool = True
    node_name: str = ""
    """`NODE_NAME`; empty to ask for the pod."""
    pod_name: str = ""
    """`POD_NAME`."""
    pod_namespace: str = ""
    """`POD_NAMESPACE`."""
    cni_conflist: str = ""
    """Where to write the configuration for CNI; empty for nowhere."""


_DEFAULTS: Final = KubernetesOptions()

KUBE_FLAGS: Final = (
    Flag(
        name=SWITCH,
        kind=Kind.BOOL,
        default=False,
        help="take subnets from the Kubernetes API instead of etcd",
        mode=Mode.KUBE,
    ),
    Flag(
        name="kube-api-url",
        kind=Kind.STRING,
        default=_DEFAULTS.api_url,
        help="URL of the Kubernetes API server; alone without credentials, with -kubeconfig-file "
        "in the place of the server there",
        mode=Mode.KUBE,
        urls=True,
    ),
    Flag(
        name="kube-annotation-prefix",
        kind=Kind.STRING,
        default=DEFAULT_PREFIX,
        help="prefix of the annotations on Kubernetes nodes",
        mode=Mode.KUBE,
    ),
    Flag(
        name="kubeconfig-file",
        kind=Kind.STRING,
        default=_DEFAULTS.kubeconfig_file,
        help="how to reach the Kubernetes API server; without it the pod's service account",
        mode=Mode.KUBE,
    ),
    Flag(
        name="net-config-path",
        kind=Kind.STRING,
        default=_DEFAULTS.net_config_path,
        help="network config file, for Kubernetes",
        mode=Mode.KUBE,
    ),
    Flag(
        name="set-node-network-unavailable",
        kind=Kind.BOOL,
        default=_DEFAULTS.set_node_network_unavailable,
        help="clear the NetworkUnavailable condition of the Kubernetes node when ready",
        mode=Mode.KUBE,
    ),
    Flag(
        name="cni-conflist",
        kind=Kind.STRING,
        default=_DEFAULTS.cni_conflist,
        help="file to which the configuration for CNI is written after subnet.env, so that the "
        "kubelet calls the node ready when it is: cni-conf.json beside -net-config-path, or "
        "flannel's usual one",
        mode=Mode.KUBE,
        since="pyflannel",
    ),
)
"""The flags that have an effect with Kubernetes alone."""


def kubernetes_options(flags: Flags, env: Mapping[str, str]) -> KubernetesOptions:
    """The options, from flags that `kubernetes_errors` has found right."""
    if not flags.switch(SWITCH):
        return KubernetesOptions()
    return KubernetesOptions(
        api_url=flags.text("kube-api-url"),
        kubeconfig_file=flags.text("kubeconfig-file"),
        annotation_prefix=normal_prefix(flags.text("kube-annotation-prefix")),
        net_config_path=flags.text("net-config-path"),
        set_node_network_unavailable=flags.switch("set-node-network-unavailable"),
        cni_conflist=flags.text("cni-conflist"),
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
            if flag.name in flags.given and flag.name != SWITCH:
                yield f"-{flag.name} has no effect without -{SWITCH}"
        return
    if env.get("CONT_WHEN_CACHE_NOT_READY"):
        yield "CONT_WHEN_CACHE_NOT_READY has no effect: a list of nodes is waited for without end"
