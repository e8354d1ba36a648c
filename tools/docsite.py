"""Builds the documents as a site into build/site and checks it: python tools/docsite.py.

The generator has an environment of its own, below PYFLANNEL_CACHE, made once for what is in
`tools/docs.lock`: neither the demo nor the tests need it. mkdocs itself ends at links to pages,
files and anchors that are not there. Here what it wrote is looked through once more: every target
inside exists, and nothing is loaded from another host.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).parents[1]
LOCK: Final = ROOT / "tools" / "docs.lock"
SITE: Final = ROOT / "build" / "site"
LOADED: Final = frozenset({"script", "link", "img", "iframe", "source", "video", "audio", "object"})
"""Elements whose targets a browser fetches by itself; an `a` waits for a click."""
_TARGETS: Final = frozenset({"src", "href", "data", "srcset"})
_NOT_LOADED: Final = frozenset({"canonical"})


class _Page(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[tuple[str, str]] = []
        """Element and target."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called by the parser."""
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        if found.get("rel") in _NOT_LOADED:
            return
        self.targets += [(tag, value) for name, value in attrs if name in _TARGETS and value]


def read(path: Path) -> _Page:
    """A page."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def problems(site: Path) -> Iterator[str]:
    """Dead links inside of a site, and what it loads from outside."""
    pages = {path: read(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site)
        if where.name == "404.html":
            continue  # its links are absolute: it may be shown anywhere
        for tag, target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                if tag in LOADED and url.scheme != "data":
                    yield f"{where}: loads {target} from another host"
                continue
            there = (path.parent / unquote(url.path)).resolve() if url.path else path
            if there.is_dir():
                there /= "index.html"
            if not there.is_file():
                yield f"{where}: {target} is not there"
            elif url.fragment and there in pages and url.fragment not in pages[there].anchors:
                yield f"{where}: {target} has no such anchor"
    for path in sorted(site.rglob("*.css")):
        text = path.read_text(encoding="utf-8")
        if "url(http" in text or "url(//" in text or "@import" in text:
            yield f"{path.relative_to(site)}: loads something from another host"


def environment(lock: Path) -> Path:
    """The generator's interpreter, with what a lock file names."""
    named = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    place = Path(os.environ.get("PYFLANNEL_CACHE") or f"{base}/pyflannel") / f"docs-{named}"
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        print(f"==> making {place} for the generator", flush=True)
        venv.create(place, with_pip=True, clear=True)
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
            "--quiet",
        ]
        subprocess.run([*pip, "--require-hashes", "--requirement", lock], check=True)
        ready.touch()
    return python


def main() -> int:
    """Builds and checks; returns the exit code."""
    command: list[str | Path] = [environment(LOCK), "-m", "mkdocs", "build", "--clean"]
    built = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if built.returncode != 0:
        print(built.stderr, end="", file=sys.stderr)
        return 1
    for problem in (found := list(problems(SITE))):
        print(problem, file=sys.stderr)
    if found:
        return 1
    pages = len(list(SITE.rglob("*.html")))
    shown = SITE.relative_to(ROOT)
    print(f"{pages} pages in {shown}; to read them: python3 -m http.server --directory {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
