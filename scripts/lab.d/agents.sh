# Sourced by scripts/lab. Builds the image of the test of all agents in the cache:
#   bottle-agents:latest  Debian with every agent that bottle can install (--with-agents)
# Each agent is a layer of its own, built by the script of its Dockerfile.
# shellcheck shell=bash

AGENT_SCRIPTS=$LAB_CACHE/agentscripts-$LAB_ID

# agents_layers builds the missing layers.
agents_layers() {
  local name layer
  agents_scripts
  for name in $(agents_list); do
    layer=$(agent_layer "$name")
    [ -e "$layer" ] || step "downloading the agent $name" "$layer.log" agent_install "$name" "$layer"
  done
}

# agents_scripts writes the scripts. The lab's tools may be under construction in another
# strand, so it does not use them.
agents_scripts() {
  rm -rf "$AGENT_SCRIPTS"
  mkdir -p "$AGENT_SCRIPTS"
  (cd "$LAB_CHECKOUT" && go run -buildvcs=false ./scripts/agentscripts "$AGENT_SCRIPTS") >"$AGENT_SCRIPTS.log" 2>&1 </dev/null ||
    die "write the agents' scripts: $(log_error "$AGENT_SCRIPTS.log")"
}

agents_list() { basename -s .sh "$AGENT_SCRIPTS"/*.sh; }

agent_layer() { echo "$LAB_CACHE/agent-$1-$(file_hash "$AGENT_SCRIPTS/$1.sh").tar"; }

agent_install() {
  local name=$1 layer=$2
  rm -rf "$layer.npm"
  mkdir -p "$layer.npm"
  partial_root "$layer"
  (cd "$layer.npm" && arch=$(dpkg --print-architecture) out=$layer.root bash -euo pipefail "$AGENT_SCRIPTS/$name.sh")
  rm -rf "$layer.npm"
  pack_root "$layer"
}

agents_image() {
  local name layers=()
  for name in $(agents_list); do layers+=("$(agent_layer "$name")"); done
  debian_image bottle-agents:latest "$DEBIAN_LAYER" "${layers[@]}"
}
