"""What to type for `pyflannel` if it is not installed in a directory of PATH."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def program(
    executable: str = sys.executable, *, path: str | None = None, directory: Path | None = None
) -> str:
    """The shortest command that starts this `pyflannel`, to be pasted into a shell.

    Args:
        executable: the Python that runs, beside which the command was installed.
        path: directories of commands; `PATH` if not given.
        directory: the shell's working directory; ours if not given.
    """
    beside = Path(executable).parent / "pyflannel"
    found = shutil.which("pyflannel", path=os.environ.get("PATH") if path is None else path)
    if not os.access(beside, os.X_OK) or (found and Path(found).resolve() == beside.resolve()):
        return "pyflannel"
    here = Path.cwd() if directory is None else directory
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))
