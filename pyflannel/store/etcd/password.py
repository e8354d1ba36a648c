"""Where the password of the etcd user comes from: given, a file, or a credential of systemd's.

A command line can be read by every user of the machine, and an environment is inherited by every
child, so the file is the way to give it. It is read again for each authentication: a password that
is exchanged on disk is used without a restart.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyflannel.core.errors import StoreConfigError
from pyflannel.core.options import EtcdOptions
from pyflannel.kernel.files import FileMissing, FileText, read_text_if_exists
from pyflannel.logs import get_logger

log = get_logger(__name__)

CREDENTIAL: Final = "etcd-password"
"""Name of the credential: `LoadCredential=etcd-password:/path` (systemd.exec(5))."""
MOST_CHARACTERS: Final = 4096
"""A longer one is another file, named by mistake."""


class Password:
    """The password of the etcd user. True if there is one.

    Args:
        options: those of etcd.
        environ: where systemd names the directory of our credentials.

    Raises:
        StoreConfigError: two passwords are given, or the file holds none.
    """

    def __init__(self, options: EtcdOptions, environ: Mapping[str, str] = os.environ) -> None:
        self._text = options.password
        self._file: Path | None = None
        self._failed = ""
        if options.password_file:
            if options.password:
                raise StoreConfigError(
                    "--etcd-password and --etcd-password-file are both given; remove the first"
                )
            if not options.username:
                raise StoreConfigError("--etcd-password-file is given without --etcd-username")
            self._file = Path(options.password_file)
        elif options.username and not options.password:
            directory = environ.get("CREDENTIALS_DIRECTORY", "")
            credential = Path(directory, CREDENTIAL)
            if directory and credential.exists():
                self._file = credential
        if self._file is not None:
            self._text = _read(self._file)
            _warn_about_readers(self._file)

    def __bool__(self) -> bool:
        return bool(self._text)

    def read(self) -> str:
        """The password as it is now; the last one that could be read if the file is unreadable."""
        if self._file is not None:
            try:
                self._text, self._failed = _read(self._file), ""
            except StoreConfigError as error:
                if str(error) != self._failed:
                    log.warning(f"{error}; the last password is used")
                self._failed = str(error)
        return self._text


def _read(path: Path) -> str:
    """The first line; nothing else may stand in the file.

    Raises:
        StoreConfigError: it cannot be read, or does not hold a password.
    """
    match read_text_if_exists(path):
        case FileText(text=text):
            password = text.removesuffix("\n").removesuffix("\r")
        case FileMissing():
            raise StoreConfigError(f"--etcd-password-file {path}: there is no such file")
        case unreadable:
            raise StoreConfigError(f"--etcd-password-file: {unreadable.reason}")
    if not password:
        raise StoreConfigError(f"--etcd-password-file {path}: it is empty")
    if "\n" in password or len(password) > MOST_CHARACTERS:
        raise StoreConfigError(f"--etcd-password-file {path}: expected a password in one line")
    return password


def _warn_about_readers(path: Path) -> None:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        log.warning(
            "others may read the file with etcd's password", path=path, remedy=f"chmod 0600 {path}"
        )
