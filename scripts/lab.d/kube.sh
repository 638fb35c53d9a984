# Sourced by scripts/lab. Installs what the test cluster of scripts/kube runs
# (--with-kube): the programs of Kubernetes, a containerd with its interface for
# kubelet, the network plugin of the pods, and what enforces NetworkPolicies.
# shellcheck shell=bash

KUBE_SOURCE=$LAB_CHECKOUT/scripts/kube.d/cluster
KUBE_BIN=$LAB_CACHE/kube-$(cat "$KUBE_SOURCE"/*.go "$KUBE_SOURCE/go.mod" "$KUBE_SOURCE/go.sum" | sha256sum | cut -c1-12)
KUBE_CONTAINERD_BIN=$LAB_CACHE/containerd-cri-$CONTAINERD_VERSION
KUBE_CNI_BIN=$LAB_CACHE/cni-ptp-$CNI_PLUGINS_VERSION
NETFILTER_ROOT=$LAB_CACHE/netfilter-$(printf %s "$(. /etc/os-release && echo "${VERSION_CODENAME-}") 1" | sha256sum | cut -c1-12)

install_kube() {
  local cni=github.com/containernetworking/plugins/plugins
  go_program "$KUBE_CONTAINERD_BIN" "$CONTAINERD_VERSION" no_tracing,no_devmapper,no_zfs \
    github.com/containerd/containerd/v2/cmd/containerd
  go_program "$KUBE_CNI_BIN" "$CNI_PLUGINS_VERSION" '' $cni/main/ptp $cni/ipam/host-local $cni/main/loopback
  [ -d "$KUBE_BIN" ] || step 'building Kubernetes (some 20 minutes of processor time)' "$KUBE_BIN.log" kube_build
}

# kube_build builds one program with all of Kubernetes, and keeps nothing else: the
# compiled packages are 4 GB.
kube_build() {
  local partial=$KUBE_BIN.partial version
  version=$(awk '$1 == "k8s.io/kubernetes" { print $2 }' "$KUBE_SOURCE/go.mod")
  rm -rf "$partial"
  mkdir -p "$partial"
  (cd "$KUBE_SOURCE" && GOFLAGS=${LAB_KUBE_GOFLAGS-} GOCACHE=$partial/cache CGO_ENABLED=0 go build -v -trimpath \
    -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$partial/cluster" .)
  rm -rf "$partial/cache"
  mv -T "$partial" "$KUBE_BIN"
}

# install_netfilter unpacks Debian's iptables and ipset, and the libraries that are
# missing. Installed, they would change the machine's alternatives.
install_netfilter() {
  [ -d "$NETFILTER_ROOT" ] || step 'downloading iptables and ipset' "$NETFILTER_ROOT.log" netfilter_download
}

netfilter_download() {
  local partial=$NETFILTER_ROOT.partial deb name
  rm -rf "$partial"
  mkdir -p "$partial/debs/partial" "$partial/bin"
  apt-get -o DPkg::Lock::Timeout=120 update
  apt-get -o DPkg::Lock::Timeout=120 -o Dir::Cache::archives="$partial/debs" install \
    --download-only --reinstall -y --no-install-recommends iptables ipset
  for deb in "$partial/debs"/*.deb; do dpkg-deb --extract "$deb" "$partial"; done
  rm -rf "$partial/debs"
  for name in iptables iptables-save iptables-restore; do
    netfilter_wrapper "$partial" "$name" xtables-nft-multi
  done
  netfilter_wrapper "$partial" ipset ipset
  mv -T "$partial" "$NETFILTER_ROOT"
}

# netfilter_wrapper ROOT NAME PROGRAM creates bin/NAME, which runs the program under
# that name with the unpacked libraries.
netfilter_wrapper() {
  local libraries
  libraries=$NETFILTER_ROOT/usr/lib/$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null || echo "$(uname -m)-linux-gnu")
  cat >"$1/bin/$2" <<END_WRAPPER
#!/bin/bash
export LD_LIBRARY_PATH=$libraries XTABLES_LIBDIR=$libraries/xtables
exec -a $2 $NETFILTER_ROOT$([ -x "$1/usr/sbin/$3" ] && echo /usr)/sbin/$3 "\$@"
END_WRAPPER
  chmod 0755 "$1/bin/$2"
}

# kube_env writes what kube.d/node needs, besides the environment of every command inside
# the lab.
kube_env() {
  local archive agent=
  for archive in "${ARCHIVES[@]}"; do
    case $archive in */claude-bottle-latest-*) agent=$archive ;; esac
  done
  cat >"$LAB_DIR/kube-env" <<END_ENV
export LAB_CHECKOUT=$LAB_CHECKOUT LAB_TOOLS=$TOOLS_BIN LAB_KUBE_BIN=$KUBE_BIN LAB_KUBE_CONTAINERD=$KUBE_CONTAINERD_BIN
export LAB_KUBE_CNI=$KUBE_CNI_BIN LAB_KUBE_NETFILTER=$NETFILTER_ROOT LAB_KUBE_AGENT=$agent
END_ENV
}
