#!/usr/bin/env bash
# Makes the file tree of a minimal Debian node with systemd, for the tests that boot one:
#
#     tools/node-image.sh base|docker
#
# prints the tree's directory. It is built once and kept outside of the repository, below
# PYFLANNEL_CACHE (default: XDG_CACHE_HOME/pyflannel, ~/.cache/pyflannel); whoever boots it puts a
# writable layer over it and leaves the tree itself as it is. Another list of packages or another
# release is another tree. Needs root and mmdebstrap.
set -euo pipefail

variant=${1:?base or docker}
suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-bookworm}")
mirror=${PYFLANNEL_DEBIAN_MIRROR:-http://deb.debian.org/debian}

packages=(
    systemd systemd-sysv dbus     # an init, and what systemctl talks through
    udev                          # reads the .link file
    python3                       # the package depends on the system's interpreter
    python3-venv                  # for installing wheels without the package
    iproute2 iptables nftables procps kmod iputils-ping
    etcd-client                   # the chapter's etcdctl
)
case $variant in
base) ;;
docker) packages+=(docker.io busybox-static) ;;
*)
    echo "node-image: $variant: base or docker" >&2
    exit 2
    ;;
esac

cache=${PYFLANNEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pyflannel}
recipe=$(printf '%s\n' "$suite" "${packages[@]}" | sha256sum | cut -c 1-12)
tree=$cache/node-$variant-$recipe
mkdir -p "$cache"
exec 9>"$cache/node-$variant.lock"
flock 9

if [[ ! -d $tree ]]; then
    echo "==> building $tree from $mirror ($suite)" >&2
    rm -rf "$tree.new"
    log=$cache/node-$variant.log
    # No documentation and no other languages: nobody reads them there. The man page directory
    # stays usable, because installing ours is one of the things that are tested.
    mmdebstrap --mode=root --variant=apt \
        --include="$(IFS=,; echo "${packages[*]}")" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --customize-hook='rm -f "$1"/etc/machine-id "$1"/etc/hostname "$1"/etc/resolv.conf' \
        --customize-hook='touch "$1"/etc/machine-id' \
        "$suite" "$tree.new" "$mirror" >"$log" 2>&1 || {
        rm -rf "$tree.new"
        tail -n 20 "$log" >&2
        exit 1
    }
    mv "$tree.new" "$tree"
fi
printf '%s\n' "$tree"
