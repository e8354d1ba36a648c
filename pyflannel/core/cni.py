"""The configuration that makes a kubelet's runtime call flannel's CNI plugin. Pure.

A node is Ready to Kubernetes as soon as there is such a file. Written after `subnet.env`, which the
plugin reads, it says what it should: pods of this node can be given an address.
"""

from __future__ import annotations

import json
from typing import Final

CONFLIST: Final = b"""{
  "name": "cbr0",
  "cniVersion": "0.3.1",
  "plugins": [
    {
      "type": "flannel",
      "delegate": {
        "hairpinMode": true,
        "isDefaultGateway": true
      }
    },
    {
      "type": "portmap",
      "capabilities": {
        "portMappings": true
      }
    }
  ]
}
"""
"""What flannel's manifest has as `cni-conf.json`; names and values are flannel's interface."""
SOURCE: Final = "cni-conf.json"
"""Its key in the ConfigMap that holds `net-conf.json`, and so its name beside that."""


def conflist_problem(text: str) -> str:
    """Why a text is no configuration for CNI; empty if it looks like one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "it has no name"
    plugins = value.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        return "it has no plugins"
    if not all(isinstance(plugin, dict) and plugin.get("type") for plugin in plugins):
        return "one of its plugins has no type"
    return ""
