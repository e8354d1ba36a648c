#!/usr/bin/env bash
# Builds dist/pyflannel_VERSION_ARCH.deb from the sources as they are:
#
#     tools/build-deb.sh
#
# The package has a private environment, /usr/lib/pyflannel, with all Python libraries in it, because
# Debian's own are too old; only the interpreter is the system's. Needs no debhelper and no root.
# The libraries are those of requirements.lock, checked by their hashes.
set -euo pipefail
cd "$(dirname "$0")/.."

home=usr/lib/pyflannel
python=/usr/bin/python3
builder=.venv/bin/python
stage=build/deb
[[ -x $builder ]] || {
    echo "build-deb: no $builder; make deb makes it" >&2
    exit 1
}
version=$("$builder" -c 'import pyflannel; print(pyflannel.__version__)')
series=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
following=$("$python" -c 'import sys; print("%d.%d" % (sys.version_info[0], sys.version_info[1] + 1))')
arch=$(dpkg --print-architecture)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
# A umask of 077 would make a package that only root can use.
umask 022
# Names are sorted and dates are printed the same way on every machine.
export LC_ALL=C.UTF-8 TZ=UTC

rm -rf "$stage" "$stage-wheel"
mkdir -p "$stage" dist
# By way of the source archive, whose build begins with an empty directory: one that was left over
# would bring its old native part along.
PYFLANNEL_REQUIRE_NATIVE=1 "$builder" -m build --no-isolation --outdir "$stage-wheel" . >build/deb.log 2>&1 || {
    cat build/deb.log >&2
    exit 1
}
wheel=$(echo "$stage-wheel"/*.whl)

mkdir -p "$stage/DEBIAN" "$stage/usr/bin" "$stage/usr/libexec/pyflannel"

# The environment: installed here, with the paths it will have there.
"$python" -m venv --without-pip "$stage/$home"
# With what reads a kubeconfig in YAML.
printf '%s[kubernetes] --hash=sha256:%s\n' "$wheel" "$(sha256sum "$wheel" | cut -d ' ' -f 1)" >"$stage-wheel/wanted"
"$builder" -m pip --python "$stage/$home/bin/python" --disable-pip-version-check install --quiet \
    --no-compile --no-warn-script-location --only-binary :all: \
    --require-hashes --constraint requirements.lock --requirement "$stage-wheel/wanted"
here=$(realpath "$stage")
grep -rlIZ --exclude-dir=site-packages "$here" "$stage/$home" | xargs -0 -r sed -i "s|$here||g"
# The libraries' commands are not needed.
find "$stage/$home/bin" -mindepth 1 ! -name 'python*' ! -name 'pyflannel*' -delete
# What was installed there has the paths of this machine in its hashes, and is changed or gone now:
# commands, and where the wheel was.
find "$stage/$home" -path '*.dist-info/RECORD' \
    -exec sed -i '\|^\.\./\.\./\.\./bin/|d; \|\.dist-info/direct_url\.json,|d' {} +
# Units and samples have their places below, the rest is not needed.
rm -rf "$stage/$home/include" "$stage/$home/share" "$stage/$home/.gitignore"
find "$stage/$home" -path '*.dist-info/direct_url.json' -delete
find "$stage/$home" -name 'tests' -path '*/site-packages/*' -type d -prune -exec rm -rf {} +
ln -sf "$python" "$stage/$home/bin/python3"
find "$stage/$home" -name '*.so' -exec strip --strip-unneeded --remove-section=.comment {} + 2>/dev/null || true
find "$stage/$home/lib" -name '*.py' -perm /111 -exec chmod a-x {} +
# Compiled here: at run time the directory is read-only for the daemon, and imports are most of its
# start. By content, so that no date is in it.
"$python" -m compileall -q --invalidation-mode unchecked-hash -s "$here" "$stage/$home/lib" || true

for command in pyflanneld pyflanneld-start pyflannel pyflannel-mk-docker-opts; do
    ln -s "../lib/pyflannel/bin/$command" "$stage/usr/bin/$command"
done
ln -s ../../bin/pyflannel-mk-docker-opts "$stage/usr/libexec/pyflannel/mk-docker-opts.sh"

place() { install -D -m "${3:-644}" "$1" "$stage/$2"; }
place systemd/pyflannel.service usr/lib/systemd/system/pyflannel.service
place systemd/pyflannel@.service usr/lib/systemd/system/pyflannel@.service
place systemd/docker.service.d/pyflannel.conf usr/lib/systemd/system/docker.service.d/pyflannel.conf
place systemd/network/05-flannel.link usr/lib/systemd/network/05-flannel.link
place systemd/network/05-flannel.network usr/lib/systemd/network/05-flannel.network
place systemd/NetworkManager/80-flannel.conf usr/lib/NetworkManager/conf.d/80-flannel.conf
place systemd/modules-load.d/pyflannel.conf usr/lib/modules-load.d/pyflannel.conf
place systemd/sysctl.d/80-pyflannel.conf usr/lib/sysctl.d/80-pyflannel.conf
place systemd/tmpfiles.d/pyflannel.conf usr/lib/tmpfiles.d/pyflannel.conf
place config/pyflannel.default etc/default/pyflannel
for sample in config/*.json; do
    place "$sample" "usr/share/doc/pyflannel/examples/${sample##*/}"
