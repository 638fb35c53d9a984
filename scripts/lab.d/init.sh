#!/bin/bash
# The lab's init: PID 1 of its namespaces, started by scripts/lab (host_start).
# It sets up the lab's mounts and the networks of lab and world, starts the world
# and containerd, and writes "ok" or an error to file descriptor 3. Then it reaps
# processes. When it exits, the kernel ends every process of the lab.
set -euo pipefail
umask 022

doing='start'
# last LOG prints the last line of a log, without mount(8)'s hint.
last() { grep -v 'dmesg(1)' "$LAB_DIR/log/$1.log" | tail -n 1; }
trap 'echo "$doing: $(last init)" >&3' EXIT

# record_self records this process and its parent for scripts/lab, by their
# process ids on the machine, because /proc is still the machine's. The fields of
# /proc/PID/stat are described in proc(5); field 2, the name, may contain spaces.
record_self() {
  local stat self parent
  read -r stat </proc/self/stat
  self=${stat%% *}
  set -- ${stat##*) }
  parent=$2
  printf '%s %s\n' "$self" "${20}" >"$LAB_DIR/init.new"
  read -r stat <"/proc/$parent/stat"
  set -- ${stat##*) }
  printf '%s %s\n' "$parent" "${20}" >"$LAB_DIR/parent"
  mv "$LAB_DIR/init.new" "$LAB_DIR/init"
}

# mount_cgroups mounts the hierarchies again, which then show the cgroup
# namespace's root, so that only the lab's own cgroups are visible.
mount_cgroups() {
  local mounts type options point name
  mounts=$(awk '{ for (i = 7; i <= NF; i++) if ($i == "-") {
    if ($(i + 1) ~ /^cgroup2?$/) print $(i + 1), $(i + 3), $5; next } }' /proc/self/mountinfo)
  # Unmounted, not just covered: programs use the first entry in the mount table.
  umount --recursive --lazy /sys
  mount -t sysfs sysfs /sys
  # A unified hierarchy is mounted on the directory itself, others in a tmpfs on it.
  grep -q ' /sys/fs/cgroup$' <<<"$mounts" || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while read -r type options point; do
    mkdir -p "$point"
    if [ "$type" = cgroup2 ]; then
      mount -t cgroup2 cgroup2 "$point"
      enable_controllers "$point"
    else
      options=$(controllers "$options")
      mount -t cgroup -o "$options" cgroup "$point"
      # Programs expect each controller of a shared hierarchy under its own name.
      for name in ${options//,/ }; do
        [ -e "${point%/*}/$name" ] || [ "$name" = "$options" ] || ln -s "${point##*/}" "${point%/*}/$name"
      done
    fi
  done <<<"$mounts"
}

# controllers prints those of a version 1 hierarchy's super options that are
# controllers.
controllers() {
  tr , '\n' <<<"$1" | grep -vxE 'rw|ro|xattr|clone_children|noprefix|release_agent=.*' | paste -sd ,
}

enable_controllers() {
  local name
  for name in $(<"$1/cgroup.controllers"); do
    # Fails for controllers that are in use by a version 1 hierarchy or that need
    # a real-time configuration.
    { echo "+$name" >"$1/cgroup.subtree_control"; } 2>/dev/null || true
  done
}

# mount_files hides the machine's settings and state. Changes to /etc, /var/lib
# and /opt go to an overlay that ends with the lab.
mount_files() {
  local new=$LAB_DIR/new-run own=/run/lab lower
  mount -t proc proc /proc
  mkdir -p "$new"
  # noexec, as on Debian.
  mount -t tmpfs -o nosuid,nodev,noexec,mode=755 lab-run "$new"
  mkdir -p "$new/lab/disk" "$new/lab/ns" "$new/lab/s" "$new/lock" "$new/${LAB_DIR#/run/}"
  mount --bind "$LAB_DIR" "$new/${LAB_DIR#/run/}"
  mount --bind "$LAB_DISK" "$new/lab/disk"
  # -n: mount(8) keeps its table in /run, which this command covers.
  mount -n --move "$new" /run
  rmdir "$new"
  for lower in etc var/lib opt; do
    [ -d "/$lower" ] || continue
    mkdir -p "$own/overlay/$lower/upper" "$own/overlay/$lower/work"
    mount -t overlay -o "lowerdir=/$lower,upperdir=$own/overlay/$lower/upper,workdir=$own/overlay/$lower/work" \
      lab-overlay "/$lower"
  done
  rm -rf /etc/containerd /etc/cni /etc/bottle /opt/cni /var/lib/bottle /var/lib/cni
  rm -f /etc/resolv.conf /etc/hosts /etc/hostname
  echo 'nameserver 198.51.101.53' >/etc/resolv.conf
  printf '127.0.0.1\tlocalhost labhost\n::1\tlocalhost\n' >/etc/hosts
  echo labhost >/etc/hostname
  echo labhost >/proc/sys/kernel/hostname
  # The host trusts the world's certificates.
  mkdir -p /etc/ssl/certs
  cat "$LAB_CA_DIR/ca.pem" >>/etc/ssl/certs/ca-certificates.crt
  # The users of the world's sshd (world, startSSH): its privilege separation
  # user, the owner of the repositories, and another user. None has a password.
  mkdir -p /run/sshd
  grep -q '^sshd:' /etc/passwd || echo 'sshd:x:64022:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
  echo "labgit:x:64023:64023::$LAB_DIR/world/ssh/repos:/usr/bin/git-shell" >>/etc/passwd
  echo 'labother:x:64024:64023::/nonexistent:/usr/bin/git-shell' >>/etc/passwd
  echo 'labgit:x:64023:' >>/etc/group
  printf '%s:*:20000:0:99999:7:::\n' labgit labother >>/etc/shadow
  # For users of sudo, whose variables bottle does not follow.
  mkdir -p /etc/bottle
  sed -n -e 's|^CONTAINERD_ADDRESS=|address: |p' -e 's|^CONTAINERD_NAMESPACE=|namespace: |p' -e 's|^CNI_PATH=|cni_path: |p' \
    -e '1i version: 1' "$LAB_DIR/env" >/etc/bottle/config.yaml
  mkdir -p "$LAB_DISK" /var/lib/bottle
  mount --move $own/disk "$LAB_DISK"
  mount --bind "$LAB_DISK/bottle" /var/lib/bottle
}

world() { nsenter --net=/run/lab/ns/world -- "$@"; }

# make_network connects the host's network namespace (this one) and the world's.
# Neither has another link.
make_network() {
  local address
  : >/run/lab/ns/world
  unshare --net=/run/lab/ns/world true
  ip link set lo up
  world ip link set lo up
  ip link add uplink type veth peer name downlink netns /run/lab/ns/world
  # New namespaces may inherit the machine's forwarding.
  echo 0 >/proc/sys/net/ipv4/ip_forward
  world sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'
  # The world must receive leaked packets whatever their source address is.
  world sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done'
  ip address add 192.0.2.2/24 dev uplink
  ip link set uplink up
  world ip address add 192.0.2.1/24 dev downlink
  world ip link set downlink up
  ip route add default via 192.0.2.1
  if [ -e /proc/net/if_inet6 ]; then
    echo 0 >/proc/sys/net/ipv6/conf/all/forwarding
    ip address add 2001:db8:2::2/64 dev uplink nodad
    world ip address add 2001:db8:2::1/64 dev downlink nodad
    ip -6 route add default via 2001:db8:2::1
  fi
  for address in $(world_addresses); do
    case $address in
      *:*) [ ! -e /proc/net/if_inet6 ] || world ip address add "$address" dev lo nodad ;;
      *) world ip address add "$address" dev lo ;;
    esac
  done
}

