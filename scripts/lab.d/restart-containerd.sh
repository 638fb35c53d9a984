#!/bin/bash
# Stops and starts the lab's containerd. Its tasks keep running under their
# shims. Run it inside the lab:
# scripts/lab exec -- scripts/lab.d/restart-containerd.sh [stop|kill|start]
set -euo pipefail

# stop SIGNAL
stop() {
  local pid try
  pid=$(</run/lab/containerd.pid)
  kill "-$1" "$pid"
  # The lab's init, its parent, reaps it.
  for ((try = 0; try < 400; try++)); do
    [ -e "/proc/$pid" ] || return 0
    sleep 0.05
  done
  echo "containerd (process $pid) did not exit within 20 seconds" >&2
  exit 1
}

start() {
  local pid try
  setsid containerd --config "$LAB_DIR/containerd.toml" >>"$LAB_DIR/log/containerd.log" 2>&1 </dev/null &
  pid=$!
  echo "$pid" >/run/lab/containerd.pid
  for ((try = 0; try < 600; try++)); do
    ctr --address /run/lab/containerd.sock --connect-timeout 2s version >/dev/null 2>&1 && return 0
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.05
  done
  echo "containerd is not responding: $(tail -n 1 "$LAB_DIR/log/containerd.log")" >&2
  exit 1
}

case ${1:-both} in
  stop) stop TERM ;;
  kill) stop KILL ;;
  start) start ;;
  both) stop TERM; start ;;
  *) echo "unknown argument $1 (expected stop, kill, start or none)" >&2; exit 2 ;;
esac
