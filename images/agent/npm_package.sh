# npm_package NAME VERSION SHA512_AMD64 [SHA512_ARM64] downloads a package from the
# configured npm registry, verifies it and unpacks it as ./package. A checksum is npm's
# dist.integrity in hexadecimal; with one, the package is the same for both. $arch is the
# architecture, and $cpu npm's name of it.
npm_package() {
  local sum=$3
  if [ "$arch" = arm64 ] && [ $# -gt 3 ]; then sum=$4; fi
  if [ -z "$sum" ]; then
    echo "$1 $2 is not available for $arch" >&2
    return 1
  fi
  rm -rf package package.tgz
  mv "$(npm pack --silent "$1@$2")" package.tgz
  echo "$sum  package.tgz" | sha512sum --check --quiet
  tar --no-same-owner -xzf package.tgz
  rm package.tgz
}
