# Functions that the scripts share. Read by `source`; needs bash.
# shellcheck shell=bash

# The top of the repository.
# shellcheck disable=SC2034 # used by the scripts that read this file
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  warn "$*"
  exit 1
}

# The base directories of the XDG specification, for data and for state.
data_home() { printf '%s\n' "${XDG_DATA_HOME:-${HOME:?is not set}/.local/share}"; }
state_home() { printf '%s\n' "${XDG_STATE_HOME:-${HOME:?is not set}/.local/state}"; }

# ensure_packages NAME...: installs those Debian packages that are not there yet.
ensure_packages() {
  local name missing=()
  if ! command -v dpkg-query >/dev/null; then
    warn "this is not Debian; the packages that are needed are taken to be there: $*"
    return 0
  fi
  for name in "$@"; do
    # shellcheck disable=SC2016 # the dollar sign is dpkg-query's
    [[ $(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null || true) == installed ]] || missing+=("$name")
  done
  ((${#missing[@]})) || return 0

  local as_root=()
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "packages are missing; let an administrator run: apt-get install ${missing[*]}"
    as_root=(sudo)
    # Asking for a password needs somebody who can type it.
    [[ -t 0 ]] || as_root+=(-n)
  fi
  say "Installing: ${missing[*]}"
  if [[ " ${missing[*]} " == *" nginx "* ]]; then
    say "Debian's nginx package also starts a web server on port 80, which is not needed here;"
    say "'systemctl disable --now nginx' ends it."
  fi
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
  "${apt[@]}" update || warn "apt-get update failed; trying with the package lists that are there"
  "${apt[@]}" install -y --no-install-recommends "${missing[@]}" \
    || die "could not install; let an administrator run: apt-get install ${missing[*]}"
}

# The packages that building and running need, for ensure_packages.
# shellcheck disable=SC2034 # used by the scripts that read this file
needed_packages=(
  bubblewrap ca-certificates curl libarchive-dev libfcgi-dev liblzma-dev libnginx-mod-http-js libsqlite3-dev nginx
  pkg-config util-linux
)

# The packages that an installed server needs, for ensure_packages.
# shellcheck disable=SC2034 # used by the scripts that read this file
server_packages=(
  bubblewrap ca-certificates curl libarchive13 libfcgi0ldbl liblzma5 libnginx-mod-http-js libsqlite3-0 logrotate nginx
  openssl procps util-linux
)

# ensure_swift: a Swift that can build the package is on PATH.
ensure_swift() {
  local advice="install Swift 6.3 or newer from https://www.swift.org/install and put its usr/bin on PATH"
  command -v swift >/dev/null || die "swift was not found; $advice"
  local text
  text=$(swift --version 2>&1) || die "swift --version failed: $text"
  [[ $text =~ Swift\ version\ ([0-9]+)\.([0-9]+) ]] || die "swift --version could not be understood: $text"
  local major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]}
  ((major > 6 || (major == 6 && minor >= 3))) || die "this is Swift $major.$minor; $advice"
}

# How programs are built that are to be used: with Swift's libraries inside, which makes the responder faster by a sixth.
# Other flags in the same checkout build everything anew.
# shellcheck disable=SC2034 # used by the scripts that read this file
release_flags=(-c release --static-swift-stdlib)

# check_port NUMBER: it is the number of a port, and this user may listen there.
check_port() {
  if ! [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] || (($1 > 65535)); then
    die "this is not the number of a port: $1"
  fi
  local lowest=0
  ((EUID == 0)) || read -r lowest </proc/sys/net/ipv4/ip_unprivileged_port_start
  (($1 >= lowest)) || die "only root may listen on a port below $lowest: $1"
}

# port_is_taken PORT: something listens there on loopback.
port_is_taken() {
  (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# check_socket_path PATH: short enough for the kernel (107 bytes), and safe in a configuration.
check_socket_path() {
  local LC_ALL=C
  ((${#1} <= 107)) && [[ $1 =~ ^/[A-Za-z0-9._/-]+$ ]]
}

# render_template FROM TO NAME=VALUE...: writes FROM to TO with every @NAME@ replaced.
# A value must be one plain word; a name without a value, or a value without its name, is an error.
render_template() {
  local from=$1 to=$2 pair name value text
  shift 2
  text=$(<"$from") || die "cannot read $from"
  for pair in "$@"; do
    name=${pair%%=*}
    value=${pair#*=}
    [[ $value =~ ^[][A-Za-z0-9._/:-]+$ ]] || die "the value of $name must be one plain word: $value"
    [[ $text == *"@$name@"* ]] || die "$from has no @$name@"
    text=${text//"@$name@"/"$value"}
  done
  if [[ $text =~ @[A-Z_]+@ ]]; then
    die "$from: no value was given for ${BASH_REMATCH[0]}"
  fi
  printf '%s\n' "$text" >"$to.new"
  mv -f -- "$to.new" "$to"
}
