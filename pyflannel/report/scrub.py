"""Takes secrets out of text that leaves the machine. Pure.

Removed are values under names that say what they are (a password, a token, a key), the user part of
URLs, private keys, and headers of authentication. Addresses, names and MACs stay: without them
a fault in a network is not found.
"""

from __future__ import annotations

import re
from typing import Final

HIDDEN: Final = "***"
_NAME: Final = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|psk|api[_-]?key|private[_-]?key)(?![_-]?file)"
    r"(?:[_-]?\d+)?"
)
"""What the name of a secret looks like. `password-file` names a path, which is none."""
_VALUE: Final = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s,;'"]+)"""
_RULES: Final = (
    (
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*KEY-----|\Z)", re.DOTALL
        ),
        HIDDEN,
    ),
    # The user part of a URL.
    (re.compile(r"(?<=://)[^/\s@\"']+(?=@)"), HIDDEN),
    (re.compile(r"(?i)\b((?:authorization|cookie)\s*[:=]\s*)[^\r\n\"']+"), rf"\1{HIDDEN}"),
    # A member of JSON, also of JSON inside a string.
    (re.compile(rf'(?i)(\\*"{_NAME}\\*"\s*:\s*\\*")[^"\\]*'), rf"\1{HIDDEN}"),
    # NAME=value, name: value.
    (re.compile(rf"(?i)(?<![\w.-])(-{{0,2}}{_NAME}\s?[=:]\s?){_VALUE}"), rf"\1{HIDDEN}"),
    # --name value.
    (re.compile(rf"(?i)(?<![\w.-])(--?{_NAME}[ \t]+)(?!-){_VALUE}"), rf"\1{HIDDEN}"),
)


def scrubbed(text: str) -> str:
    """The text with every secret in it replaced by `***`."""
    for rule, by in _RULES:
        text = rule.sub(by, text)
    return text
