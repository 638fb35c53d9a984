# Sourced by scripts/lab. Builds the image of scripts/clients in the cache:
#   bottle-clients:latest  Debian with package managers, runtimes and a browser (--with-clients)
# It has some gigabytes and takes minutes, so it is built only on request.
# shellcheck shell=bash

# From Debian. Go is this machine's.
CLIENT_PACKAGES='chromium default-jdk-headless gh gradle libnss3-tools maven python3-aiohttp python3-httpx python3-pip python3-requests wget'
# From npm, in /opt/clients/node_modules. Node.js itself is in /opt/nodeMAJOR/bin.
CLIENT_NODES='18.20.8 20.20.2 22.23.3 24.21.0'
CLIENT_MODULES='npm@11.9.0 yarn@1.22.22 @yarnpkg/cli-dist@4.18.1 pnpm@10.34.9 undici@7.30.2 playwright-core@1.65.1'
BUN_VERSION=1.4.5
DENO_VERSION=2.9.6

CLIENTS_LAYER=$LAB_CACHE/clients-$(printf %s "$DEBIAN_PACKAGES $CLIENT_PACKAGES $CLIENT_NODES $CLIENT_MODULES $BUN_VERSION $DENO_VERSION 1" | sha256sum | cut -c1-12).tar

# clients_layer builds a layer that replaces the Debian layer.
clients_layer() {
  [ ! -e "$CLIENTS_LAYER" ] || return 0
  step 'building the clients layer' "$CLIENTS_LAYER.log" clients_root
}

clients_root() {
  local root=$CLIENTS_LAYER.root
  partial_root "$CLIENTS_LAYER"
  tar -C "$root" -xf "$DEBIAN_LAYER"
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' >"$root/etc/apt/sources.list"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  # In a new mount namespace: an interrupted installation leaves /proc and /dev mounted.
  # shellcheck disable=SC2016
  CLIENT_PACKAGES=$CLIENT_PACKAGES unshare --mount --propagation private bash -euc '
    mount -t proc proc "$1/proc"
    mount --bind /dev "$1/dev"
    export DEBIAN_FRONTEND=noninteractive
    chroot "$1" apt-get update
    # Debian 12 has a newer cargo in this package; the older one cannot read sparse registries.
    cargo=cargo
    ! chroot "$1" apt-cache show cargo-web >/dev/null 2>&1 || cargo=cargo-web
    chroot "$1" apt-get install -y --no-install-recommends $CLIENT_PACKAGES $cargo' - "$root"
  clients_npm "$root"
  install -D "$(go env GOROOT)/bin/go" "$root/opt/go/bin/go"
  cp "$(go env GOROOT)/go.env" "$(go env GOROOT)/VERSION" "$root/opt/go/"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,man,locale,icons}/* \
    "$root"/etc/apt/sources.list* "$root"/usr/lib/rustlib "$root"/usr/include
  : >"$root/etc/resolv.conf"
  pack_root "$CLIENTS_LAYER"
}

# clients_npm ROOT installs the programs from npm's registry.
clients_npm() {
  local root=$1 work=$1.npm cpu=x64 bun=x64 version
  [ "$(dpkg --print-architecture)" != arm64 ] || cpu=arm64 bun=aarch64
  rm -rf "$work"
  mkdir -p "$work" "$root/opt/clients"
  for version in $CLIENT_NODES; do
    npm_file "$work" "node-linux-$cpu" "$version" bin/node "$root/opt/node${version%%.*}/bin/node"
  done
  npm_file "$work" "@oven/bun-linux-$bun" "$BUN_VERSION" bin/bun "$root/opt/clients/bin/bun"
  npm_file "$work" "@deno/linux-$cpu-glibc" "$DENO_VERSION" deno "$root/opt/clients/bin/deno"
  # shellcheck disable=SC2086
  npm install --ignore-scripts --no-audit --no-fund --prefix "$root/opt/clients" $CLIENT_MODULES
  rm -rf "$work"
}

# npm_file WORK PACKAGE VERSION FILE TARGET installs one program of a package.
npm_file() {
  rm -rf "$1/package" "$1"/*.tgz
  npm pack --silent --pack-destination "$1" "$2@$3"
  tar -C "$1" -xzf "$1"/*.tgz "package/$4"
  install -D "$1/package/$4" "$5"
}
