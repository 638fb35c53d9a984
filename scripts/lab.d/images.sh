# Sourced by scripts/lab. Builds the lab's images in the cache and imports them, and a
# root file system with sudo (not if --minimal):
#   bottle-demo:latest    busybox and the demo's client
#   claude-bottle:latest  Debian with the packages that an agent needs (not if --minimal)
#   claude-bottle:claude  the same with Claude Code (--with-claude)
#   bottle-base:latest    plain Debian, base of the default image (--with-base)
#   bottle-clients:latest  see clients.sh (--with-clients)
#   bottle-tools:latest    see clients.sh (--with-tools)
#   bottle-agents:latest   see agents.sh (--with-agents)
# The name of an archive contains a hash of its inputs, so a change produces a
# new archive.
# shellcheck shell=bash

CA_DIR=$LAB_CACHE/ca
DEBIAN_PACKAGES=bash,git,ca-certificates,openssh-client,curl,iproute2,procps
DEBIAN_LAYER=$LAB_CACHE/debian-$(printf %s "$DEBIAN_PACKAGES 1" | sha256sum | cut -c1-12).tar
BASE_LAYER=$LAB_CACHE/debian-base-1.tar
# Of users who have only sudo and bottle.
SUDO_PACKAGES=sudo,git,openssh-client
SUDO_ROOT=$LAB_CACHE/sudo-$(printf %s "$SUDO_PACKAGES 1" | sha256sum | cut -c1-12)
CLAUDE_PACKAGE=@anthropic-ai/claude-code
CLAUDE_ARCH=x64
[ "$(dpkg --print-architecture)" != arm64 ] || CLAUDE_ARCH=arm64
CLAUDE_LAYER=$LAB_CACHE/claude-code-$CLAUDE_CODE_VERSION-$CLAUDE_ARCH.tar

# images_build builds the images of the installed layers, and sets ARCHIVES.
images_build() {
  # Images contain the certificate, so all labs of a cache share the authority.
  "$TOOLS_BIN/world" ca --state "$CA_DIR" >"$LAB_CACHE/ca.log" 2>&1 ||
    die "create the lab's certificate authority: $(tail -n 1 "$LAB_CACHE/ca.log")"
  ARCHIVES=()
  demo_image
  [ -n "$MINIMAL" ] || debian_image claude-bottle:latest "$DEBIAN_LAYER"
  [ -z "$WITH_BASE" ] || base_image
  [ -z "$WITH_CLAUDE" ] || debian_image claude-bottle:claude "$DEBIAN_LAYER" "$CLAUDE_LAYER"
  [ -z "$WITH_AGENTS" ] || agents_image
  [ -z "$WITH_CLIENTS" ] || debian_image bottle-clients:latest "$CLIENTS_LAYER" "$CLAUDE_LAYER"
  [ -z "$WITH_TOOLS" ] || debian_image bottle-tools:latest "$DEBIAN_LAYER" "$CLAUDE_LAYER" "$TOOLS_LAYER"
  # Checkouts share the cache, so an archive is removed only if none used it lately.
  touch "${ARCHIVES[@]}"
  find "$LAB_CACHE" -maxdepth 1 -name '*.oci.tar*' -mtime +7 -delete
}

# key prints a short hash of its arguments, this file and mkimage.
key() { { printf '%s\n' "$@"; cat "$LAB_SCRIPTS/images.sh" "$TOOLS_BIN/mkimage"; } | sha256sum | cut -c1-12; }

file_hash() { sha256sum <"$1" | cut -c1-12; }

# partial_root FILE creates the empty directory FILE.root.
partial_root() {
  rm -rf --one-file-system "$1.root"
  mkdir -m 0755 "$1.root"
}

# pack_root FILE packs the directory of partial_root into FILE, a reproducible
# tar archive, and removes the directory. Device nodes are left to the runtime.
pack_root() {
  tar -C "$1.root" --sort=name --mtime=@0 --numeric-owner --exclude='./dev/*' -cf "$1.partial" .
  rm -rf --one-file-system "$1.root"
  mv "$1.partial" "$1"
}

