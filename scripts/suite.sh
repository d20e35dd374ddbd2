# To be sourced by scripts that unpack programs of another Debian release. Each sets `me` to its name first.
#
# The programs need that release's libraries, the C library included. Those are unpacked too, and each program is replaced by
# a wrapper that starts the real one with that C library's loader. LD_LIBRARY_PATH is not enough: the programs pass it on to
# /bin/sh, which would then load the wrong C library.
# shellcheck shell=bash
umask 022

fail() {
  echo "$me: $*" >&2
  exit 1
}

# Exit code 3: this machine's mirror does not have it.
unavailable() {
  echo "$me: this machine cannot get it: $*" >&2
  exit 3
}

for tool in apt-get dpkg-deb flock; do
  command -v "$tool" >/dev/null || fail "$tool is missing: this needs Debian or a descendant of it"
done

# Sets `cache` to the folder of this name where fetched programs stay, and waits until no other script works in it.
open_cache() {
  cache=$(dirname "${BASH_SOURCE[0]}")/../.cache/$1
  mkdir -p "$cache"
  cache=$(cd "$cache" && pwd -P) # work trees may share the folder through a link
  # As root, servers run as the user postgres, who may have no access to the clone (it may be below /root).
  if [ "$(id -u)" = 0 ] && id postgres >/dev/null 2>&1 &&
    ! setpriv --reuid=postgres --regid=postgres --init-groups test -x "$cache"; then
    cache=/var/cache/pads-cdc/$1
    mkdir -p "$cache"
  fi
  exec 9>"$cache/lock"
  flock 9
}

# Whether this folder is complete and has not been moved: the wrappers contain its path.
is_complete() { [ "$(cat "$1/complete" 2>/dev/null)" = "$1" ]; }

# Makes `work`, a folder that is removed when the script ends, with a configuration of apt for a release's packages; with a
# second argument, for its security updates too.
open_suite() {
  suite=$1
  work=$(mktemp -d "$cache/fetching.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work"/{lists/partial,cache/archives/partial,packages,tree}
  : >"$work/status"
  # The system's mirror; if it has several, the first one that is not only for security updates.
  local mirror security
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | sed -n 1p)
  [ -n "$mirror" ] || fail "apt knows no package mirror: look at /etc/apt/sources.list"
  echo "deb $mirror $suite main" >"$work/sources.list"
  security=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep security | sed -n 1p || true)
  if [ -n "${2-}" ] && [ -n "$security" ]; then
    echo "deb $security $suite-security main" >>"$work/sources.list"
  fi
  chmod 600 "$work/sources.list" # a mirror's address may contain a password
  private=(
    -qq
    -o "Dir::Etc::SourceList=$work/sources.list"
    -o "Dir::Etc::SourceParts=/dev/null"
    -o "Dir::Etc::Preferences=/dev/null"
    -o "Dir::Etc::PreferencesParts=/dev/null"
    -o "Dir::State::Lists=$work/lists"
    -o "Dir::State::status=$work/status"
    -o "Dir::Cache=$work/cache"
    -o "Acquire::Languages=none"
    -o "APT::Sandbox::User=" # the user _apt may have no access to the clone either
  )
  # The lists of an outdated mirror have expired, but their signature is valid. For temporary programs of tests that is
  # good enough: the lists are used, and a message says so.
  if ! apt-get "${private[@]}" update >"$work/update.log" 2>&1; then
    grep -q 'is expired\|is not valid anymore' "$work/update.log" || no_lists
    echo "$me: the mirror's lists of Debian $suite have expired: what they have is taken as it was then" >&2
    private+=(-o "Acquire::Check-Valid-Until=false")
    apt-get "${private[@]}" update >"$work/update.log" 2>&1 || no_lists
  fi
}

no_lists() {
  local why # without the mirror's address, which may contain a password
  why=$({ grep -m 1 '^E:' "$work/update.log" || echo "apt-get update failed"; } | sed -E 's#[a-z+]+://[^ ]*#the mirror#g')
  unavailable "the package lists of Debian $suite cannot be read: $why"
}

# Prints the packages that the given ones depend on, without virtual alternatives.
depends() {
  apt-cache "${private[@]}" depends --no-{recommends,suggests,conflicts,breaks,replaces,enhances} "$@"
}

# Unpacks packages into $work/tree, with the libraries that they need, directly or indirectly. LLVM is left out: only
# PostgreSQL's just-in-time compiler uses it, and it is four times as large as all the rest.
unpack() {
  local named libraries package
  mapfile -t named < <(depends "$@" | sed -nE 's/^ *\|?Depends: (lib[^ ]+)$/\1/p' | grep -v '^libllvm' | sort -u)
  mapfile -t libraries < <(depends --recurse "${named[@]}" | grep -E '^lib[^ ]+$' | sort -u)
  (cd "$work/packages" && apt-get "${private[@]}" download "$@" "${libraries[@]}" >&2) ||
    unavailable "its packages cannot be downloaded from Debian $suite"
  for package in "$work"/packages/*.deb; do
    dpkg-deb --fsys-tarfile "$package" |
      tar -x -C "$work/tree" --exclude=./usr/share/{doc,man,locale,lintian} --exclude=./etc
  done
  # Older releases still have some libraries outside /usr.
  [ ! -d "$work/tree/lib" ] || cp -a "$work/tree/lib/." "$work/tree/usr/lib/"
}

# Replaces the programs in a folder of the tree by wrappers that expect the tree at `destination`.
wrap() {
  local folder=$work/tree/$1 loader run program name
  loader=$(cd "$work/tree" && echo usr/lib/*/ld-linux-*.so.*)
  [ -f "$work/tree/$loader" ] || fail "the C library of Debian $suite has no loader where it is expected"
  run="\"$destination/$loader\" --library-path \"$destination/$(dirname "$loader")\""
  mkdir "$folder/real"
  for program in "$folder"/*; do
    [ -f "$program" ] && [ "$(head -c 4 "$program" | tr -d '\0')" = $'\x7fELF' ] || continue
    name=$(basename "$program")
    mv "$program" "$folder/real/$name"
    printf '#!/bin/sh\nexec %s --argv0 "$0" "%s" "$@"\n' "$run" "$destination/$1/real/$name" >"$program"
    chmod 755 "$program"
  done
}

# Moves the tree to `destination`. Call `finish` after its programs have run once.
settle() {
  rm -rf "$destination"
  mv "$work/tree" "$destination"
}
finish() { echo "$destination" >"$destination/complete"; }
