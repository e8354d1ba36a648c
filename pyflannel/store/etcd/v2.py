"""Whether etcd's former API, v2, holds a key: another store inside the same server. Pure.

flannel before 0.18 kept its data there, and how-tos still write the network config with etcdctl's
v2 commands; a daemon that reads v3 then waits for a key that its operator sees. Only asked is
whether the key is there. etcd serves the API by default up to 3.3, with `--enable-v2` in 3.4 and
3.5, and not at all since 3.6; where it does not, that cannot be told from outside.

Source: etcd `Documentation/v2/api.md`, `Documentation/v2/errorcode.md`.
"""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote

KEY_NOT_FOUND: Final = 100


def path(key: bytes) -> str:
    """The path of a key in the v2 API; not recursive, so that its answer is small."""
    return "/v2/keys/" + quote(key.lstrip(b"/"))


def holds(status: int, body: str) -> bool | None:
    """Whether the key is there; `None` if the server does not serve the API, or does not tell.

    Args:
        status: of the answer, as HTTP has it.
        body: of the answer.
    """
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    if status == 200 and isinstance(answer.get("node"), dict):
        return True
    return False if answer.get("errorCode") == KEY_NOT_FOUND else None