# make_image ARCHIVE NAME ARGUMENT... builds the image with mkimage.
make_image() {
  local archive=$1 name=$2
  shift 2
  "$TOOLS_BIN/mkimage" --out "$archive.partial" --ref "docker.io/library/$name" \
    --user 1000:1000 --workdir /workspace "$@" >"$archive.log" 2>&1 ||
    die "build image $name: $(tail -n 1 "$archive.log")"
  mv "$archive.partial" "$archive"
}

# image_dirs ROOT creates the directories that every image has: the agent's and
# /tmp.
image_dirs() {
  mkdir -p "$1/home/agent" "$1/workspace" "$1/tmp"
  chown 1000:1000 "$1/home/agent" "$1/workspace"
  chmod 1777 "$1/tmp"
}

demo_image() {
  local layer root archive
  layer=$LAB_CACHE/bottle-demo-latest-$(key "$(file_hash "$TOOLS_BIN/demoagent")" "$(file_hash /bin/busybox)" "$(file_hash "$CA_DIR/ca.pem")").tar
  archive=${layer%.tar}.oci.tar
  ARCHIVES+=("$archive")
  [ ! -e "$archive" ] || return 0
  partial_root "$layer"
  root=$layer.root
  mkdir -p "$root/bin" "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/proc" "$root/sys" "$root/dev" "$root/root"
  image_dirs "$root"
  cp /bin/busybox "$root/bin/busybox"
  chroot "$root" /bin/busybox --install -s /bin
  cp "$TOOLS_BIN/demoagent" "$root/usr/local/bin/demoagent"
  cp "$CA_DIR/ca.pem" "$root/etc/ssl/certs/ca-certificates.crt"
  printf 'root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n' >"$root/etc/passwd"
  printf 'root:x:0:\nagent:x:1000:\n' >"$root/etc/group"
  pack_root "$layer"
  make_image "$archive" bottle-demo:latest --layer-tar "$layer" \
    --env PATH=/usr/local/bin:/usr/bin:/bin --env HOME=/home/agent -- /bin/sh
  rm -f "$layer"
}

# debian_mirror prints "URL SUITE" of this machine's Debian release.
debian_mirror() {
  local suite
  suite=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
  # apt reads its sources itself, because they may have either of two formats.
  apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
    awk -v suite="$suite" '$2 == suite && $3 == "main" { print $1, $2; exit }'
}

# debian_root LAYER WHAT [PACKAGE,... [SUITE]] installs a Debian release in LAYER.root:
# SUITE, or else this machine's.
debian_root() {
  local url suite root=$1.root
  read -r url suite < <(debian_mirror) || die "apt's sources list no Debian mirror for this machine's release"
  suite=${4:-$suite}
  partial_root "$1"
  # In a new mount namespace: an interrupted debootstrap leaves /proc mounted.
  step "building $2 ($suite)" "$1.log" unshare --mount --propagation private \
    debootstrap --variant=minbase ${3:+--include="$3"} "$suite" "$root" "$url"
  # Remove this machine's mirror settings and files that a bottle does not need.
  rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/etc/apt/sources.list*
  : >"$root/etc/resolv.conf"
  echo bottle >"$root/etc/hostname"
}

debian_layer() {
  local root=$DEBIAN_LAYER.root
  [ ! -e "$DEBIAN_LAYER" ] || return 0
  debian_root "$DEBIAN_LAYER" 'the Debian layer' "$DEBIAN_PACKAGES"
  chroot "$root" useradd --uid 1000 --user-group --shell /bin/bash --no-create-home agent
  image_dirs "$root"
  cp "$root"/etc/skel/.[!.]* "$root/home/agent/"
  chown -R 1000:1000 "$root/home/agent"
  pack_root "$DEBIAN_LAYER"
}

base_layer() {
  [ ! -e "$BASE_LAYER" ] || return 0
  debian_root "$BASE_LAYER" 'the base layer'
  pack_root "$BASE_LAYER"
}

