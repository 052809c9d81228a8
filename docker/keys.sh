#!/usr/bin/env bash
# Makes what a closed federation needs, in a new folder:
#
#   ca.crt, ca.key           the certificate authority; ca.crt goes to every node and to every user
#   superlink/               server.crt and server.key for TLS, superexec-secret for the ServerApps
#   node-0/, node-1/, ...    key and key.pub to authenticate, superexec-secret for the ClientApps,
#                            identity by which sites know each other in secure sums
#   sites                    the sites' public identities; their owners compare it, each has a copy
#
# Each site gets ca.crt, sites and its own folder, and nothing else. ca.key belongs on no running
# machine. Who does not trust whoever runs this makes its own identity (docs/security.md).
set -euo pipefail
umask 077 # all of it is for the owner alone: folders 700, files 600

fail() {
    echo "error: $1" >&2
    exit 1
}

[ $# -ge 2 ] || fail "usage: keys.sh FOLDER NODES [NAME...], with more names or addresses of the SuperLink"
folder=$1 nodes=$2
shift 2
[[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "not a number of nodes; expected 1 or more; got $nodes"
for name in "$@"; do
    [[ $name =~ ^[A-Za-z0-9.:-]+$ ]] || fail "not a host name or address; got $name"
done
for program in openssl ssh-keygen; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done
# A key that is replaced locks out whoever has the old one, so nothing here ever is.
[ ! -e "$folder" ] || fail "it exists already; where: $folder; do: name a new folder, or move that one away"
mkdir "$folder"
complete=false
trap '$complete || rm -rf "$folder"' EXIT # all or nothing
folder=$(cd "$folder" && pwd)

names() { # the SuperLink's names as a certificate has them
    local list="DNS:superlink,DNS:localhost,IP:127.0.0.1" name
    for name in "$@"; do
        if [[ $name =~ ^[0-9.]+$|: ]]; then list+=",IP:$name"; else list+=",DNS:$name"; fi
    done
    echo "$list"
}

private_key() {
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out "$1"
}

private_key "$folder/ca.key"
openssl req -x509 -new -key "$folder/ca.key" -days 3650 -subj "/CN=FedDMMR federation CA" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -out "$folder/ca.crt"

mkdir "$folder/superlink"
private_key "$folder/superlink/server.key"
openssl req -new -key "$folder/superlink/server.key" -subj "/CN=superlink" \
    -addext "subjectAltName=$(names "$@")" -addext "basicConstraints=critical,CA:FALSE" \
    -addext "keyUsage=critical,digitalSignature" -addext "extendedKeyUsage=serverAuth" |
    openssl x509 -req -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -days 825 \
        -copy_extensions copy -out "$folder/superlink/server.crt" 2>"$folder/log" ||
    fail "no certificate; got $(tail -n 1 "$folder/log")"
rm "$folder/log"
openssl rand -hex 32 >"$folder/superlink/superexec-secret"

for ((node = 0; node < nodes; node++)); do
    mkdir "$folder/node-$node"
    ssh-keygen -q -t ecdsa -b 384 -N "" -C "node-$node" -f "$folder/node-$node/key"
    ssh-keygen -q -t ed25519 -N "" -C "" -f "$folder/node-$node/identity"
    echo "node-$node $(cat "$folder/node-$node/identity.pub")" >>"$folder/sites"
    rm "$folder/node-$node/identity.pub"
    openssl rand -hex 32 >"$folder/node-$node/superexec-secret"
done
chmod 600 "$folder"/*.* "$folder/sites" "$folder"/*/* # ssh-keygen lets others read public keys
complete=true
echo "keys of a SuperLink and $nodes nodes: $folder"
