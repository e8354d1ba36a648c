"""What a directory of installed Python distributions is made of: CycloneDX, and Debian's copyright.

    tools/sbom.py cyclonedx|copyright SITE-PACKAGES

Prints a software bill of materials (CycloneDX 1.5, JSON), or the stanzas about the libraries for
`debian/copyright`. Both follow from what is installed and from SOURCE_DATE_EPOCH alone, so the same
packages give the same bytes. Licences are SPDX expressions; a library without one that can be read
ends the build, because a person has to look.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import sys
import uuid
from collections.abc import Mapping, Sequence
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Final
from urllib.parse import quote

OURS: Final = "pyflannel"
SITE: Final = "usr/lib/pyflannel/lib/*/site-packages"
SPEC_VERSION: Final = "1.5"
WORDS: Final = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "MIT License": "MIT",
}
"""What authors write where no expression was possible yet (core metadata before 2.4)."""
_EXPRESSION: Final = re.compile(r"[(]?[A-Za-z0-9.+-]+( (AND|OR|WITH) [(]?[A-Za-z0-9.+-]+[)]?)*")


def licence(metadata: Message) -> str:
    """The SPDX expression of a distribution.

    Raises:
        SystemExit: there is none that can be read.
    """
    if metadata["Name"] == "uvloop":
        # Its metadata names one of the two whose texts are in it.
        return "Apache-2.0 OR MIT"
    said = str(metadata.get("License-Expression") or metadata.get("License") or "").strip()
    found = WORDS.get(said, said)
    if not _EXPRESSION.fullmatch(found):
        raise SystemExit(f"sbom: {metadata['Name']}: no SPDX licence in {said[:80]!r}; add it here")
    return found


def distributions(site: Path) -> list[tuple[Path, Message]]:
    """Every distribution with its metadata, by name."""
    parser = Parser()
    found = [
        (path.parent, parser.parsestr(path.read_text("utf-8"), headersonly=True))
        for path in site.glob("*.dist-info/METADATA")
    ]
    return sorted(found, key=lambda entry: normal(str(entry[1]["Name"])))


def normal(name: str) -> str:
    """A distribution's name as package URLs have it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def tops(directory: Path) -> list[str]:
    """What of the site directory belongs to a distribution, by its RECORD."""
    found = set()
    for line in (directory / "RECORD").read_text("utf-8").splitlines():
        top, slash, _ = line.partition(",")[0].partition("/")
        if top not in {"..", "__pycache__"}:
            found.add(f"{top}/*" if slash else top)
    return sorted(found)


def component(metadata: Message) -> dict[str, object]:
    """One distribution in CycloneDX."""
    name, version = normal(str(metadata["Name"])), str(metadata["Version"])
    url = f"pkg:pypi/{name}@{version}"
    return {
        "type": "application" if name == OURS else "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence(metadata)}],
        "purl": url,
    }


def debian(fields: Mapping[str, str], architecture: str) -> dict[str, object]:
    """One Debian package in CycloneDX; its licences are in its copyright file, in no set form.

    Args:
        fields: of its control file.
        architecture: of the image. A package may be for all of them.
    """
    name, version = fields["Package"], fields["Version"]
    of = fields.get("Architecture", architecture)
    url = f"pkg:deb/debian/{name}@{quote(version, safe='.~-')}?arch={of}"
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}


def serial(components: Sequence[object]) -> str:
    """The number of a bill, which follows from what is in it."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components))}"


def timestamp(seconds: int) -> str:
    """A date as RFC 3339 has it, from seconds since 1970."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cyclonedx(site: Path) -> str:
    """The bill of materials."""
    entries = [component(metadata) for _, metadata in distributions(site)]
    (own,) = (entry for entry in entries if entry["name"] == OURS)
    others = [entry for entry in entries if entry is not own]
    made = timestamp(int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    refs = [str(entry["bom-ref"]) for entry in others]
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": serial(entries),
        "version": 1,
        "metadata": {"timestamp": made, "component": own},
        "components": others,
        "dependencies": [{"ref": own["bom-ref"], "dependsOn": refs}],
    }
    return json.dumps(bill, indent=2) + "\n"


def copyright_stanzas(site: Path) -> str:
    """One stanza for each library; their texts lie beside them."""
    stanzas = []
    for directory, metadata in distributions(site):
        if normal(str(metadata["Name"])) == OURS:
            continue
        holder = metadata.get("Author") or metadata.get("Author-email") or "its authors"
        places = "\n ".join(f"{SITE}/{top}" for top in tops(directory))
        stanzas.append(
            f"Files: {places}\n"
            f"Copyright: {' '.join(str(holder).split())}\n"
            f"License: {licence(metadata).replace(' AND ', ' and ').replace(' OR ', ' or ')}\n"
            f" {metadata['Name']} {metadata['Version']}; the text is in {directory.name}.\n"
        )
    return "\n".join(stanzas)


def main() -> None:
    """Entry point."""
    kind, site = sys.argv[1], Path(sys.argv[2])
    print({"cyclonedx": cyclonedx, "copyright": copyright_stanzas}[kind](site), end="")


if __name__ == "__main__":
    main()
