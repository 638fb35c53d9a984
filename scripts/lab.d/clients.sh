# Sourced by scripts/lab. Builds the images of scripts/clients in the cache, both with Claude Code:
#   bottle-clients:latest  Debian with package managers, runtimes and a browser (--with-clients)
#   bottle-tools:latest    Debian with the few clients of `make test` (--with-tools)
# The first has some gigabytes and takes minutes, so it is built only on request.
# shellcheck shell=bash

# From Debian. Go is this machine's.
TOOL_PACKAGES='git-lfs python3-httpx python3-requests'
CLIENT_PACKAGES="chromium default-jdk-headless gh gradle libnss3-tools maven python3-aiohttp python3-pip skopeo wget $TOOL_PACKAGES"
# From npm, in /opt/clients/node_modules. Node.js itself is in /opt/nodeMAJOR/bin.
CLIENT_NODES='18.20.8 20.20.2 22.23.3 24.21.0'
CLIENT_MODULES='npm@11.9.0 yarn@1.22.22 @yarnpkg/cli-dist@4.18.1 pnpm@10.34.9 undici@7.30.2 playwright-core@1.65.1 undici6@npm:undici@6.29.1'
BUN_VERSION=1.4.5
DENO_VERSION=2.9.6

CLIENTS_LAYER=$LAB_CACHE/clients-$(printf %s "$DEBIAN_PACKAGES $CLIENT_PACKAGES $CLIENT_NODES $CLIENT_MODULES $BUN_VERSION $DENO_VERSION 2" | sha256sum | cut -c1-12).tar
TOOLS_NODE=24.21.0
TOOLS_LAYER=$LAB_CACHE/tools-layer-$(printf %s "$DEBIAN_PACKAGES $TOOL_PACKAGES $TOOLS_NODE 1" | sha256sum | cut -c1-12).tar

# clients_layer builds a layer that replaces the Debian layer.
clients_layer() {
  [ ! -e "$CLIENTS_LAYER" ] || return 0
  step 'building the clients layer' "$CLIENTS_LAYER.log" clients_root
}

clients_root() {
  local root=$CLIENTS_LAYER.root
  partial_root "$CLIENTS_LAYER"
  tar -C "$root" -xf "$DEBIAN_LAYER"
  # Debian 12 has a newer cargo in this package; the older one cannot read sparse registries.
  install_in_root "$root" $CLIENT_PACKAGES 'cargo-web|cargo'
  clients_npm "$root"
  install -D "$(go env GOROOT)/bin/go" "$root/opt/go/bin/go"
  cp "$(go env GOROOT)/go.env" "$(go env GOROOT)/VERSION" "$root/opt/go/"
  rm -rf "$root"/usr/share/{icons,man,locale}/* "$root"/usr/lib/rustlib "$root"/usr/include
  pack_root "$CLIENTS_LAYER"
}

# install_in_root ROOT PACKAGE... installs Debian packages; of A|B the first that exists.
install_in_root() {
  local root=$1
  shift
  apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' >"$root/etc/apt/sources.list"
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  # In a new mount namespace: an interrupted installation leaves /proc and /dev mounted.
  # shellcheck disable=SC2016
  unshare --mount --propagation private bash -euc '
    root=$1; shift
    mount -t proc proc "$root/proc"
    mount --bind /dev "$root/dev"
    export DEBIAN_FRONTEND=noninteractive
    chroot "$root" apt-get update
    packages=()
    for package; do
      ! chroot "$root" apt-cache show "${package%%|*}" >/dev/null 2>&1 || package=${package%%|*}
      packages+=("${package#*|}")
    done
    chroot "$root" apt-get install -y --no-install-recommends "${packages[@]}"' - "$root" "$@"
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/doc/* "$root"/etc/apt/sources.list*
  : >"$root/etc/resolv.conf"
}

# tools_layer builds a layer on top of the Debian layer.
tools_layer() {
  [ ! -e "$TOOLS_LAYER" ] || return 0
  step 'building the layer with a few clients' "$TOOLS_LAYER.log" tools_root
}

tools_root() {
  local root=$TOOLS_LAYER.root
  partial_root "$TOOLS_LAYER"
  tar -C "$root" -xf "$DEBIAN_LAYER"
  : >"$TOOLS_LAYER.begin"
  install_in_root "$root" $TOOL_PACKAGES
  mkdir -p "$root.npm"
  npm_node "$root.npm" "$TOOLS_NODE" "$root"
  rm -rf "$root.npm"
  # Only what is new: the layer shares the one below with other images.
  find "$root" ! -type d ! -cnewer "$TOOLS_LAYER.begin" -delete
  rm -f "$TOOLS_LAYER.begin"
  pack_root "$TOOLS_LAYER"
}

# clients_npm ROOT installs the programs from npm's registry.
clients_npm() {
  local root=$1 work=$1.npm bun=x64 version
  [ "$CLAUDE_ARCH" != arm64 ] || bun=aarch64
  rm -rf "$work"
  mkdir -p "$work" "$root/opt/clients"
  for version in $CLIENT_NODES; do
    npm_node "$work" "$version" "$root"
  done
  npm_file "$work" "@oven/bun-linux-$bun" "$BUN_VERSION" bin/bun "$root/opt/clients/bin/bun"
  npm_file "$work" "@deno/linux-$CLAUDE_ARCH-glibc" "$DENO_VERSION" deno "$root/opt/clients/bin/deno"
  # shellcheck disable=SC2086
  npm install --ignore-scripts --no-audit --no-fund --prefix "$root/opt/clients" $CLIENT_MODULES
  rm -rf "$work"
}

# npm_node WORK VERSION ROOT installs Node.js.
npm_node() { npm_file "$1" "node-linux-$CLAUDE_ARCH" "$2" bin/node "$3/opt/node${2%%.*}/bin/node"; }

# npm_file WORK PACKAGE VERSION FILE TARGET installs one program of a package.
npm_file() {
  rm -rf "$1/package" "$1"/*.tgz
  npm pack --silent --pack-destination "$1" "$2@$3"
  tar -C "$1" -xzf "$1"/*.tgz "package/$4"
  install -D "$1/package/$4" "$5"
}
