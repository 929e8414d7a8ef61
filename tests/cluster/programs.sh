# shellcheck shell=bash
# What the node is made of and what outlives it: Debian's packages, the programs of go.mod, and
# the images that no registry can give here. Read by `node`.

PACKAGES=(runc iptables iproute2 util-linux procps busybox-static buildah openssl postgresql)
PACKAGES+=(curl jq)
# Go, without what a caller's environment could change in the programs.
GO=(env -u GOOS -u GOARCH CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local GOWORK=off go)

# pinned MODULE: its version in go.mod.
pinned() { awk -v module="$1" '$1 == module && $2 ~ /^v/ { print $2; exit }' "$HERE/go.mod"; }

# Without a version the API server says v0.0.0-master, which Helm's checks refuse.
linker_flags() {
  local version minor package=k8s.io/component-base/version
  version=$(pinned k8s.io/kubernetes)
  minor=${version#v1.}
  echo "-s -w -X $package.gitVersion=$version" \
    "-X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
}

# The folder of the programs: another pin, toolchain, target or flag is another folder.
programs() {
  local go digest
  go=$(cd "$HERE" && "${GO[@]}" env GOVERSION GOOS GOARCH GOAMD64 GOARM64 GOEXPERIMENT GOFIPS140) ||
    fail "Go is needed: golang.org/dl"
  digest=$(
    cat "$HERE"/go.{mod,sum}
    echo "$go" "${GO[@]}"
    declare -f linker_flags build_programs
  )
  digest=$(sha256sum <<<"$digest")
  echo "$CACHE/programs-${digest:0:12}"
}

# The folder of the images: pause, busybox, CoreDNS.
images() {
  local digest
  [ -e /bin/busybox ] || fail "busybox is not installed: \`node build\` does it"
  digest=$({ programs; cat "$HERE"/{Containerfile,image,programs.sh} /bin/busybox; } | sha256sum)
  echo "$CACHE/images-${digest:0:12}"
}

# cached FOLDER CMD..: has CMD fill FOLDER, which appears whole or not at all.
cached() {
  local folder=$1
  shift
  [ ! -d "$folder" ] || return 0
  mkdir -p "$CACHE"
  (
    flock 9                              # one at a time: another checkout may want the same
    [ ! -d "$folder" ] || exit 0
    rm -rf "$folder.new"
    mkdir "$folder.new"
    "$@" "$folder.new" >&2
    mv "$folder.new" "$folder"
  ) 9>"$CACHE/lock"
}

build() {
  packages
  cached "$(programs)" build_programs
  cached "$(images)" build_images
}

build_programs() { # FOLDER
  echo "building Kubernetes $(pinned k8s.io/kubernetes): about 15 minutes on two cores"
  (
    cd "$HERE" || exit
    export GOBIN=$1
    "${GO[@]}" install -trimpath -ldflags "$(linker_flags)" tool
  )
  mv "$1/server" "$1/etcd"
}

build_images() { # FOLDER
  local staging=$1/staging name
  mkdir "$staging"
  busybox_root "$staging/root"
  # A tar keeps hard links, which copying file by file would turn into hundreds of programs.
  tar -C "$staging/root" --owner 0 --group 0 --sort name --mtime @0 -cf "$staging/busybox.tar" .
  cp "$(programs)/coredns" "$staging"
  for name in docker.io/library/busybox:stable registry.local/{pause,coredns}:1; do
    TMPDIR=$staging "$HERE/image" "$HERE/Containerfile" "$staging" "$name" "$1"
  done
  rm -r "$staging"
}

busybox_root() { # FOLDER
  local applet
  mkdir -p "$1"/{bin,etc,home,root,usr,var}
  mkdir -m 1777 "$1/tmp"
  cp /bin/busybox "$1/bin"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln "$1/bin/busybox" "$1/bin/$applet"
  done
  echo 'root:x:0:0:root:/root:/bin/sh' >"$1/etc/passwd"
  echo 'root:x:0:' >"$1/etc/group"
}

# packages [NAME..]: installs those that are missing, or names the command; without names, all that
# the node needs.
packages() {
  local package missing=() command=(apt-get -y --no-install-recommends)
  [ $# -gt 0 ] || set -- "${PACKAGES[@]}"
  command -v dpkg-query >/dev/null ||
    fail "this is not Debian: get the programs of its packages $*"
  for package in "$@"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  command+=(-o DPkg::Lock::Timeout=300 -o DPkg::Options::=--force-confold install "${missing[@]}")
  [ "$(id -u)" = 0 ] || fail "packages are missing; as root: apt-get update; ${command[*]}"
  echo "node: installing ${missing[*]}" >&2
  # Debian's PostgreSQL would make and start a database of its own, on the machine's port 5432.
  if [ ! -e /etc/postgresql-common ]; then
    mkdir /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
  export DEBIAN_FRONTEND=noninteractive UCF_FORCE_CONFFOLD=1
  apt-get -o DPkg::Lock::Timeout=300 update >&2
  "${command[@]}" >&2
}
