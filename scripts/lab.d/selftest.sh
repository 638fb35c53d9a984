#!/bin/bash
# Tests scripts/lab on this machine, as root: two labs at the same time (of this
# checkout and of a copy), their isolation, `down`, `up` after a lab was killed,
# and that the machine is unchanged at the end. Stops this checkout's lab.
set -euo pipefail

checkout=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd -P)
lab=$checkout/scripts/lab
work=$(mktemp -d)
passed=0

fail() { printf 'selftest: FAIL: %s\n' "$*" >&2; exit 1; }
pass() { passed=$((passed + 1)); printf 'ok %d - %s\n' "$passed" "$*"; }

# machine prints the state that a lab must not change.
machine() {
  awk '{ print "mount", $5 }' /proc/self/mountinfo
  ip -o link | awk '{ print "link", $2 }'
  ip -o route show table all | sed 's/^/route /; s/ expires .*//'
  nft list ruleset | sed 's/^/nft /'
  sed 's/^/ip_forward /' /proc/sys/net/ipv4/ip_forward
  find /sys/fs/cgroup -type d -printf 'cgroup %p\n' | grep -F -e "$first_id" -e "$second_id" || true
  # Labs of other checkouts may come and go.
  find /run /var/lib /opt /etc -xdev -maxdepth 2 \( -name 'bottle*' -o -name 'containerd*' -o -name 'cni*' \) \
    ! -path '*/bottle-lab*' -printf 'file %p\n'
  find /run/bottle-lab /var/lib/bottle-lab -maxdepth 1 \( -name "$first_id" -o -name "$second_id" \) 2>/dev/null || true
}

# same_machine COMMAND compares the machine with its state at the start.
same_machine() {
  machine | sort >"$work/after"
  diff "$work/before" "$work/after" >"$work/diff" || fail "$1 changed the machine: $(tr '\n' ';' <"$work/diff")"
  pass "$1 leaves the machine unchanged"
}

# value LAB KEY prints the value of a line of the lab's status.
value() { { "$1" status || true; } | sed -n "s/^$2: //p"; }

init_of() { "$1" status | sed -n 's/^lab: up (init: process \([0-9]*\))$/\1/p'; }

# no_process_in PIDNS fails if the namespace contains a process.
no_process_in() {
  local link
  for link in /proc/[0-9]*/ns/pid; do
    [ "$(readlink "$link" 2>/dev/null)" != "$1" ] || fail "$link: process left behind in the lab's PID namespace"
  done
  pass "no process left in $1"
}

ssh_port_open() { "$1" exec -- bash -c '</dev/tcp/198.51.101.22/22' 2>/dev/null; }

run_runc() {
  "$1" exec -- ctr run --rm --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest selftest-runc id -u 2>"$work/err"
}

# run_runsc uses exec because the shim loses the exit code of a short-lived init.
run_runsc() {
  "$1" exec -- bash -ec 'ctr run -d --runtime io.containerd.runsc.v1 --runtime-config-path "$LAB_RUNSC_CONFIG" \
      --annotation io.kubernetes.cri.container-type=sandbox docker.io/library/bottle-demo:latest selftest-runsc sleep 600
    ctr task exec --exec-id work selftest-runsc dmesg
    ctr task rm -f selftest-runsc
    ctr container rm selftest-runsc' 2>"$work/err"
}

[ "$(id -u)" = 0 ] || fail 'requires root'
"$lab" down
# A second checkout with just the files that scripts/lab needs.
second=$work/checkout
mkdir "$second"
cp -r "$checkout/go.mod" "$checkout/go.sum" "$checkout/scripts" "$second/"
first_id=$(basename "$(value "$lab" state)")
second_id=$(basename "$(value "$second/scripts/lab" state)")
trap '"$lab" down; [ ! -e "$second" ] || "$second/scripts/lab" down; rm -rf "$work"' EXIT
machine | sort >"$work/before"

"$lab" install
"$lab" up
[ "$(value "$lab" lab | cut -c1-2)" = up ] || fail 'status does not report up'
[ "$(value "$lab" world)" = ready ] || fail 'the world is not ready'
pass 'up'
first_init=$(init_of "$lab")
"$lab" up
[ "$(init_of "$lab")" = "$first_init" ] || fail 'a second up started a new lab'
pass 'a second up keeps the running lab'

[ "$(run_runc "$lab")" = 1000 ] || fail "runc: $(tail -n 1 "$work/err")"
pass 'a container runs under runc'
run_runsc "$lab" >"$work/out" && grep -q gVisor "$work/out" || fail "runsc: $(tail -n 1 "$work/err")"
pass 'a container runs under runsc'

