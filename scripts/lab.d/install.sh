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
  if ! flock -n 8; then
    say 'waiting for the installation of another lab'
    flock -w 3600 8 || die "timed out after an hour waiting for the lock $LAB_CACHE/lock"
  fi
  find_go
  [ -d "$GVISOR_BIN" ] || say "the first run downloads and builds for some minutes; the results stay in $LAB_CACHE"
  # Downloads need certificates.
  [ -s /etc/ssl/certs/ca-certificates.crt ] || install_packages
  strand install_debian
  strand install_go
  strands_wait
  images_build
  exec 8>&-
}

# install_debian installs what comes from Debian and npm.
install_debian() {
  install_packages
  [ -z "$MINIMAL" ] || return 0
  install_sshd
  debian_layer
  sudo_root
  [ -z "$WITH_BASE" ] || base_layer
  [ -z "$WITH_HOSTS" ] || host_layers
  [ -z "$WITH_KUBE" ] || install_netfilter
  [ -z "$WITH_CLAUDE$WITH_CLIENTS$WITH_TOOLS" ] || claude_layer
  [ -z "$WITH_TOOLS" ] || tools_layer
  [ -z "$WITH_CLIENTS" ] || clients_layer
  [ -z "$WITH_AGENTS" ] || agents_layers
}

