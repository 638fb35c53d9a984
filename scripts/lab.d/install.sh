# Sourced by scripts/lab. Installs the parts of the lab: Debian packages, and
# pinned programs with `go install` into the cache. Steps with an existing result
# are skipped; a result gets its final name only when it is complete.
# shellcheck shell=bash

CONTAINERD_VERSION=v2.4.2
GVISOR_VERSION=v0.0.0-20260905035102-160fafc42237
CNI_PLUGINS_VERSION=v1.9.1
REGISTRY_VERSION=v3.1.2
CLAUDE_CODE_VERSION=2.1.330
BUILDKIT_VERSION=$(awk '$1 == "github.com/moby/buildkit" { print $2 }' "$LAB_CHECKOUT/go.mod")

CONTAINERD_BIN=$LAB_CACHE/containerd-$CONTAINERD_VERSION
GVISOR_BIN=$LAB_CACHE/gvisor-$GVISOR_VERSION
CNI_BIN=$LAB_CACHE/cni-plugins-$CNI_PLUGINS_VERSION
REGISTRY_BIN=$LAB_CACHE/registry-$REGISTRY_VERSION
BUILDKIT_BIN=$LAB_CACHE/buildkit-$BUILDKIT_VERSION
TOOLS_BIN=$LAB_CACHE/tools-$LAB_ID
SSHD_ROOT=$LAB_CACHE/openssh-server

install_all() {
  mkdir -p "$LAB_CACHE" || die "create the cache directory $LAB_CACHE: see above"
  # Checkouts may share the cache.
  exec 8>"$LAB_CACHE/lock"
  flock -w 3600 8 || die "timed out after an hour waiting for the lock $LAB_CACHE/lock"
  find_go
  install_packages
  install_go_programs
  [ -z "$WITH_BUILDKITD" ] || install_buildkitd
  install_sshd
  install_tools
  fetch_modules
  images_build
  exec 8>&-
}

# find_go adds the Go toolchain to PATH, which sudo may have reset.
find_go() {
  local dir
  for dir in /usr/local/go/bin /usr/lib/go/bin ${SUDO_USER:+"$(getent passwd "$SUDO_USER" | cut -d: -f6)/go/bin"}; do
    ! command -v go >/dev/null || break
    [ ! -x "$dir/go" ] || PATH=$dir:$PATH
  done
  command -v go >/dev/null || die 'missing go command in PATH and /usr/local/go/bin (install Go 1.26 or later)'
  PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
  export PATH
}

