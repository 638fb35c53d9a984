# Sourced by kube.d/node. The programs of the cluster, and the images of its pods.
# shellcheck shell=bash

# LAB_KUBE_* are of the lab's environment (lab.d/host.sh).
programs_link() {
  local name
  for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl netpol; do
    ln -sfn "$LAB_KUBE_BIN/cluster" "$KUBE_DISK/bin/$name"
  done
  for name in "$LAB_KUBE_NETFILTER"/bin/*; do ln -sfn "$name" "$KUBE_DISK/bin/"; done
}

# images_make builds the images of this checkout: bottle's own as scripts/image does it, and
# that of the cluster's own pods.
images_make() {
  local dir=$KUBE_DISK/images
  mkdir -p "$dir/bottle" "$dir/helper"
  cp "$LAB_CHECKOUT/bin/bottle" "$dir/bottle/bottle"
  (cd "$LAB_CHECKOUT" && go build -buildvcs=false -trimpath -ldflags '-s -w' -o "$dir/helper/helper" ./scripts/kube.d/helper)
  mkdir -p "$KUBE_DISK/cni"
  ln -sfn "$dir/helper/helper" "$KUBE_DISK/cni/ipv6"
  "$LAB_TOOLS/mkimage" --out "$dir/bottle.tar" --ref lab.test/bottle:test --layer-dir "$dir/bottle" --user 65534:65534 -- /bottle
  "$LAB_TOOLS/mkimage" --out "$dir/helper.tar" --ref lab.test/helper:test --layer-dir "$dir/helper" --user 65534:65534 -- /helper
}
