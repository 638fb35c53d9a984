# Sourced by scripts/lab. Runs the steps of an installation. Steps print their
# progress and write their output to a log. Strands are sequences of steps that run
# concurrently: when one fails, the others are stopped.
# shellcheck shell=bash

# Seconds between progress lines of a step.
PROGRESS_INTERVAL=20

# step WHAT LOG COMMAND... runs the command and exits if it fails.
step() {
  local what=$1 log=$2 start=$SECONDS shown=$SECONDS pid
  shift 2
  say "$what"
  "$@" >"$log" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    ((SECONDS - shown >= PROGRESS_INTERVAL)) || continue
    shown=$SECONDS
    say "$what: $((SECONDS - start)) s$(packages_compiled "$log")"
  done
  wait "$pid" || die "$what: $(log_error "$log") (log: $log)"
  say "$what: done in $((SECONDS - start)) s"
}

# packages_compiled LOG prints how many packages `go install -v` has compiled.
packages_compiled() {
  local count
  count=$(grep -cxE '[^ ]+/[^ ]+' "$1") || return 0
  printf ', %d packages compiled' "$count"
}

# log_error LOG prints the line of a log that most likely explains a failure: the
# first compiler error, or else the last line.
log_error() {
  local line
  line=$(awk '/^# / { if ((getline) > 0) print; exit }' "$1")
  printf '%s\n' "${line:-$(tail -n 1 "$1")}"
}

STRANDS=()
trap strands_stop EXIT

# strand FUNCTION runs the function in the background, in its own process group.
strand() {
  set -m
  "$1" </dev/null &
  STRANDS+=($!)
  set +m
}

# strands_wait waits for all strands and exits if one of them fails.
strands_wait() {
  local finished strand remaining
  while [ ${#STRANDS[@]} -gt 0 ]; do
    wait -n -p finished "${STRANDS[@]}" || exit 1
    remaining=()
    for strand in "${STRANDS[@]}"; do [ "$strand" = "$finished" ] || remaining+=("$strand"); done
    STRANDS=("${remaining[@]}")
  done
}

# strands_stop stops the strands that are still running, when the script exits.
strands_stop() {
  local strand
  for strand in "${STRANDS[@]}"; do kill -TERM -- "-$strand" 2>/dev/null || true; done
}
