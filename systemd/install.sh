#!/bin/sh
# Installs the server, its units and settings.
#   install.sh [--root DIR] [--binary FILE]    --root: into a folder, for packaging; nothing is started or reloaded
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root= binary=$here/../target/release/shardwire
while [ $# -gt 0 ]; do
    case $1 in
    --root) root=${2:?--root needs a folder}; shift 2 ;;
    --binary) binary=${2:?--binary needs a file}; shift 2 ;;
    *) echo "usage: install.sh [--root DIR] [--binary FILE]" >&2; exit 2 ;;
    esac
done
put() { install -D -m "$1" "$2" "$root$3"; }
put 755 "$binary" /usr/bin/shardwire
for unit in shardwire.service shardwire@.service shardwire.socket shardwire.slice; do
    put 644 "$here/$unit" "/usr/lib/systemd/system/$unit"
done
for kind in sysctl.d/90-shardwire sysusers.d/shardwire tmpfiles.d/shardwire; do
    put 644 "$here/$kind.conf" "/usr/lib/$kind.conf"
done
# What the operator has changed stays.
[ -e "$root/etc/shardwire/shardwire.toml" ] || put 640 "$here/shardwire.toml" /etc/shardwire/shardwire.toml
if [ -z "$root" ]; then
    systemd-sysusers /usr/lib/sysusers.d/shardwire.conf
    systemd-tmpfiles --create /usr/lib/tmpfiles.d/shardwire.conf
    chgrp shardwire /etc/shardwire/shardwire.toml
    sysctl -q -p /usr/lib/sysctl.d/90-shardwire.conf
    systemctl daemon-reload
    echo "installed; start with: systemctl enable --now shardwire.socket shardwire.service"
fi