[ "$("$lab" exec -- cat /proc/sys/net/ipv4/ip_forward)" = 0 ] || fail 'forwarding is enabled in the lab'
[ "$("$lab" exec -- ls /sys/class/net | tr '\n' ' ')" = 'lo uplink ' ] || fail 'the lab has links other than lo and uplink'
[ "$("$lab" exec -- cat /etc/resolv.conf)" = 'nameserver 198.51.101.53' ] || fail "the lab uses the machine's resolver"
pass 'the lab has its own network settings'
echo data | "$lab" exec -- cat | grep -qx data || fail 'standard input does not reach the command'
code=0
"$lab" exec -- sh -c 'exit 42' || code=$?
[ "$code" = 42 ] || fail "exit code: got $code, want 42"
[ "$(cd /usr/share && "$lab" exec -- pwd)" = /usr/share ] || fail 'exec changed the current directory'
code=0
"$lab" exec -- no-such-command 2>"$work/err" || code=$?
[ "$code" = 127 ] || fail "exit code of a missing command: got $code, want 127"
pass 'exec passes on standard input, exit code and directory'
env -i HOME="${HOME-/root}" PATH="$PATH" bash -c 'eval "$("$1" env)" && ctr version >/dev/null 2>&1 && [ -n "$CNI_PATH" ]' - "$lab" ||
  fail 'ctr does not work in the environment printed by env'
pass 'env'

# A killed `exec` must take its command with it.
"$lab" exec -- sh -c 'echo started; exec sleep 600' >"$work/pipe.out" &
entered=$!
until grep -q started "$work/pipe.out"; do kill -0 $entered || fail 'exec exited early'; done
{ kill -KILL $entered && wait $entered || true; } 2>/dev/null
for ((try = 0; try < 100; try++)); do
  "$lab" exec -- sh -c 'grep -lz "^600" /proc/[0-9]*/cmdline' >/dev/null 2>&1 || break
  sleep 0.05
done
[ $try -lt 100 ] || fail 'the command of a killed exec is still running'
pass 'killing exec ends its command'

"$second/scripts/lab" up --minimal
second_init=$(init_of "$second/scripts/lab")
[ "$first_init" != "$second_init" ] || fail 'two checkouts share a lab'
[ "$(run_runc "$second/scripts/lab")" = 1000 ] || fail "runc in the second lab: $(tail -n 1 "$work/err")"
[ "$(value "$second/scripts/lab" parts) $(value "$second/scripts/lab" images)" = 'minimal docker.io/library/bottle-demo:latest ' ] ||
  fail 'a minimal lab has other parts'
ssh_port_open "$lab" || fail 'the lab has no ssh server'
! ssh_port_open "$second/scripts/lab" || fail 'a minimal lab has an ssh server'
pass 'a minimal lab has only the demo image and no ssh server'
"$second/scripts/lab" up
[ "$(value "$second/scripts/lab" parts)" = all ] && ssh_port_open "$second/scripts/lab" ||
  fail 'up does not add the other parts to a minimal lab'
pass 'up restarts a minimal lab with all parts'
second_init=$(init_of "$second/scripts/lab")
second_ns=$(readlink "/proc/$second_init/ns/pid")
"$second/scripts/lab" up --minimal
[ "$(init_of "$second/scripts/lab")" = "$second_init" ] || fail 'up --minimal restarted a complete lab'
pass 'up --minimal keeps a complete lab'
"$second/scripts/lab" down
no_process_in "$second_ns"
[ "$(init_of "$lab")" = "$first_init" ] && [ "$(run_runc "$lab")" = 1000 ] || fail 'stopping the second lab affected the first'
pass 'two labs do not affect each other'
cache=$(value "$lab" cache)
rm -rf "$cache/tools-$second_id"*

first_ns=$(readlink "/proc/$first_init/ns/pid")
"$lab" exec -- ctr run -d --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest left-running sleep 600 2>/dev/null
kill -KILL "$first_init"
for ((try = 0; try < 200; try++)); do [ -e "/proc/$first_init" ] || break; sleep 0.05; done
no_process_in "$first_ns"
code=0
"$lab" status >"$work/status" || code=$?
[ "$code" = 3 ] || fail "exit code of status for a killed lab: got $code, want 3"
"$lab" up
[ "$(run_runc "$lab")" = 1000 ] || fail "runc after up: $(tail -n 1 "$work/err")"
pass 'up replaces a killed lab'

first_ns=$(readlink "/proc/$(init_of "$lab")/ns/pid")
"$lab" exec -- ctr run -d --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest left-running sleep 600 2>/dev/null
"$lab" down
no_process_in "$first_ns"
same_machine 'down'
"$lab" down
same_machine 'a second down'
printf '%d passed, 0 failed\n' "$passed"
