#!/bin/bash
# The node's init: PID 1 of its namespaces, started by kube.d/node. It sets up the node's
# mounts and network, starts the programs of the cluster, and writes "ok" or an error to
# file descriptor 3. When it exits, the kernel ends every process of the node.
set -euo pipefail
umask 022

NODE=10.88.0.2 WORLD=10.88.0.1 # of the link between them
PODS=10.244.0.0/24 SERVICES=10.96.0.0/16 DNS=10.96.0.10
LOG=$KUBE_RUN/log

doing='start'
trap 'echo "$doing: $(tail -n 1 "$LOG/init.log")" >&3' EXIT

# record_self records this process for kube.d/node, by its process id in the lab, because
# /proc is still the lab's.
record_self() {
  local stat
  read -r stat </proc/self/stat
  local self=${stat%% *}
  set -- ${stat##*) }
  printf '%s %s\n' "$self" "${20}" >"$KUBE_RUN/init"
}

mount_files() {
  local entry file dir
  mount --make-rshared /
  mount -t proc proc /proc
  # Directories that cannot be configured; the lab has some of them, too.
  for dir in /var/log /run/netns /run/containerd /var/lib/cni /var/lib/kubelet; do
    mkdir -p "$dir"
    mount -t tmpfs -o mode=755 tmpfs "$dir"
  done
  # kubelet sets these for the whole machine, unless they have its values already.
  mkdir -p "$KUBE_RUN/sysctl"
  for entry in vm/overcommit_memory:1 vm/panic_on_oom:0 kernel/panic:10 kernel/panic_on_oops:1 \
    kernel/keys/root_maxkeys:1000000 kernel/keys/root_maxbytes:25000000; do
    file=$KUBE_RUN/sysctl/$(tr / . <<<"${entry%:*}")
    printf '%s\n' "${entry#*:}" >"$file"
    mount --bind "$file" "/proc/sys/${entry%:*}"
  done
  echo node >/proc/sys/kernel/hostname
}

# make_network connects the node with the world, by IPv4. Pods have an IPv6 address too, and
# reach the node by it. The cluster does not know of it, as where an administrator has
# forgotten IPv6: the enforcer of the policies supports IPv4 only.
make_network() {
  ip link set lo up
  ip link add uplink type veth peer name node0 netns /run/lab/ns/world
  ip address add $NODE/24 dev uplink
  ip link set uplink up
  nsenter --net=/run/lab/ns/world -- sh -ec "echo 0 >/proc/sys/net/ipv4/conf/node0/rp_filter
    ip address add $WORLD/24 dev node0; ip link set node0 up"
  ip route add default via $WORLD
  echo 1 >/proc/sys/net/ipv4/ip_forward
  echo 1 >/proc/sys/net/ipv6/conf/all/forwarding # so that the node answers for what it cannot reach
  nft -f - <<END_NFT
table ip node {
  chain postrouting {
    type nat hook postrouting priority srcnat;
    ip saddr $PODS oifname uplink masquerade
  }
}
END_NFT
}

# start NAME ARGUMENT... starts a program in the background, with a log.
start() {
  local name=$1 program=$1
  shift
  [ "$name" != containerd ] || program=$LAB_KUBE_CONTAINERD/containerd
  PATH=$KUBE_DISK/bin:$PATH "$program" "$@" >"$LOG/$name.log" 2>&1 3>&- &
  echo $! >"$KUBE_RUN/$name.pid"
}

kubectl() { PATH=$KUBE_DISK/bin:$PATH command kubectl --kubeconfig "$KUBE_RUN/kubeconfig" "$@"; }

# wait_for SECONDS COMMAND... repeats the command until it succeeds.
wait_for() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>"$LOG/wait.err"; do
    [ $SECONDS -lt $end ] || { cat "$LOG/wait.err"; return 1; }
    sleep 0.1
  done
}

