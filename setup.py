"""Builds the optional C extension and lists the shared files; all else is in pyproject.toml.

Without a compiler the package installs without it, and the python data path does the work.
`PYFLANNEL_SKIP_NATIVE=1` does not even try; `PYFLANNEL_REQUIRE_NATIVE=1` fails instead.
In a checkout: `python setup.py build_ext --inplace`.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

# Modes in a wheel are those of the files that are built here: not the builder's business.
os.umask(0o022)

NATIVE = Path("pyflannel/datapath/native")


def flag(name: str) -> bool:
    """Whether an environment variable says yes."""
    return os.environ.get(name, "") not in ("", "0")


def extensions() -> list[Extension]:
    """The extension, or nothing where it is not wanted or makes no sense."""
    skip, require = flag("PYFLANNEL_SKIP_NATIVE"), flag("PYFLANNEL_REQUIRE_NATIVE")
    if skip and require:
        raise SystemExit("PYFLANNEL_SKIP_NATIVE and PYFLANNEL_REQUIRE_NATIVE contradict each other")
    if skip or (not require and not sys.platform.startswith("linux")):
        return []
    return [
        Extension(
            "pyflannel.datapath.native._native",
            sources=sorted(path.as_posix() for path in NATIVE.glob("*.c")),
            depends=sorted(path.as_posix() for path in NATIVE.glob("*.h")),
            # An implicit declaration compiles, truncates the pointer it returns and crashes.
            extra_compile_args=[
                "-std=gnu11",
                "-O2",
                "-pthread",
                "-Wall",
                "-Wextra",
                "-Werror=implicit-function-declaration",
                "-fvisibility=hidden",
                # The same bytes wherever it is built.
                f"-ffile-prefix-map={Path.cwd()}=.",
            ],
            extra_link_args=["-pthread"],
            py_limited_api=True,
            optional=not require,
        )
    ]


def shared() -> list[tuple[str, list[str]]]:
    """Units and sample configs, for below `share/pyflannel` of wherever this is installed."""
    found: dict[str, list[str]] = {}
    for top in ("systemd", "config"):
        for path in sorted(Path(top).rglob("*")):
            if path.is_file():
                where = f"share/pyflannel/{path.parent.as_posix()}"
                found.setdefault(where, []).append(path.as_posix())
    return list(found.items())


setup(
    ext_modules=extensions(),
    data_files=shared(),
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
