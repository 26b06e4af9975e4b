#!/bin/sh
# A project that builds nearfile with itself gets the library that it asks for, and no tests, packages or install rules.
. "$(dirname "$0")/common.sh"

# try NAME shared|static OPTION...: cargo's directory is the main build's, so that the crate is not built again.
try() {
  name=$1 kind=$2
  shift 2
  "$CMAKE" -S "$here/subdirectory" -B "$work/$name" -G "$GENERATOR" -DCMAKE_BUILD_TYPE="$BUILD_TYPE" \
    -DNEARFILE_CARGO_TARGET_DIR="$CARGO_TARGET" "$@"
  "$CMAKE" --build "$work/$name"
  check_program "$work/$name/consumer" "$kind"
  "$CMAKE" --install "$work/$name" --prefix "$work/$name-installed"
  [ ! -e "$work/$name-installed" ] || die "installing the consumer installed nearfile"
}
try add_subdirectory shared
try fetched static -DCONSUMER_FETCH=ON -DBUILD_SHARED_LIBS=OFF
