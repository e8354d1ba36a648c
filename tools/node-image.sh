#!/usr/bin/env bash
# Makes the file tree of a minimal Debian node with systemd, for the tests that boot one:
#
#     tools/node-image.sh base|ssh|docker|docker-newest|guest
#
# prints the tree's directory. Its packages come from where this machine's own apt gets them;
# docker-newest is of Debian's unstable suite. It is built once and kept outside of the repository, below
# PYFLANNEL_CACHE (default: XDG_CACHE_HOME/pyflannel, ~/.cache/pyflannel); whoever boots it puts a
# writable layer over it and leaves the tree itself as it is. Another list of packages or another
# release is another tree. `guest` is for the virtual machines of `make kernels`: no init, but what
# the test suite calls. Needs root and mmdebstrap.
set -euo pipefail

variant=${1:?base, ssh, docker, docker-newest or guest}
release=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:?of Debian}")
suite=$release
[[ $variant != docker-newest ]] || suite=sid

# This machine's sources for its release, as apt itself understands them; of another suite the part
# that is not an update of the release. PYFLANNEL_DEBIAN_MIRROR (a URI) instead.
sources() {
    if [[ -n ${PYFLANNEL_DEBIAN_MIRROR:-} ]]; then
        echo "deb $PYFLANNEL_DEBIAN_MIRROR $suite main"
        return
    fi
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        if [[ $suite == "$release" ]]; then
            grep -E " $release(-updates|-security)? main$"
        else
            sed -n "s/ $release main$/ $suite main/p"
        fi | sort -u
}

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
ssh) packages+=(openssh-server openssh-client) ;;
docker) packages+=(docker.io busybox-static) ;;
docker-newest) packages+=(docker.io docker-cli busybox-static) ;;
guest)
    packages=(
        busybox-static                # the first steps of the boot, before there is a disk
        kmod mount util-linux procps  # modules, mounts, setpriv, sysctl
        python3 python3-venv          # the interpreter that .venv/ refers to
        iproute2 iptables nftables ethtool iputils-ping conntrack
        tcpdump iperf3 psmisc libcap2-bin
        wireguard-tools               # the guests' kernels have WireGuard
        etcd-server etcd-client
        ca-certificates
    )
    ;;
*)
    echo "node-image: $variant: base, ssh, docker, docker-newest or guest" >&2
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
    [[ -n $(sources) ]] || {
        echo "node-image: apt has no sources for $release here: apt-get update, or set" \
            "PYFLANNEL_DEBIAN_MIRROR" >&2
        exit 1
    }
    echo "==> building $tree ($suite) from this machine's apt sources" >&2
    rm -rf "$tree.new"
    log=$cache/node-$variant.log
    # No documentation and no other languages: nobody reads them there. The man page directory
    # stays usable, because installing ours is one of the things that are tested.
    # A mirror that is a snapshot of an older day is as good.
    sources | mmdebstrap --mode=root --variant=apt \
        --include="$(IFS=,; echo "${packages[*]}")" \
        --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --customize-hook='rm -f "$1"/etc/machine-id "$1"/etc/hostname "$1"/etc/resolv.conf' \
        --customize-hook='touch "$1"/etc/machine-id' \
        "$suite" "$tree.new" - >"$log" 2>&1 || {
        rm -rf "$tree.new"
        tail -n 20 "$log" >&2
        exit 1
    }
    mv "$tree.new" "$tree"
fi
printf '%s\n' "$tree"
