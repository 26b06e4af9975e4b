# Sourced by the consumers' tests, which get from ctest: CMAKE GENERATOR CC CXX CFLAGS CXXFLAGS VERSION BUILD BUILD_TYPE
# CARGO_TARGET TOOL, and their own directory as $1.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$1
rm -rf "$work"
mkdir -p "$work/tmp"
export CC CXX CFLAGS CXXFLAGS TMPDIR="$work/tmp"
unset DESTDIR MAKEFLAGS LD_LIBRARY_PATH

die() {
  echo "$*" >&2
  exit 1
}

# check_program PROGRAM shared|static: it works, and is linked to the library it should be.
check_program() {
  said=$("$1") || die "$1 failed"
  [ "$said" = "ok $VERSION" ] || die "$1 says '$said', not 'ok $VERSION'"
  needs=static
  if readelf -d "$1" | grep -qF '[libnearfile.so.'; then needs=shared; fi
  [ "$needs" = "$2" ] || die "$1 is linked to the $needs library, not the $2 one"
  echo "$1: $said"
}
