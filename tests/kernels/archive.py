"""Which kernels Debian has, and their packages, through this machine's own apt.

apt runs with sources, lists and state of its own, below the cache folder, so nothing of the
machine's changes. Its settings (proxies, certificates, credentials) still hold, and the mirror is
the one that the machine uses for itself (`tools/debian-mirror.sh`): every release of Debian lies
beside the machine's own in the same archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kernels.cache import KernelsError, Mirrors, command

RELEASES: Final = ("bullseye", "bookworm", "trixie")
"""Debian's releases whose kernels we look at: 5.10, 6.1 and 6.12 are theirs."""

BACKPORTS: Final = "trixie-backports"
"""Has the kernels of the release to come."""

KEYS: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

NEWEST: Final = "newest"
"""Stands for the newest series that the archive has."""

_SERIES: Final = re.compile(r"(\d+\.\d+)(-cloud)?")
_IMAGE: Final = re.compile(r"linux-image-(\d+\.\d+)\.\d+\S*?(?P<cloud>-cloud)?-amd64")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be had."""

    series: str
    """What it is called by: `6.1`, or `6.1-cloud` for the kernel made for virtual machines."""

    release: str
    """What `uname -r` says: `6.1.0-49-amd64`."""

    version: str
    """The package's: `6.1.192-1`. Only this tells the stable update."""

    @property
    def upstream(self) -> str:
        """The version without the packaging: `6.1.192`."""
        return re.split(r"[-~+]", self.version, maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class Stanza:
    """What we read of a package's entry in the archive."""

    package: str
    version: str
    depends: tuple[str, ...]


def sources(mirrors: Mirrors) -> str:
    """The lines of a sources.list with all releases and, where there is one, their updates."""
    suites = [(mirrors.main, name) for name in (*RELEASES, BACKPORTS)]
    if mirrors.security:
        suites += [(mirrors.security, f"{name}-security") for name in RELEASES]
    return "".join(f"deb [signed-by={KEYS}] {uri} {suite} main\n" for uri, suite in suites)


def parse_stanzas(text: str) -> list[Stanza]:
    """Reads what `apt-cache show` prints."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != " "
        )
        if "Package" in fields:
            depends = [
                re.split(r"[ :(|]", one.strip(), maxsplit=1)[0]
                for one in ", ".join(
                    fields.get(name, "") for name in ("Pre-Depends", "Depends")
                ).split(",")
            ]
            found.append(
                Stanza(fields["Package"], fields.get("Version", ""), tuple(filter(None, depends)))
            )
    return found


def newest_of_each_series(stanzas: Iterable[Stanza]) -> dict[str, Kernel]:
    """The newest kernel of each series, the series in ascending order.

    Realtime kernels, unsigned images and packages that only depend on the current one are left out;
    a backport counts like any other, for its kernel is the same.
    """
    best: dict[str, tuple[tuple[int, ...], Kernel]] = {}
    for stanza in stanzas:
        named = _IMAGE.fullmatch(stanza.package)
        if named is None or "-rt" in stanza.package:
            continue
        series = named[1] + (named["cloud"] or "")
        kernel = Kernel(series, stanza.package.removeprefix("linux-image-"), stanza.version)
        rank = _numbers(stanza.version)
        if series not in best or rank > best[series][0]:
            best[series] = (rank, kernel)
    ordered = sorted(best, key=lambda name: (_numbers(name), name))
    return {series: best[series][1] for series in ordered}


def choose(wanted: str, available: dict[str, Kernel]) -> Kernel:
    """The kernel that a word on the command line means.

    Raises:
        KernelsError: if the archive has none, with what it has.
    """
    if wanted == NEWEST:
        plain = [kernel for series, kernel in available.items() if "-" not in series]
        if plain:
            return plain[-1]
    elif wanted in available:
        return available[wanted]
    known = ", ".join(available) or "no kernel at all"
    raise KernelsError(f"kernel {wanted}: the archive has none; it has {known}")


def is_series(word: str) -> bool:
    """Whether a word of the command line names a kernel."""
    return word == NEWEST or _SERIES.fullmatch(word) is not None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))


def parts(kernel: Kernel, stanzas: Sequence[Stanza]) -> list[str]:
    """The packages that a kernel consists of, its image first.

    From 7.0 on the image package is empty and depends on others of the same release
    (`linux-binary-…`, `linux-modules-…`, `linux-base-…`).
    """
    depends = {stanza.package: stanza.depends for stanza in stanzas}
    found: list[str] = []
    waiting = [f"linux-image-{kernel.release}"]
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        found.append(name)
        waiting += [
            one
            for one in depends.get(name, ())
            if one.startswith("linux-") and one.endswith(kernel.release)
        ]
    return found


class Archive:
    """Debian's archive, seen through an apt with state of its own."""

    def __init__(self, directory: Path, mirrors: Mirrors) -> None:
        self._directory = directory
        self._config = directory / "apt.conf"
        self._sources = sources(mirrors)

    def available(self) -> dict[str, Kernel]:
        """The newest kernel of each series. Reads the archive's lists if there are none yet."""
        self._prepare()
        names = self._cache("pkgnames", "linux-image-").split()
        images = sorted(name for name in names if _IMAGE.fullmatch(name))
        if not images:
            return {}
        return newest_of_each_series(parse_stanzas(self._cache("show", *images)))

    def download(self, kernel: Kernel, target: Path) -> list[Path]:
        """Fetches a kernel's packages into a directory."""
        self._prepare()
        names = [
            name
            for name in self._cache("pkgnames", "linux-").split()
            if name.endswith(kernel.release)
        ]
        packages = parts(kernel, parse_stanzas(self._cache("show", *sorted(names))))
        target.mkdir(parents=True, exist_ok=True)
        command(*self._apt("apt-get"), "download", *packages, cwd=target)
        return sorted(target.glob("*.deb"))

    def update(self) -> None:
        """Reads the archive's lists anew.

        Raises:
            KernelsError: if one of them cannot be had; the others are not used either, or a table
                of kernels would silently have fewer columns.
        """
        self._write()
        command(*self._apt("apt-get"), "--error-on=any", "update", timeout=600)

    def _prepare(self) -> None:
        listed = self._directory / "lists"
        fresh = self._config.exists() and any(listed.glob("*_Packages*"))
        if not fresh or (self._directory / "sources.list").read_text() != self._sources:
            self.update()

    def _write(self) -> None:
        for name in ("lists/partial", "cache/archives/partial"):
            (self._directory / name).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        (self._directory / "sources.list").write_text(self._sources)
        self._config.write_text(
            # The machine's own hooks and its own extra indexes are none of our business.
            "#clear APT::Update;\n"
            "#clear DPkg::Post-Invoke;\n"
            "#clear Acquire::IndexTargets::deb::DEP-11;\n"
            f'Dir::Etc::sourcelist "{self._directory}/sources.list";\n'
            'Dir::Etc::sourceparts "/dev/null";\n'
            f'Dir::State::status "{self._directory}/status";\n'
            f'Dir::State::lists "{self._directory}/lists";\n'
            f'Dir::Cache "{self._directory}/cache";\n'
            'Dir::Cache::pkgcache "pkgcache.bin";\n'
            'APT::Architecture "amd64";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
        )

    def _apt(self, program: str) -> list[str]:
        return [program, "-q", "-c", str(self._config)]

    def _cache(self, *words: str) -> str:
        return command(*self._apt("apt-cache"), *words).stdout


__all__ = ["Archive", "Kernel", "choose", "is_series", "newest_of_each_series", "parts"]
