"""What systemd knows of the daemon's unit: its state, why it ended last, its environment files.

For messages: where no daemon answers, people want to know why.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.subnetenv import assignments
from pyflannel.kernel.files import FileText, FileUnreadable, read_text_if_exists

UNIT: Final = "pyflannel.service"
ENVIRONMENT_FILES: Final = ("/etc/default/pyflannel", "/etc/sysconfig/flanneld")
"""As in pyflannel.service; of two that set a variable the second counts."""
SYSTEMD: Final = Path("/run/systemd/system")
"""Exists where systemd is init (sd_booted(3))."""
PROPERTIES: Final = "LoadState,ActiveState,SubState,ExecMainStatus,StatusText"
CHILD_S: Final = 2.0
"""systemctl answers in milliseconds; a manager that hangs must not hang us."""
LINES: Final = "20"
"""Of the journal, in which the last words of the last run are looked for."""


def explain(state: Mapping[str, str], journal: str) -> str:
    """One sentence about the unit; empty if there is no such unit, or it runs.

    Args:
        state: `PROPERTIES` as `systemctl show` prints them.
        journal: the unit's last lines, bare.
    """
    active, sub = state.get("ActiveState", ""), state.get("SubState", "")
    if state.get("LoadState") != "loaded" or not active:
        return ""
    if active == "active":
        return ""
    words = f"{UNIT} is {active}" + (f" ({sub})" if sub not in {"", active} else "")
    code = state.get("ExecMainStatus", "0")
    if code not in {"", "0"}:
        words += f", its last run ended with {code}"
        spoken = [line for line in journal.splitlines() if line.startswith("pyflanneld: ")]
        words += f": {spoken[-1].removeprefix('pyflanneld: ')}" if spoken else ""
    elif active == "inactive":
        words += f"; systemctl start {UNIT.removesuffix('.service')}"
    elif state.get("StatusText"):
        words += f": {state['StatusText']}"
    return words


def describe() -> str:
    """`explain` for this machine; empty without systemd."""
    if not SYSTEMD.is_dir():
        return ""
    shown = _output(["systemctl", "show", UNIT, f"--property={PROPERTIES}"])
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    if state.get("ExecMainStatus", "0") == "0":
        return explain(state, "")
    return explain(state, _output(["journalctl", "-u", UNIT, "-n", LINES, "-o", "cat", "-q"]))


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=CHILD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


def environment() -> tuple[dict[str, str], str]:
    """The variables of the unit's environment files, as far as this user may read them.

    Returns:
        The variables, and words for messages: which files say where etcd is, or that one may not be
        read; empty if there is none.
    """
    env: dict[str, str] = {}
    used, hidden = [], []
    for path in ENVIRONMENT_FILES:
        content = read_text_if_exists(path)
        if isinstance(content, FileText):
            found = assignments(content.text)
            env |= found
            used += [path] if any("ETCD" in name or "OPTIONS" in name for name in found) else []
        elif isinstance(content, FileUnreadable):
            hidden.append(path)
    if used:
        return env, f"that is where {' and '.join(used)} has it"
    return env, f"{' and '.join(hidden)} may not be read by this user" if hidden else ""