start_containerd() {
  local dir=$KUBE_DISK/containerd
  mkdir -p "$dir" "$KUBE_RUN/containerd" "$KUBE_RUN/s" "$KUBE_RUN/cni"
  printf '%s\n' 'binary_name = "runsc"' "root = \"$KUBE_RUN/runsc\"" '[runsc_config]' 'platform = "systrap"' \
    'network = "sandbox"' >"$KUBE_RUN/runsc.toml"
  cat >"$KUBE_RUN/containerd.toml" <<END_TOML
version = 3
root = "$dir"
state = "$KUBE_RUN/containerd"
imports = []
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.image-verifier.v1.bindir", "io.containerd.internal.v1.opt",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.differ.v1.erofs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
address = "$KUBE_RUN/containerd.sock"
[plugins."io.containerd.shim.v1.manager"]
socket_dir = "$KUBE_RUN/s"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "lab.test/helper:test"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["$LAB_KUBE_CNI", "$KUBE_DISK/cni"]
conf_dir = "$KUBE_RUN/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runsc]
runtime_type = "io.containerd.runsc.v1"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runsc.options]
TypeUrl = "io.containerd.runsc.v1.options"
ConfigPath = "$KUBE_RUN/runsc.toml"
END_TOML
  cat >"$KUBE_RUN/cni/10-pods.conflist" <<END_CNI
{"cniVersion": "1.0.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "dataDir": "$KUBE_RUN/cni-state",
   "ranges": [[{"subnet": "$PODS"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "ipv6"}]}
END_CNI
  start containerd --config "$KUBE_RUN/containerd.toml"
}

# start_api starts what keeps the cluster's state. The API creates its certificate, which
# is its own authority, in the directory.
start_api() {
  local token
  mkdir -p "$KUBE_DISK/etcd" "$KUBE_RUN/tls"
  chmod 0700 "$KUBE_DISK/etcd"
  start etcd --data-dir "$KUBE_DISK/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380
  token=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
  printf '%s,admin,admin,"system:masters"\n' "$token" >"$KUBE_RUN/tokens"
  ssh-keygen -q -t rsa -b 2048 -m PEM -N '' -f "$KUBE_RUN/sa.key"
  start kube-apiserver --advertise-address $NODE --etcd-servers http://127.0.0.1:2379 --secure-port 6443 \
    --cert-dir "$KUBE_RUN/tls" --token-auth-file "$KUBE_RUN/tokens" --authorization-mode RBAC \
    --service-cluster-ip-range $SERVICES --service-account-issuer https://kubernetes.default.svc \
    --service-account-key-file "$KUBE_RUN/sa.key" --service-account-signing-key-file "$KUBE_RUN/sa.key" \
    --kubelet-preferred-address-types InternalIP --allow-privileged=true
  wait_for 60 test -s "$KUBE_RUN/tls/apiserver.crt"
  cat >"$KUBE_RUN/kubeconfig" <<END_CONFIG
apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://$NODE:6443", certificate-authority: $KUBE_RUN/tls/apiserver.crt}}]
users: [{name: admin, user: {token: "$token"}}]
contexts: [{name: lab, context: {cluster: lab, user: admin}}]
current-context: lab
END_CONFIG
}

start_node() {
  cat >"$KUBE_RUN/kubelet.yaml" <<END_KUBELET
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
maxOpenFiles: 20000
podPidsLimit: 4096
containerRuntimeEndpoint: unix://$KUBE_RUN/containerd.sock
podLogsDir: /var/log/pods
volumePluginDir: $KUBE_DISK/plugins
clusterDNS: [$DNS]
clusterDomain: cluster.local
serverTLSBootstrap: false
nodeStatusUpdateFrequency: 2s
shutdownGracePeriod: 0s
evictionHard: {memory.available: 64Mi, nodefs.available: 1%, imagefs.available: 1%}
END_KUBELET
  start kubelet --config "$KUBE_RUN/kubelet.yaml" --kubeconfig "$KUBE_RUN/kubeconfig" --root-dir "$KUBE_DISK/kubelet" \
    --cert-dir "$KUBE_RUN/kubelet-tls" --hostname-override node --node-ip $NODE --v 2
  start kube-controller-manager --kubeconfig "$KUBE_RUN/kubeconfig" --leader-elect=false --flex-volume-plugin-dir "$KUBE_DISK/plugins" \
    --service-account-private-key-file "$KUBE_RUN/sa.key" --root-ca-file "$KUBE_RUN/tls/apiserver.crt"
  start kube-scheduler --kubeconfig "$KUBE_RUN/kubeconfig" --leader-elect=false
  start kube-proxy --kubeconfig "$KUBE_RUN/kubeconfig" --hostname-override node --proxy-mode nftables \
    --conntrack-max-per-core=0 --cluster-cidr "$PODS"
}

doing='record the init process'
record_self
doing='mount the file systems'
mount_files
doing='set up the network'
make_network
doing='start containerd'
start_containerd
doing='start the API'
start_api
wait_for 90 kubectl get --raw /readyz
doing='start the node'
start_node
doing='wait for the node'
wait_for 60 kubectl wait --for condition=Ready --timeout=1s node/node
trap - EXIT
echo ok >&3
exec 3>&-
set +e
# A shell that runs as PID 1 reaps orphans while it waits.
while :; do
  sleep infinity &
  wait $!
done
