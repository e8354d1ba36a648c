#!/usr/bin/env bash
# Prints where this machine's apt gets Debian from, a line each:
#
#     main URI
#     security URI        (only if the machine has it)
#
# What the tests build from Debian's packages comes from there as well, so that a mirror or a proxy
# that is set up once serves everything. PYFLANNEL_DEBIAN_MIRROR and PYFLANNEL_DEBIAN_SECURITY take
# its place, as on a machine that is not Debian.
set -euo pipefail

suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")

# Component and release, and not the name of a host, tell Debian's own archive from other people's.
from_apt() {
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$1" '$1 == release && $2 == "main" { sub("/+$", "", $3); print $3; exit }'
}

main=${PYFLANNEL_DEBIAN_MIRROR:-$(from_apt "$suite")}
security=${PYFLANNEL_DEBIAN_SECURITY:-$(from_apt "$suite-security")}
if [[ -z $main ]]; then
    echo "debian-mirror: apt's sources on this machine name no Debian archive for" \
        "'${suite:-?}'; give one in PYFLANNEL_DEBIAN_MIRROR" >&2
    exit 69
fi
printf 'main %s\n' "$main"
if [[ -n $security ]]; then
    printf 'security %s\n' "$security"
fi