# install_go builds what is written in Go.
install_go() {
  download_modules &
  install_tools
  [ -z "$WITH_BOTTLE" ] || install_bottle
  each_go_program go_program
  [ -z "$WITH_BUILDKITD" ] || install_buildkitd
  [ -z "$WITH_KUBE" ] || install_kube
  [ -n "$MINIMAL" ] || download_test_modules
  wait
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
  local missing=() entry entries=(runc:runc nft:nftables ip:iproute2 unshare:util-linux)
  [ -n "$MINIMAL" ] || entries+=(zstd:zstd debootstrap:debootstrap git:git ssh:openssh-client rpm:rpm bzip2:bzip2)
  [ -z "$WITH_CLAUDE$WITH_CLIENTS$WITH_TOOLS$WITH_AGENTS" ] || entries+=(npm:npm)
  for entry in "${entries[@]}"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
  done
  # busybox and busybox-static both own /bin/busybox; only one is static.
  [ -n "$(dpkg-query -W -f '${Installed-Size}' busybox-static 2>/dev/null)" ] || missing+=(busybox-static)
  [ -s /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  [ ${#missing[@]} -gt 0 ] || return 0
  step "installing Debian packages: ${missing[*]}" "$LAB_CACHE/apt.log" apt_install "${missing[@]}"
}

apt_install() {
  apt-get -o DPkg::Lock::Timeout=120 update
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@"
}

# install_sshd unpacks Debian's openssh-server and its missing dependencies into
# the cache. Installing the package would start a server on the machine itself.
install_sshd() {
  [ ! -d "$SSHD_ROOT" ] || return 0
  step 'downloading openssh-server' "$SSHD_ROOT.log" sshd_download
}

sshd_download() {
  local partial=$SSHD_ROOT.partial deb
  rm -rf "$partial" "$SSHD_ROOT.debs"
  mkdir -p "$partial" "$SSHD_ROOT.debs/partial"
  apt-get -o DPkg::Lock::Timeout=120 update
  apt-get -o DPkg::Lock::Timeout=120 -o Dir::Cache::archives="$SSHD_ROOT.debs" install \
    --download-only --reinstall -y --no-install-recommends openssh-server
  for deb in "$SSHD_ROOT.debs"/*.deb; do dpkg-deb --extract "$deb" "$partial"; done
  [ -x "$partial/usr/sbin/sshd" ] || { echo 'the package has no sshd'; return 1; }
  rm -rf "$SSHD_ROOT.debs"
  mv -T "$partial" "$SSHD_ROOT"
}

# each_go_program FUNCTION calls FUNCTION DIR VERSION TAGS PACKAGE... for all
# programs that are installed from the module proxy.
each_go_program() {
  local ctd=github.com/containerd/containerd/v2/cmd cni=github.com/containernetworking/plugins/plugins
  # The tags leave out plugins that containerd.toml disables.
  "$1" "$CONTAINERD_BIN" "$CONTAINERD_VERSION" no_cri,no_tracing,no_devmapper,no_zfs \
    $ctd/containerd $ctd/ctr $ctd/containerd-shim-runc-v2
  "$1" "$GVISOR_BIN" "$GVISOR_VERSION" '' gvisor.dev/gvisor/runsc gvisor.dev/gvisor/shim
  "$1" "$CNI_BIN" "$CNI_PLUGINS_VERSION" '' \
    $cni/main/bridge $cni/main/loopback $cni/ipam/host-local $cni/ipam/static
  [ -n "$MINIMAL" ] ||
    "$1" "$REGISTRY_BIN" "$REGISTRY_VERSION" '' github.com/distribution/distribution/v3/cmd/registry
}

# go_program DIR VERSION TAGS PACKAGE... builds the packages' programs into DIR.
go_program() {
  [ ! -d "$1" ] || return 0
  step "building $(basename "$1")" "$1.log" go_program_build "$@"
}

go_program_build() {
  local dir=$1 partial=$1.partial
  rm -rf "$partial"
  GOBIN=$partial go_install -v "${@:2}"
  # containerd derives the name from the runtime's, io.containerd.runsc.v1.
  [ ! -e "$partial/shim" ] || mv "$partial/shim" "$partial/containerd-shim-runsc-v1"
  mv -T "$partial" "$dir"
}

# go_install FLAG VERSION TAGS PACKAGE... The caller's GOFLAGS are for the project;
# -mod=vendor, say, would fail here.
go_install() {
  local flag=$1 version=$2 tags=$3
  shift 3
  (cd / && GOFLAGS='' CGO_ENABLED=0 go install "$flag" -trimpath -ldflags '-s -w' -tags "$tags" "${@/%/@$version}")
}

# download_modules downloads the modules of the programs in the background, while
# the first of them are compiled: with -n, the go command loads packages only. An
# error is ignored here, because the build reports it.
download_modules() {
  [ ! -d "$GVISOR_BIN" ] || return 0
  [ -z "$WITH_BOTTLE" ] || (cd "$LAB_CHECKOUT" && go build -n -o /dev/null ./cmd/bottle) >/dev/null 2>&1 || true
  each_go_program go_program_download
}

go_program_download() {
  [ -d "$1" ] || GOBIN=$1 go_install -n "${@:2}" >/dev/null 2>&1 </dev/null || true
}

# install_bottle builds bottle itself.
install_bottle() {
  step 'building bottle' "$LAB_CACHE/bottle-$LAB_ID.log" \
    env -u MAKEFLAGS -u MAKELEVEL GOFLAGS="${GOFLAGS-} -v" make --no-print-directory -C "$LAB_CHECKOUT" build
}

# install_buildkitd builds the daemon for the comparison in `make bench`, in
# go.mod's version. `go install` refuses BuildKit's go.mod because of its exclude
# directives, so it is built in a module with a copy of bottle's go.mod.
install_buildkitd() {
  [ ! -d "$BUILDKIT_BIN" ] || return 0
  step "building $(basename "$BUILDKIT_BIN")" "$BUILDKIT_BIN.log" buildkitd_build
}

buildkitd_build() {
  local partial=$BUILDKIT_BIN.partial module=$BUILDKIT_BIN.module
  rm -rf "$partial" "$module"
  mkdir -p "$partial" "$module"
  cp "$LAB_CHECKOUT/go.mod" "$LAB_CHECKOUT/go.sum" "$module"
  (cd "$module" && GOFLAGS='' CGO_ENABLED=0 go build -v -mod=mod -trimpath -ldflags '-s -w' -o "$partial" \
    github.com/moby/buildkit/cmd/buildkitd github.com/moby/buildkit/cmd/buildctl)
  rm -rf "$module"
  mv -T "$partial" "$BUILDKIT_BIN"
}

# install_tools builds this checkout's own tools. Go's cache makes it fast except
# for the first time.
install_tools() {
  if [ ! -d "$TOOLS_BIN" ]; then
    step "building the lab's tools" "$TOOLS_BIN.log" tools_build
  else
    tools_build >"$TOOLS_BIN.log" 2>&1 </dev/null ||
      die "building the lab's tools: $(log_error "$TOOLS_BIN.log") (log: $TOOLS_BIN.log)"
  fi
}

tools_build() {
  (cd "$LAB_CHECKOUT" && CGO_ENABLED=0 go build -v -buildvcs=false -trimpath -o "$TOOLS_BIN/" \
    ./scripts/lab.d/enter ./scripts/world ./scripts/mkimage ./scripts/demoagent)
}

# download_test_modules downloads the modules that the project and its tests
# import. A module proxy is not reachable from inside the lab.
download_test_modules() {
  (cd "$LAB_CHECKOUT" && go list -e -deps -test ./...) >/dev/null 2>"$LAB_CACHE/modules.log" </dev/null ||
    die "download the project's Go modules: $(tail -n 1 "$LAB_CACHE/modules.log")"
}
