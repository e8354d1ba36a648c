"""The keys of the network config for `--help`, and so for the man pages."""

from __future__ import annotations

import json

from pyflannel.core.configkeys import KEYS
from pyflannel.core.kind import Kinds, every


def keys_text(kinds: Kinds) -> str:
    """Every key: those of the config in two lines each, then the backends."""
    lines = ["keys of the network config:"]
    for each in KEYS:
        lines.append(f"  {each.key:<14} {each.effect}")
        lines.append(f"    {each.wanted}; default: {each.default}")
    return "\n".join(lines) + "\n\n" + help_text(kinds)


def help_text(kinds: Kinds) -> str:
    """Each kind in a line, each of its settings in two; as the kinds declare them."""
    lines = ["backends (Type, inside Backend) and their other keys there:"]
    for kind in every(kinds):
        lines.append(f"  {kind.name:<10} {kind.summary}")
        for setting in kind.settings.declared().values():
            lines.append(f"    {setting.key}: {setting.effect}")
            lines.append(f"      {setting.wanted}; default {json.dumps(setting.default)}")
    return "\n".join(lines)
