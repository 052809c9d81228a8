#!/usr/bin/env bash
# Makes a base image where no image registry can be reached: Debian with Python, by debootstrap.
#
#   docker/base.sh IMAGE [REQUIREMENTS]
#
# With a requirements file its packages are in the base, put there by uv from this machine's cache;
# what docker/Dockerfile installs is then there already. DEBIAN_MIRROR says where Debian's packages
# are, by default where this machine's come from. Needs root, debootstrap and Docker.
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 1
}

[ $# -ge 1 ] && [ $# -le 2 ] || fail "usage: base.sh IMAGE [REQUIREMENTS]"
[ "$(id -u)" = 0 ] || fail "debootstrap needs root; do: sudo $0 $*"
for program in debootstrap docker; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done
image=$1 requirements=${2:-}
suite=bookworm # its Python is 3.11
sources=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true)
found=$(sed -nE 's/^URIs: *([^ ]+).*/\1/p; s/^deb +(\[[^]]*\] +)?([^ ]+).*/\2/p' <<<"$sources")
mirror=${DEBIAN_MIRROR:-$(grep -E '/debian/?$' <<<"$found" | sed -n 1p || true)} # no others' sources

root=$(mktemp -d)
# What is still mounted is this machine's cache of packages: then nothing is removed.
trap 'if mountpoint -q "$root/cache"; then umount "$root/cache" || exit 1; fi; rm -rf --one-file-system "$root"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
    "$suite" "$root" $mirror >"$root.log" 2>&1 ||
    fail "debootstrap failed; where: $root.log, DEBIAN_MIRROR=$mirror; got $(tail -n 1 "$root.log")"
rm -rf "$root.log" "$root"/usr/share/{doc,info,locale,man} "$root"/var/{cache,lib}/apt/*
chroot "$root" python3 -m venv /opt/python
path=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ -n "$requirements" ]; then
    uv=$(python3 -c 'import uv; print(uv.find_uv_bin())' 2>/dev/null || command -v uv) || fail "no uv"
    mkdir -p "$root/cache" "$("$uv" cache dir)"
    mount --bind "$("$uv" cache dir)" "$root/cache"
    cp "$uv" "$root/uv"
    cp "$requirements" "$root/requirements.txt"
    # How this machine reaches the package index is none of the image's business.
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    cp /etc/ssl/certs/ca-certificates.crt "$root/authorities.crt"
    UV_CACHE_DIR=/cache SSL_CERT_FILE=/authorities.crt chroot "$root" \
        /uv pip install --quiet --link-mode=copy --python /opt/python/bin/python -r /requirements.txt
    # Compiled once here, not at each start of a process that may not write it.
    chroot "$root" env -u PYTHONDONTWRITEBYTECODE /opt/python/bin/python -c \
        'import flwr.supercore.cli, flwr.superlink.cli, flwr.supernode.cli
import numpy.random, torch, safetensors.torch, flwr.supernode.runtime.run_clientapp, flwr.serverapp'
    # Nothing is compiled against them later, and each step of a build looks at every file again.
    find "$root/opt/python" -depth -type d \( -name include -o -name tests \) -exec rm -r {} +
    umount "$root/cache"
    rm -r "$root/cache" "$root"/{uv,requirements.txt,authorities.crt} "$root"/etc/{resolv.conf,hosts}
fi
tar -C "$root" -c . | docker import --change "ENV PATH=$path" - "$image" >/dev/null
echo "base image: $image"
