# Sourced by scripts/lab. Starts, shows and removes the lab's host: an init
# process (lab.d/init.sh) in its own namespaces and cgroups.
# shellcheck shell=bash

# start_time PID prints when the process started, in clock ticks since boot:
# field 22 of /proc/PID/stat (proc(5)). Field 2, the name, may contain spaces.
start_time() {
  local stat
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  set -- ${stat##*) }
  printf '%s\n' "${20}"
}

# recorded FILE prints the process id in the record FILE ("pid start-time") if
# that process still exists.
recorded() {
  local pid start
  { read -r pid start <"$1"; } 2>/dev/null || return 1
  [ "$(start_time "$pid")" = "$start" ] || return 1
  printf '%s\n' "$pid"
}

host_ready() { [ -e "$LAB_DIR/ready" ] && recorded "$LAB_DIR/init" >/dev/null; }

host_start() {
  say 'starting'
  mkdir -p "$LAB_DIR/log" "$LAB_PROGRAMS/bin" "$LAB_PROGRAMS/sbin" "$LAB_DISK/containerd" "$LAB_DISK/bottle"
  chmod 0700 "$LAB_DISK"
  cp "$TOOLS_BIN/enter" "$LAB_PROGRAMS/enter"
  [ -z "$MINIMAL" ] || : >"$LAB_DIR/minimal"
  cgroups_make
  shims_write
  config_write
  env_write
  wrapper_write bottle "$LAB_CHECKOUT/bin/bottle"
  wrapper_write ctr "$CONTAINERD_BIN/ctr"
  local answer=
  # init.sh writes one line, "ok" or an error, then closes the pipe. The pipe is
  # also closed when init.sh exits.
  read -r -t 120 answer < <(init_run) || true
  if [ "$answer" != ok ]; then
    say "start the lab: ${answer:-init exited or timed out: $(tail -n 1 "$LAB_DIR/log/init.log")}"
    # host_remove deletes the logs.
    rm -rf "$LAB_CACHE/log-$LAB_ID"
    cp -r "$LAB_DIR/log" "$LAB_CACHE/log-$LAB_ID"
    host_remove
    die "the lab did not start (logs: $LAB_CACHE/log-$LAB_ID)"
  fi
  : >"$LAB_DIR/ready"
}

# init_run turns into the parent of the lab's init, detached from the terminal.
init_run() {
  local dir
  # Before unshare: the cgroup of the first process becomes the root of the
  # cgroup namespace.
  while read -r dir; do echo $BASHPID >"$dir/cgroup.procs"; done <"$LAB_DIR/cgroup-roots"
  PATH=$(inside_path):$PATH
  export LAB_TOOLS=$TOOLS_BIN LAB_CA_DIR=$CA_DIR LAB_SSHD=$SSHD_ROOT LAB_MINIMAL=$MINIMAL
  # Then into the leaf cgroups, the parent too: a version 2 cgroup that contains
  # processes cannot delegate controllers to its children (cgroups(7)).
  # shellcheck disable=SC2016
  exec setsid unshare --cgroup bash -ec '
    while read -r dir; do echo $$ >"$dir/cgroup.procs"; done <"$LAB_DIR/cgroups"
    exec unshare --fork --pid --mount --net --uts --ipc --propagation private bash "$LAB_SCRIPTS/init.sh"' \
    3>&1 >>"$LAB_DIR/log/init.log" 2>&1 </dev/null 9>&-
}

# host_remove stops this checkout's lab, or what is left of it, and removes its
# files and cgroups.
host_remove() {
  local pid parent
  if pid=$(recorded "$LAB_DIR/init"); then
    parent=$(recorded "$LAB_DIR/parent") || parent=
    # The kernel then kills every process of the PID namespace.
    kill -KILL "$pid"
    wait_gone "$LAB_DIR/init" || die "the lab's init (process $pid) did not exit within 20 seconds"
    [ -z "$parent" ] || wait_gone "$LAB_DIR/parent" || die "the parent of the lab's init (process $parent) did not exit"
  fi
  cgroups_remove
  rm -rf --one-file-system "$LAB_DIR" "$LAB_DISK"
  # Shared with other checkouts' labs; the last one removes them.
  rmdir "${LAB_DIR%/*}" "${LAB_DISK%/*}" 2>/dev/null || true
}

# wait_gone RECORD waits up to 20 seconds for the recorded process to exit.
wait_gone() {
  local try
  for ((try = 0; try < 400; try++)); do
    recorded "$1" >/dev/null || return 0
    sleep 0.05
  done
  return 1
}

# cgroup_mounts prints "TYPE MOUNTPOINT" of each cgroup hierarchy of the machine.
cgroup_mounts() {
  awk '{ for (i = 7; i <= NF; i++) if ($i == "-") { if ($(i + 1) ~ /^cgroup2?$/) print $(i + 1), $5; next } }' \
    /proc/self/mountinfo
}

# cgroups_make creates a top-level cgroup for the lab in each hierarchy.
cgroups_make() {
  local type top dir name
  : >"$LAB_DIR/cgroup-roots"
  : >"$LAB_DIR/cgroups"
  while read -r type top; do
    dir=$top/$LAB_CGROUP
    mkdir -p "$dir" 2>/dev/null || continue
    if [ "$type" = cgroup2 ]; then
      # A cgroup can delegate controllers only if it contains no processes
      # (cgroups(7)), so the lab's processes are in a leaf.
      for name in $(<"$top/cgroup.controllers"); do
        { echo "+$name" >"$top/cgroup.subtree_control"; } 2>/dev/null || true
      done
      mkdir -p "$dir/init"
      echo "$dir/init" >>"$LAB_DIR/cgroups"
    else
      # No process can join before both are set (cpuset(7)).
      for name in cpuset.cpus cpuset.mems; do
        [ ! -e "$dir/$name" ] || cat "$top/$name" >"$dir/$name"
      done
      echo "$dir" >>"$LAB_DIR/cgroups"
    fi
    echo "$dir" >>"$LAB_DIR/cgroup-roots"
  done < <(cgroup_mounts)
}

cgroups_remove() {
  local type top try
  while read -r type top; do
    [ -d "$top/$LAB_CGROUP" ] || continue
    # A cgroup may stay busy for a moment after its last process has exited.
    for ((try = 0; try < 100; try++)); do
      find "$top/$LAB_CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null && break
      [ -d "$top/$LAB_CGROUP" ] || break
      sleep 0.05
    done
    [ ! -d "$top/$LAB_CGROUP" ] || die "remove cgroup $top/$LAB_CGROUP: still in use"
  done < <(cgroup_mounts)
}

# inside_path prints the directories that precede PATH inside the lab. The last
# is Go's, which sudo's PATH may lack.
inside_path() {
  printf %s "$LAB_PROGRAMS/sbin:$CONTAINERD_BIN:$GVISOR_BIN:$REGISTRY_BIN:$BUILDKIT_BIN:$LAB_CHECKOUT/bin:$(dirname "$(command -v go)")"
}

# shims_write installs a wrapper for runsc's shim on machines without
# CAP_SYS_RESOURCE, bit 24 of the effective set (capabilities(7)).
shims_write() {
  local effective
  effective=$(awk '$1 == "CapEff:" { print $2 }' /proc/self/status)
  (((16#$effective >> 24) & 1)) && return 0
  cp "$LAB_CHECKOUT/scripts/shim-wrapper" "$LAB_PROGRAMS/sbin/containerd-shim-runsc-v1"
  ln -s "$GVISOR_BIN/containerd-shim-runsc-v1" "$LAB_PROGRAMS/sbin/real-shim"
  echo '0 1 4294967295' >"$LAB_PROGRAMS/sbin/uid_map"
}

config_write() {
  sed -e "s|@DISK@|$LAB_DISK|g" -e "s|@DIR@|$LAB_DIR|g" "$LAB_SCRIPTS/containerd.toml" >"$LAB_DIR/containerd.toml"
  mkdir -p "$LAB_DIR/hosts"
  printf '%s\n' 'binary_name = "runsc"' 'root = "/run/lab/runsc"' '[runsc_config]' 'platform = "systrap"' \
    'network = "sandbox"' >"$LAB_DIR/runsc.toml"
}

# env_write writes the environment for commands inside the lab. The format is
# documented in lab.d/enter.
env_write() {
  cat >"$LAB_DIR/env" <<END
PATH+=$(inside_path)
CONTAINERD_ADDRESS=/run/lab/containerd.sock
CONTAINERD_NAMESPACE=$LAB_NAMESPACE
CNI_PATH=$CNI_BIN
LAB_ID=$LAB_ID
LAB_STATE=$LAB_DIR
LAB_CACHE=$LAB_CACHE
LAB_CA=$CA_DIR/ca.pem
LAB_VICTIMS=$LAB_DIR/world/world.log
LAB_WORLD_NETNS=/run/lab/ns/world
LAB_RUNSC_CONFIG=$LAB_DIR/runsc.toml
LAB_SUDO_ROOT=$SUDO_ROOT
GOFLAGS=-buildvcs=false
CGO_ENABLED=0
GOPROXY=off
GOTOOLCHAIN=local
-XDG_RUNTIME_DIR
-DBUS_SESSION_BUS_ADDRESS
-http_proxy
-https_proxy
-all_proxy
-no_proxy
-HTTP_PROXY
-HTTPS_PROXY
-ALL_PROXY
-NO_PROXY
END
}

# wrapper_write NAME PROGRAM creates the command NAME, which runs PROGRAM inside
# the lab.
wrapper_write() {
  printf '#!/bin/sh\nexec %q %q %q "$@"\n' "$LAB_PROGRAMS/enter" "$LAB_DIR" "$2" >"$LAB_PROGRAMS/bin/$1"
  chmod 0755 "$LAB_PROGRAMS/bin/$1"
}

cmd_status() {
  [ $# = 0 ] || die "unknown argument $1 (scripts/lab help)"
  echo "checkout: $LAB_CHECKOUT"
  echo "state: $LAB_DIR"
  echo "disk: $LAB_DISK"
  echo "cache: $LAB_CACHE"
  local pid
  if ! pid=$(recorded "$LAB_DIR/init"); then
    [ -e "$LAB_DIR" ] && echo 'lab: killed (`up` or `down` removes the leftovers)' || echo 'lab: not up'
    exit 3
  fi
  if ! host_ready; then
    echo "lab: starting, or interrupted while starting (init: process $pid)"
    exit 3
  fi
  echo "lab: up (init: process $pid)"
  echo "parts: $([ -e "$LAB_DIR/minimal" ] && echo minimal || echo all)"
  echo "containerd: $(inside ctr --connect-timeout 5s version 2>&1 |
    awk '/^Server/ { s = 1 } s && /Version:/ { print $2; f = 1 } END { if (!f) print "not responding" }')"
  echo "namespace: $LAB_NAMESPACE"
  echo "images: $(inside ctr --connect-timeout 5s images list -q 2>/dev/null | tr '\n' ' ')"
  echo "world: $([ -e "$LAB_DIR/world/ready" ] && echo ready || echo 'not ready')"
  echo "shim wrapper: $([ -e "$LAB_PROGRAMS/sbin/real-shim" ] && echo 'used (no CAP_SYS_RESOURCE)' || echo 'not used')"
}

# inside COMMAND... runs the command in the lab.
inside() { "$LAB_PROGRAMS/enter" "$LAB_DIR" "$@" 9>&-; }