sudo_root() {
  [ ! -d "$SUDO_ROOT" ] || return 0
  debian_root "$SUDO_ROOT" 'the root file system with sudo' "$SUDO_PACKAGES"
  mv -T "$SUDO_ROOT.root" "$SUDO_ROOT"
}

base_image() {
  local archive
  archive=$LAB_CACHE/bottle-base-latest-$(key "$BASE_LAYER").oci.tar
  ARCHIVES+=("$archive")
  [ ! -e "$archive" ] || return 0
  make_image "$archive" bottle-base:latest --layer-tar "$BASE_LAYER" --user 0:0 --workdir / -- /bin/bash
}

# debian_image NAME LAYER... builds an image of the layers with the lab's
# certificate authority on top.
debian_image() {
  local name=$1 top layer archive arguments=()
  shift
  archive=$LAB_CACHE/${name/:/-}-$(key "$(file_hash "$CA_DIR/ca.pem")" "$@").oci.tar
  ARCHIVES+=("$archive")
  [ ! -e "$archive" ] || return 0
  say "building image $name"
  top=$archive.ca.tar
  partial_root "$top"
  mkdir -p "$top.root/etc/ssl/certs" "$top.root/usr/local/share/ca-certificates"
  tar -xOf "$DEBIAN_LAYER" ./etc/ssl/certs/ca-certificates.crt >"$top.root/etc/ssl/certs/ca-certificates.crt"
  cat "$CA_DIR/ca.pem" >>"$top.root/etc/ssl/certs/ca-certificates.crt"
  cp "$CA_DIR/ca.pem" "$top.root/usr/local/share/ca-certificates/lab.crt"
  pack_root "$top"
  for layer in "$@" "$top"; do arguments+=(--layer-tar "$layer"); done
  make_image "$archive" "$name" "${arguments[@]}" \
    --env PATH=/usr/local/bin:/usr/bin:/bin --env HOME=/home/agent --env LANG=C.UTF-8 -- /bin/bash
  rm -f "$top"
}

# claude_layer builds a layer with Claude Code's native program, which does not
# need node.
claude_layer() {
  [ ! -e "$CLAUDE_LAYER" ] || return 0
  step "downloading $CLAUDE_PACKAGE $CLAUDE_CODE_VERSION" "$CLAUDE_LAYER.log" claude_download
}

claude_download() {
  local dir=$CLAUDE_LAYER.npm native=$CLAUDE_PACKAGE-linux-$CLAUDE_ARCH program
  rm -rf "$dir"
  mkdir -p "$dir"
  npm install --ignore-scripts --no-audit --no-fund --prefix "$dir" "$CLAUDE_PACKAGE@$CLAUDE_CODE_VERSION"
  program=$dir/node_modules/$native/claude
  # The native program is an optional dependency, which npm may skip.
  if [ ! -e "$program" ]; then
    cd "$dir"
    npm pack "$native@$CLAUDE_CODE_VERSION"
    tar -xzf ./*.tgz package/claude
    program=$dir/package/claude
  fi
  partial_root "$CLAUDE_LAYER"
  mkdir -p "$CLAUDE_LAYER.root/usr/local/bin"
  cp "$program" "$CLAUDE_LAYER.root/usr/local/bin/claude"
  chmod 0755 "$CLAUDE_LAYER.root/usr/local/bin/claude"
  pack_root "$CLAUDE_LAYER"
  rm -rf "$dir"
}

images_import() {
  local archive
  mkdir -p "$LAB_DIR/imported"
  for archive in "${ARCHIVES[@]}"; do image_import "$archive"; done
}

# image_import ARCHIVE imports the image once per lab.
# --local is twice as fast as streaming the archive to the daemon.
image_import() {
  local mark
  mark=$LAB_DIR/imported/$(basename "$1")
  [ ! -e "$mark" ] || return 0
  inside ctr --connect-timeout 5s images import --local --snapshotter overlayfs "$1" >"$LAB_DIR/log/import.log" 2>&1 </dev/null ||
    die "import image $(basename "$1"): $(tail -n 1 "$LAB_DIR/log/import.log")"
  : >"$mark"
}