# install_packages installs the Debian packages of missing commands.
install_packages() {
  local missing=() entry
  for entry in runc:runc zstd:zstd nft:nftables ip:iproute2 unshare:util-linux debootstrap:debootstrap git:git \
    ssh:openssh-client; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
  done
  # busybox and busybox-static both own /bin/busybox; only one is static.
  [ -n "$(dpkg-query -W -f '${Installed-Size}' busybox-static 2>/dev/null)" ] || missing+=(busybox-static)
  [ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  [ -z "$WITH_CLAUDE" ] || command -v npm >/dev/null || missing+=(npm)
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing Debian packages: ${missing[*]}"
  local log=$LAB_CACHE/apt.log
  {
    apt-get -o DPkg::Lock::Timeout=120 update &&
      DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y \
        --no-install-recommends "${missing[@]}"
  } >"$log" 2>&1 </dev/null || die "install Debian packages ${missing[*]}: $(tail -n 1 "$log") (log: $log)"
}

# install_sshd unpacks Debian's openssh-server and its missing dependencies into
# the cache. Installing the package would start a server on the machine itself.
install_sshd() {
  local partial=$SSHD_ROOT.partial log=$SSHD_ROOT.log deb
  [ ! -d "$SSHD_ROOT" ] || return 0
  say 'downloading openssh-server'
  rm -rf "$partial" "$SSHD_ROOT.debs"
  mkdir -p "$partial" "$SSHD_ROOT.debs/partial"
  {
    apt-get -o DPkg::Lock::Timeout=120 update &&
      apt-get -o DPkg::Lock::Timeout=120 -o Dir::Cache::archives="$SSHD_ROOT.debs" install \
        --download-only --reinstall -y --no-install-recommends openssh-server &&
      for deb in "$SSHD_ROOT.debs"/*.deb; do dpkg-deb --extract "$deb" "$partial" || exit 1; done
  } >"$log" 2>&1 </dev/null || die "download openssh-server: $(tail -n 1 "$log") (log: $log)"
  [ -x "$partial/usr/sbin/sshd" ] || die "download openssh-server: the package has no sshd (log: $log)"
  rm -rf "$SSHD_ROOT.debs"
  mv -T "$partial" "$SSHD_ROOT"
}

install_go_programs() {
  local ctd=github.com/containerd/containerd/v2/cmd cni=github.com/containernetworking/plugins/plugins
  go_programs "$CONTAINERD_BIN" "$CONTAINERD_VERSION" $ctd/containerd $ctd/ctr $ctd/containerd-shim-runc-v2
  go_programs "$CNI_BIN" "$CNI_PLUGINS_VERSION" \
    $cni/main/bridge $cni/main/loopback $cni/ipam/host-local $cni/ipam/static
  go_programs "$GVISOR_BIN" "$GVISOR_VERSION" gvisor.dev/gvisor/runsc gvisor.dev/gvisor/shim
  go_programs "$REGISTRY_BIN" "$REGISTRY_VERSION" github.com/distribution/distribution/v3/cmd/registry
}

# go_programs DIR VERSION PACKAGE... builds the packages' programs into DIR.
go_programs() {
  local dir=$1 version=$2
  shift 2
  [ ! -d "$dir" ] || return 0
  say "building $(basename "$dir")"
  local partial=$dir.partial log=$dir.log
  rm -rf "$partial"
  # The caller's GOFLAGS are for the project; -mod=vendor, say, would fail here.
  (cd / && GOFLAGS='' CGO_ENABLED=0 GOBIN=$partial go install "${@/%/@$version}") >"$log" 2>&1 </dev/null ||
    die "build $(basename "$dir"): $(tail -n 1 "$log") (log: $log)"
  # containerd derives the name from the runtime's, io.containerd.runsc.v1.
  [ ! -e "$partial/shim" ] || mv "$partial/shim" "$partial/containerd-shim-runsc-v1"
  mv -T "$partial" "$dir"
}

# install_buildkitd builds the daemon for the comparison in `make bench`, in
# go.mod's version. `go install` refuses BuildKit's go.mod because of its exclude
# directives, so it is built in a module with a copy of bottle's go.mod.
install_buildkitd() {
  local partial=$BUILDKIT_BIN.partial log=$BUILDKIT_BIN.log module=$BUILDKIT_BIN.module
  [ ! -d "$BUILDKIT_BIN" ] || return 0
  say "building $(basename "$BUILDKIT_BIN")"
  rm -rf "$partial" "$module"
  mkdir -p "$partial" "$module"
  cp "$LAB_CHECKOUT/go.mod" "$LAB_CHECKOUT/go.sum" "$module"
  (cd "$module" && GOFLAGS='' CGO_ENABLED=0 go build -mod=mod -trimpath -ldflags '-s -w' -o "$partial" \
    github.com/moby/buildkit/cmd/buildkitd github.com/moby/buildkit/cmd/buildctl) >"$log" 2>&1 </dev/null ||
    die "build $(basename "$BUILDKIT_BIN"): $(tail -n 1 "$log") (log: $log)"
  rm -rf "$module"
  mv -T "$partial" "$BUILDKIT_BIN"
}

# install_tools builds this checkout's own tools, every time: Go's cache makes it
# fast.
install_tools() {
  local packages=(./scripts/lab.d/enter ./scripts/world ./scripts/mkimage ./scripts/demoagent)
  mkdir -p "$TOOLS_BIN"
  (cd "$LAB_CHECKOUT" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -o "$TOOLS_BIN/" "${packages[@]}") \
    >"$TOOLS_BIN.log" 2>&1 </dev/null ||
    die "build the lab's tools: $(grep -v '^#' "$TOOLS_BIN.log" | head -n 1) (log: $TOOLS_BIN.log)"
}

# fetch_modules downloads the modules that the project and its tests import. A
# module proxy is not reachable from inside the lab.
fetch_modules() {
  (cd "$LAB_CHECKOUT" && go list -e -deps -test ./...) >/dev/null 2>"$LAB_CACHE/modules.log" </dev/null ||
    die "download the project's Go modules: $(tail -n 1 "$LAB_CACHE/modules.log")"
}
