# Sourced by scripts/lab. Builds the roots of Debian servers for `make readme`: a minimal
# Debian with what an installed server has, and repositories with the packages that
# `bottle setup --packages` installs there.
# shellcheck shell=bash

HOST_SUITES=(bookworm trixie)
HOST_PACKAGES=systemd,systemd-sysv,sudo,ca-certificates,git,e2fsprogs

host_layer_file() { echo "$LAB_CACHE/debian-host-$1-$(printf %s "$HOST_PACKAGES 1" | sha256sum | cut -c1-12).tar"; }

# REPOSITORY_PACKAGES are downloaded with their dependencies. Of containerd only the entry is
# there: its version decides that setup does not take it.
REPOSITORY_PACKAGES=(runc containernetworking-plugins)

repository_file() { echo "$LAB_CACHE/debian-repository-$1-$(printf %s "${REPOSITORY_PACKAGES[*]} 1" | sha256sum | cut -c1-12).tar"; }

host_layers() {
  local suite layer repository
  for suite in "${HOST_SUITES[@]}"; do
    layer=$(host_layer_file "$suite")
    [ -e "$layer" ] || { debian_root "$layer" 'a server' "$HOST_PACKAGES" "$suite" && pack_root "$layer"; }
    repository=$(repository_file "$suite")
    [ -e "$repository" ] || step "downloading packages for a server ($suite)" "$repository.log" repository_build "$repository" "$suite" "$layer"
  done
}

# repository_build FILE SUITE LAYER packs a repository of the suite's packages that a server lacks,
# with Debian's entries of them. The machine's apt downloads them, as if it were that server's.
repository_build() {
  local file=$1 suite=$2 layer=$3 url options names name path
  read -r url _ < <(debian_mirror)
  partial_root "$file"
  mkdir -p "$file.apt/root" "$file.apt/archives/partial" "$file.apt/lists/partial"
  tar -C "$file.apt/root" -xf "$layer" ./var/lib/dpkg ./usr/share/keyrings
  echo "deb [signed-by=$file.apt/root/usr/share/keyrings/debian-archive-keyring.gpg] $url $suite main" >"$file.apt/sources.list"
  options=(-o Dir::Etc::SourceList="$file.apt/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State="$file.apt"
    -o Dir::State::Status="$file.apt/root/var/lib/dpkg/status" -o Dir::Cache="$file.apt" -o Dir::Etc::PreferencesParts=/dev/null)
  apt-get "${options[@]}" update
  apt-get "${options[@]}" install --download-only -y --no-install-recommends "${REPOSITORY_PACKAGES[@]}"
  names=$(for path in "$file.apt/archives"/*.deb; do dpkg-deb --field "$path" Package; done)
  # shellcheck disable=SC2086
  apt-cache "${options[@]}" show --no-all-versions $names containerd >"$file.root/Packages"
  for name in $names; do
    path=$(apt-cache "${options[@]}" show --no-all-versions "$name" | sed -n 's/^Filename: //p')
    mkdir -p "$(dirname "$file.root/$path")"
    mv "$file.apt/archives/${name}_"*.deb "$file.root/$path"
  done
  rm -rf "$file.apt"
  pack_root "$file"
}
