#!/bin/sh
# in-fresh-directory.sh DIR PROGRAM [ARGUMENT...]: runs PROGRAM with NEARFILE_TEST_DIR=DIR, which is made anew and empty.
set -eu
dir=$1
shift
if [ -e "$dir" ]; then
  chmod -R u+rwX "$dir" # a test may have left what its owner cannot remove
  rm -rf "$dir"
fi
mkdir -p "$dir"
# exec: a signal that kills the program is seen by ctest as such.
NEARFILE_TEST_DIR=$dir exec "$@"
