"""`install-conf SOURCE TARGET`: copies a file, whole or not at all, with the source's mode.

flannel's image has it in `/opt/bin`, and its manifest puts the configuration for CNI in place with
it before the daemon starts. Our own manifest does not: there the daemon writes it, last of all
(`--cni-conflist`).
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from pyflannel.core.errors import EXIT_OK, FlannelError
from pyflannel.foreign import MOST_IN_LOG, shown
from pyflannel.kernel.files import write_atomically

EXIT_FAILED = 1
"""As upstream's, for a mistyped command as well."""


def main() -> int:
    """Entry point of `/opt/bin/install-conf`; returns the exit code."""
    if len(sys.argv) != 3:
        print(f"usage: {sys.argv[0]} <src> <dest>", file=sys.stderr)
        return EXIT_FAILED
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    try:
        with source.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
        write_atomically(target, content, default_mode=mode, make_parents=False)
        target.chmod(mode)
    except (OSError, FlannelError) as error:
        print(f'error installing "{source}": {shown(error, MOST_IN_LOG)}', file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
