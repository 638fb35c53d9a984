# Sourced by scripts/lab. Builds the roots of Debian servers for `make readme`: a minimal
# Debian with what an installed server has.
# shellcheck shell=bash

HOST_SUITES=(bookworm trixie)
HOST_PACKAGES=systemd,systemd-sysv,sudo,ca-certificates,git,e2fsprogs

host_layer_file() { echo "$LAB_CACHE/debian-host-$1-$(printf %s "$HOST_PACKAGES 1" | sha256sum | cut -c1-12).tar"; }

host_layers() {
  local suite layer
  for suite in "${HOST_SUITES[@]}"; do
    layer=$(host_layer_file "$suite")
    [ -e "$layer" ] || { debian_root "$layer" 'a server' "$HOST_PACKAGES" "$suite" && pack_root "$layer"; }
  done
}
