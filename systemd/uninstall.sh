#!/bin/sh
# Removes what install.sh has installed. Settings (/etc/shardwire) and messages (/var/lib/shardwire) stay.
#   uninstall.sh [--root DIR]
set -eu
root=
case ${1-} in
--root) root=${2:?--root needs a folder} ;;
'') systemctl disable --now shardwire.socket shardwire.service ;;
*) echo "usage: uninstall.sh [--root DIR]" >&2; exit 2 ;;
esac
units=$root/usr/lib/systemd/system
rm -f "$root/usr/bin/shardwire" "$units/shardwire.service" "$units/shardwire@.service" "$units/shardwire.socket" \
    "$units/shardwire.slice" "$root/usr/lib/sysctl.d/90-shardwire.conf" "$root/usr/lib/sysusers.d/shardwire.conf" \
    "$root/usr/lib/tmpfiles.d/shardwire.conf"
[ -n "$root" ] || systemctl daemon-reload