done
place packaging/deb/lintian-overrides usr/share/lintian/overrides/pyflannel
site=$(echo "$stage/$home"/lib/python*/site-packages)
"$builder" tools/sbom.py cyclonedx "$site" >"$stage/usr/share/doc/pyflannel/sbom.cdx.json"
{
    echo 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/'
    echo 'Upstream-Name: pyflannel'
    echo
    echo 'Files: *'
    echo 'Copyright: 2026 The pyflannel maintainers'
    echo 'License: Apache-2.0'
    echo ' The full text is in /usr/share/common-licenses/Apache-2.0. The libraries below'
    echo ' /usr/lib/pyflannel have their licenses beside them, in their *.dist-info directories.'
    echo
    echo 'Files: usr/lib/pyflannel/lib/*/site-packages/pyflannel/datapath/ebpf/flannel.bpf.*'
    echo 'Copyright: 2026 The pyflannel maintainers'
    echo 'License: Apache-2.0 or GPL-2.0-only'
    echo ' The kernel takes programs under the GPL alone for some of what they call. The texts are in'
    echo ' /usr/share/common-licenses/Apache-2.0 and /usr/share/common-licenses/GPL-2.'
    echo
    "$builder" tools/sbom.py copyright "$site"
} >"$stage/usr/share/doc/pyflannel/copyright"
{
    echo "pyflannel ($version) unstable; urgency=medium"
    echo
    echo '  * See /usr/share/doc/pyflannel/NEWS.gz.'
    echo
    echo " -- The pyflannel maintainers <pyflannel@localhost>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -9n >"$stage/usr/share/doc/pyflannel/changelog.gz"
gzip -9nc CHANGELOG.md >"$stage/usr/share/doc/pyflannel/NEWS.gz"

"$builder" tools/manuals.py "$stage/usr/share"
find "$stage/usr/share/man" -type f -exec gzip -9n {} +

install -m 755 packaging/deb/{preinst,postinst,prerm,postrm} "$stage/DEBIAN/"
echo /etc/default/pyflannel >"$stage/DEBIAN/conffiles"
# Counted as dpkg-gencontrol does: what a file occupies depends on the builder's file system.
size=$(find "$stage" -mindepth 1 -path "$stage/DEBIAN" -prune -o -printf '%y %s\n' |
    awk '{ size += $1 == "f" ? int(($2 + 1023) / 1024) : 1 } END { print size }')
cat >"$stage/DEBIAN/control" <<CONTROL
Package: pyflannel
Version: $version
Architecture: $arch
Maintainer: The pyflannel maintainers <pyflannel@localhost>
Installed-Size: $size
Depends: python3 (>= $series), python3 (<< $following), libc6, iproute2
Recommends: iptables, nftables
Suggests: docker.io, etcd-server
Section: net
Priority: optional
Description: flannel's overlay network agent, in Python
 On each node of a cluster the daemon leases a subnet from the network config in
 etcd, writes subnet.env and docker_opts.env, and joins the node to the overlay.
 It takes flanneld's place node by node, next to nodes where that still runs.
CONTROL
(cd "$stage" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | sort -z |
    xargs -0 md5sum >DEBIAN/md5sums)
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

output=dist/pyflannel_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$stage" "$output" >/dev/null
rm -rf "$stage" "$stage-wheel"
echo "$output"