# world_addresses prints the world's addresses except those of the link.
world_addresses() {
  "$LAB_TOOLS/world" addresses | grep -vxE '192\.0\.2\.1/[0-9]+|2001:db8:2::1/[0-9]+'
}

# wait_for SECONDS PID COMMAND... repeats the command until it succeeds, the
# process exits or the time is up.
wait_for() {
  local end=$((SECONDS + $1)) pid=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" || { wait "$pid" || echo "exited with status $?"; return 1; }
    [ $SECONDS -lt $end ] || { echo 'not ready in time'; return 1; }
    sleep 0.05
  done
}

# start_world and start_containerd close descriptor 3 in their processes, because
# scripts/lab waits for its end.
start_world() {
  local servers=(--git --sshd "$LAB_SSHD")
  [ -z "$LAB_MINIMAL" ] || servers=()
  nsenter --net=/run/lab/ns/world -- "$LAB_TOOLS/world" serve --state "$LAB_DIR/world" --ca "$LAB_CA_DIR" "${servers[@]}" \
    >"$LAB_DIR/log/world.log" 2>&1 3>&- &
  wait_for 30 $! test -e "$LAB_DIR/world/ready" || { last world; return 1; }
}

start_containerd() {
  containerd --config "$LAB_DIR/containerd.toml" >"$LAB_DIR/log/containerd.log" 2>&1 3>&- &
  echo $! >/run/lab/containerd.pid
  wait_for 60 $! ctr --address /run/lab/containerd.sock --connect-timeout 2s version ||
    { last containerd; return 1; }
}

doing='record the init process'
record_self
doing='mount the cgroups'
mount_cgroups
doing='mount the file systems'
mount_files
doing='set up the network'
make_network
doing='start the world'
start_world
doing='start containerd'
start_containerd
trap - EXIT
echo ok >&3
exec 3>&-
set +e
# A shell that runs as PID 1 reaps orphans while it waits.
while :; do
  sleep infinity &
  wait $!
done
