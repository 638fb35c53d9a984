#!/bin/bash
# The lab's init: PID 1 of its namespaces, started by scripts/lab (host_start).
# It makes the lab's view of the machine, its network and the world's, starts
# the world and containerd, answers "ok" or what went wrong on file descriptor
# 3, and then stays to reap. When it ends, everything of the lab ends with it.
set -euo pipefail
umask 022

doing='start'
# last prints the last line of a log, but not mount(8)'s hint below its errors.
last() { grep -v 'dmesg(1)' "$LAB_DIR/log/$1.log" | tail -n 1; }
trap 'echo "$doing: $(last init)" >&3' EXIT

# /proc is still the machine's here: these are the ids by which scripts/lab
# knows this process and its parent. Fields of /proc/PID/stat are in proc(5);
# the name, field 2, may hold spaces.
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

# view_cgroups leaves the lab's own cgroups as the only ones to be seen: the
# hierarchies are mounted anew, and show the cgroup namespace's root.
view_cgroups() {
  local mounts type options point name
  mounts=$(awk '{ for (i = 7; i <= NF; i++) if ($i == "-") {
    if ($(i + 1) ~ /^cgroup2?$/) print $(i + 1), $(i + 3), $5; next } }' /proc/self/mountinfo)
  # Programs read the list of mounts, where the covered ones would come first.
  umount --recursive --lazy /sys
  mount -t sysfs sysfs /sys
  # One cgroup2 hierarchy is mounted on the folder itself, others on folders in a tmpfs.
  grep -q ' /sys/fs/cgroup$' <<<"$mounts" || mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  while read -r type options point; do
    mkdir -p "$point"
    if [ "$type" = cgroup2 ]; then
      mount -t cgroup2 cgroup2 "$point"
      enable_controllers "$point"
    else
      options=$(controllers "$options")
      mount -t cgroup -o "$options" cgroup "$point"
      # Of two controllers in one hierarchy each is looked for by its own name.
      for name in ${options//,/ }; do
        [ -e "${point%/*}/$name" ] || [ "$name" = "$options" ] || ln -s "${point##*/}" "${point%/*}/$name"
      done
    fi
  done <<<"$mounts"
}

# controllers prints which of a version 1 hierarchy's super options name it.
controllers() {
  tr , '\n' <<<"$1" | grep -vxE 'rw|ro|xattr|clone_children|noprefix|release_agent=.*' | paste -sd ,
}

enable_controllers() {
  local name
  for name in $(<"$1/cgroup.controllers"); do
    # Refused for those that a version 1 hierarchy has, or that need real-time set-up.
    { echo "+$name" >"$1/cgroup.subtree_control"; } 2>/dev/null || true
  done
}

# view_files hides the machine's own settings and state: changes to /etc,
# /var/lib and /opt go to a layer that ends with the lab.
view_files() {
  local new=$LAB_DIR/new-run own=/run/lab lower
  mount -t proc proc /proc
  mkdir -p "$new"
  # noexec: as Debian mounts /run.
  mount -t tmpfs -o nosuid,nodev,noexec,mode=755 lab-run "$new"
  mkdir -p "$new/lab/disk" "$new/lab/ns" "$new/lab/s" "$new/lock" "$new/${LAB_DIR#/run/}"
  mount --bind "$LAB_DIR" "$new/${LAB_DIR#/run/}"
  mount --bind "$LAB_DISK" "$new/lab/disk"
  # -n: mount(8) would look for its table in the folder that it has just covered.
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
  # Whom the world's sshd runs for (world, startSSH): its own user, which has no
  # rights, and the one who owns the repositories. No password is theirs.
  mkdir -p /run/sshd
  grep -q '^sshd:' /etc/passwd || echo 'sshd:x:64022:65534::/run/sshd:/usr/sbin/nologin' >>/etc/passwd
  echo "labgit:x:64023:64023::$LAB_DIR/world/ssh/repos:/usr/bin/git-shell" >>/etc/passwd
  echo 'labother:x:64024:64023::/nonexistent:/usr/bin/git-shell' >>/etc/passwd
  echo 'labgit:x:64023:' >>/etc/group
  printf '%s:*:20000:0:99999:7:::\n' labgit labother >>/etc/shadow
  mkdir -p "$LAB_DISK" /var/lib/bottle
  mount --move $own/disk "$LAB_DISK"
  mount --bind "$LAB_DISK/bottle" /var/lib/bottle
}

world() { nsenter --net=/run/lab/ns/world -- "$@"; }

# make_network joins the host's namespace (this one) to the world's by one link;
# neither has another.
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
  # The world sees every packet that leaks, whatever source it bears.
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

# world_addresses prints what the world holds beside its end of the link.
world_addresses() {
  "$LAB_TOOLS/world" addresses | grep -vxE '192\.0\.2\.1/[0-9]+|2001:db8:2::1/[0-9]+'
}

# wait_for SECONDS PID COMMAND... tries the command until it succeeds, while the
# process lives.
wait_for() {
  local end=$((SECONDS + $1)) pid=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" || { wait "$pid" || echo "ended with status $?"; return 1; }
    [ $SECONDS -lt $end ] || { echo 'not ready in time'; return 1; }
    sleep 0.05
  done
}

# start_world and start_containerd set $! apart from descriptor 3, on which
# scripts/lab waits.
start_world() {
  nsenter --net=/run/lab/ns/world -- "$LAB_TOOLS/world" serve --state "$LAB_DIR/world" --ca "$LAB_CA_DIR" --sshd "$LAB_SSHD" \
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
view_cgroups
doing='make the view of the file system'
view_files
doing='make the network'
make_network
doing='start the world'
start_world
doing='start containerd'
start_containerd
trap - EXIT
echo ok >&3
exec 3>&-
set +e
# A shell as PID 1 reaps whatever is handed to it while it waits.
while :; do
  sleep infinity &
  wait $!
done
