# Sourced by scripts/dist --check. Tests the packages in a directory.
# shellcheck shell=bash

# installed_files is the list of files that the packages install, without documentation.
installed_files() {
  printf '%s\n' /usr/bin/bottle /usr/lib/systemd/system/bottle-cleanup.service /usr/lib/systemd/system/bottle@.service \
    /usr/share/bash-completion/completions/bottle /usr/share/fish/vendor_completions.d/bottle.fish \
    /usr/share/zsh/vendor-completions/_bottle
}

# man_pages lists the manual pages: one for bottle and one for each command.
man_pages() { "$1" __complete '' 2>/dev/null | awk -F '\t' 'NF == 2 && $1 != "help" { print $1 }'; }

# check_packages DIRECTORY ARCHITECTURE...
check_packages() {
  local dir=$1 arch base deb module
  shift
  (cd "$dir" && sha256sum --quiet --check SHA256SUMS) || die 'wrong checksums'
  for arch; do
    base=$dir/bottle-$VERSION-$arch
    deb=$(echo "$dir"/bottle_*_"$arch".deb)
    [ "$(dpkg-deb --field "$deb" Package Architecture | tr '\n' ' ')" = "Package: bottle Architecture: $arch " ] || die "$deb: wrong fields"
    dpkg --compare-versions "$(dpkg-deb --field "$deb" Version)" lt 999 || die "$deb: invalid version"
    check_deb "$deb" "$arch"
    check_rpm "$(echo "$dir"/bottle-*."$(rpm_arch "$arch")".rpm)"
    tar -tzf "$base.tar.gz" | grep -x "bottle-$VERSION-$arch/bottle" >/dev/null || die "$base.tar.gz: no program"
    for module in github.com/containerd/containerd/v2 github.com/vishvananda/netlink std; do
      grep -q "\"name\": \"$module\"" "$base.cdx.json" || die "$base.cdx.json: no module $module"
    done
  done
}

# check_deb FILE ARCHITECTURE: installs and purges the package in an empty root.
check_deb() {
  local target=$work/target-$2 page
  mkdir -p "$target/var/lib/dpkg"/{info,updates}
  touch "$target/var/lib/dpkg/status"
  copy_programs "$target" sh rmdir rm # dpkg runs the package's script in the root
  mkdir "$target/dev" && touch "$target/dev/null"
  (cd "$target" && find . -type f | sort) >"$work/before"
  dpkg --root="$target" --force-architecture --force-depends --install "$1" >"$work/log" 2>&1 || die "install $1: $(cat "$work/log")"
  while read -r page; do
    [ -s "$target$page" ] || die "$1: no $page"
  done < <(installed_files)
  if [ "$2" = "$(dpkg --print-architecture)" ]; then
    [ "$("$target/usr/bin/bottle" --version)" = "bottle version $VERSION" ] || die "$1: the program has another version"
    for page in $(man_pages "$target/usr/bin/bottle"); do
      gzip -dc "$target/usr/share/man/man1/bottle-$page.1.gz" | grep '^\.SH NAME' >/dev/null || die "$1: no manual page of bottle $page"
    done
  fi
  find "$target/usr" ! -type l -perm /022 | grep . && die "$1: files that others can write"
  mkdir -p "$target/var/lib/bottle" # as after the first bottle
  dpkg --root="$target" --purge bottle >"$work/log" 2>&1 || die "purge $1: $(cat "$work/log")"
  [ ! -e "$target/usr/bin/bottle" ] && [ -z "$(find "$target" -name '*bottle*')" ] || die "$1: the purge has left $(find "$target" -name '*bottle*')"
}

# copy_programs ROOT PROGRAM...: copies programs of this host, with their libraries.
copy_programs() {
  local target=$1 program file
  shift
  for program; do
    program=$(command -v "$program")
    for file in "$program" $(ldd "$program" | grep -o '/[^ )]*'); do
      mkdir -p "$target$(dirname "$file")"
      cp -L "$file" "$target$file"
    done
  done
  [ -e "$target/bin/sh" ] || { mkdir -p "$target/bin" && cp -L "$target$(command -v sh)" "$target/bin/sh"; }
}

rpm_arch() { case $1 in amd64) echo x86_64 ;; arm64) echo aarch64 ;; *) echo "$1" ;; esac; }

# check_rpm FILE: the contents are those of the .deb.
check_rpm() {
  local file
  rpm --query --list --package "$1" >"$work/list" 2>"$work/log" || die "$1: $(cat "$work/log")"
  while read -r file; do
    grep -qx "$file" "$work/list" || die "$1: no $file"
  done < <(installed_files)
}
